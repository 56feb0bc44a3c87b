"""The disks by whose fault copies failed: other disks go first for a while. No I/O."""

from collections.abc import Callable, Iterable, Mapping

_SHUNNED_S = 600.0
"""For so long a disk comes last, or until a copy to it succeeds."""


class Shunned:
    """Remembers cache directories.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._until: dict[str, float] = {}

    def add(self, cache_dir: str) -> None:
        """A copy to it failed, or hangs, by the fault of its disk."""
        self._until[cache_dir] = self._monotonic() + _SHUNNED_S

    def forgive(self, cache_dirs: Iterable[str]) -> None:
        """Copies to them succeed, or another disk may be there by now."""
        for cache_dir in cache_dirs:
            self._until.pop(cache_dir, None)

    def find(self) -> Mapping[str, float]:
        """Tell which come last now. Returns: cache directory -> until when, in monotonic seconds."""
        now = self._monotonic()
        self._until = {cache_dir: until for cache_dir, until in self._until.items() if until > now}
        return self._until
