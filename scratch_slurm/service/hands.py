"""What the rounds can do to their node, and see of it: all that may fail or hang, and nothing that decides.

`WorkerHands` (`worker_hands`) is the real one; `tests/kit/fake_hands.py` is a node in memory. Both pass
`tests/component/test_hands_contract.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from scratch_slurm.domain.actions import Despite
from scratch_slurm.domain.backing import Backing
from scratch_slurm.domain.model import CachedImage, Permissions, Pin, SourceImage
from scratch_slurm.service.events import Event
from scratch_slurm.service.observe import DiskReading, KernelReading


class Tag(NamedTuple):
    """What a device tells of itself."""

    generation_id: str | None
    """Of the image that it serves; None: the device is not ours."""
    root: Permissions | None
    """Of the mounted root directory; None: not asked for, or not mounted any more."""


class Hands(Protocol):
    """The verbs. Each names its dataset, and one at most is under way for a dataset at a time: the rounds see to that.

    All raise ScratchError when it was not done; DaemonError or SourceError also when no answer came in time, and that
    only once the kernel has let go of it. Until then `Hangs` was told. Cancelled, a verb ends before it is cut off for
    good; what is there then is whole or nothing.
    """

    tell: Callable[[Event], None]
    """Called with what is learned meanwhile: `Hangs` and `Answers`, `Progress` of copies, `Gate` of mounts."""

    # What there is.

    async def look_at_kernel(self) -> KernelReading:
        """See mounts, devices and their counters. Raises: ScratchError, OSError: the kernel does not tell."""

    async def look_at_disks(self) -> tuple[DiskReading, ...]:
        """See what the cache directories hold; what is wrong with one is in the answer."""

    async def identify(self, dataset: str, device: str, *, mounted: bool) -> Tag:
        """Read a device's tag.

        Args:
            mounted: it is what readers meet: its root directory is looked at too.
        """

    async def probe(self, dataset: str, device: str, copy_path: str) -> None:
        """Look through a mount, and at the cached copy below it.

        Args:
            copy_path: empty: it reads the source.
        Raises: ImageError: the mount answers with an I/O error. DiskError: the copy cannot be read.
        """

    async def groups_of(self, uid: int) -> frozenset[int]:
        """Ask the name service for a user's groups. Raises: NotFoundError: it knows no such user."""

    # Mounts.

    async def show(self, image: SourceImage, backing: Backing, *, replace: bool, despite: Despite = None) -> None:
        """Mount an image, or put it in the place of what is mounted; tells its `Gate` before anybody sees it.

        Args:
            backing: what its device is to read: the image in the source, or a copy of it.
            despite: what is mounted stays if anybody else than these pins the dataset by then; None: it is replaced.
        Raises: DeniedError: people would get in who may not read the image. PinnedError. ImageError: the file in the
            source is another one now, or it cannot be mounted. DiskError: the copy cannot be read.
        """

    async def switch(self, dataset: str, device: str, backing: Backing) -> None:
        """Let a device read another file with the same bytes, under its readers.

        Raises: RetargetError: the kernel refuses. ImageError: the source has another one. DiskError: no copy.
        """

    async def uncover(self, dataset: str, device: str, *, despite: Despite) -> None:
        """Take the mount on top away, so that the one on `device` beneath it is seen.

        Args:
            despite: as of `show`.
        Raises: PinnedError.
        """

    async def unmount(self, dataset: str, *, despite: Despite) -> None:
        """Take all mounts of ours off a dataset's mount point; `despite` as of `show`. Raises: PinnedError."""

    # The cache.

    async def copy(self, image: SourceImage, cache_dir: str) -> None:
        """Copy an image into a cache's staging directory, whole and verified; goes on where an earlier copy ended.

        Raises: ImageError: the file is another one now. DigestError: it is not what its manifest tells of. SourceError,
            NoSpaceError, DiskError.
        """

    async def publish(self, dataset: str, generation_id: str, cache_dir: str) -> None:
        """Let a whole copy be served."""

    async def drop(self, dataset: str, generation_id: str, cache_dir: str) -> None:
        """Delete a copy that is not whole."""

    async def retire(self, image: CachedImage) -> None:
        """Take a cached image out of service; whoever reads it reads on."""

    async def restore(self, image: CachedImage) -> None:
        """Let a retired image be served again, if there is one."""

    async def discard(self, image: CachedImage) -> None:
        """Delete a retired image."""

    def close(self) -> None:
        """Leave what hangs to the kernel."""


class LedgerAccess(Protocol):
    """What the rounds ask of the ledger. `LedgerSide` is the real one, `FakeLedger` one in memory."""

    @property
    def problem(self) -> str:
        """Why the ledger cannot be read, so that nobody knows who pins what; empty when it can."""

    async def look(self) -> tuple[Pin, ...]:
        """Read the pins; where they cannot be read, those that were read last."""

    async def pins(self) -> Sequence[Pin]:
        """Read the pins as they are. Raises: LedgerError: they cannot be read."""

    async def release(
        self, holder: str, datasets: Iterable[str] | None, *, event: str, detail: str, owner: int | None = None
    ) -> tuple[str, ...]:
        """Release pins, see `Ledger.release`; returns their datasets. Raises: LedgerError, DeniedError."""

    async def record(self, event: str, *, dataset: str, detail: str) -> None:
        """Remember an event; never fails."""
