"""How far one scan of the source is, which goes on with a fresh worker behind each file that hangs. Pure."""

from collections.abc import Collection


class Scan:
    """One scan: of a whole listing, or of files that are looked for by name.

    Args:
        wanted: the files to look for; None: the source is listed first.
    """

    def __init__(self, wanted: tuple[str, ...] | None) -> None:
        self.reached = False
        """Whether the source has answered: what hangs then is a file."""
        self.is_over = False
        self.is_listing = wanted is None
        self._pending: list[str] | None = None if wanted is None else list(wanted)
        """The files that were not read yet; None: they are not known."""

    def begin(self, hanging: Collection[str]) -> tuple[str, ...] | None:
        """Begin with a fresh worker.

        Args:
            hanging: files that are left out.
        Returns: the files to read; None: list the source first.
        """
        self.reached = False
        if self._pending is None:
            return None
        self._pending = [name for name in self._pending if name not in hanging]
        return tuple(self._pending)

    def list(self, names: Collection[str], hanging: Collection[str]) -> None:
        """Take in what the source was listed to hold, in the order of reading."""
        self._pending = [name for name in names if name not in hanging]

    def pass_by(self, name: str) -> None:
        """Take in that a file was read."""
        if self._pending and self._pending[0] == name:
            self._pending.pop(0)

    def lose(self) -> str | None:
        """Take in that the worker hangs. The scan goes on behind the file that caught it, if that is known.

        Returns: the file; None: the source itself gives no answer, and the scan is over.
        """
        stuck = self._pending.pop(0) if self._pending and self.reached else None
        self.is_over = stuck is None or not self._pending
        return stuck
