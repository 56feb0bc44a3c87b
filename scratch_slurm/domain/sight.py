"""What a round sees of one dataset, and what is learned of it by asking. Values only."""

from collections.abc import Mapping

import msgspec

from scratch_slurm.domain.actions import StagedImage
from scratch_slurm.domain.model import Backing, CachedImage, Permissions, SkippedImage, SourceImage

MountKey = tuple[int, str]
"""(mount id, device). The kernel gives both out again once a mount is gone."""


class SeenMount(msgspec.Struct, frozen=True):
    """A mount on a dataset's mount point."""

    dataset: str
    key: MountKey | None
    """None: not on a loop device, so not ours."""
    copy_path: str = ""
    disk: str = ""
    """Both as of a `MountedImage`."""

    @property
    def backing(self) -> Backing:
        return Backing.CACHE if self.copy_path else Backing.SOURCE

    @property
    def device(self) -> str | None:
        """The loop device."""
        return self.key[1] if self.key else None


class Seen(msgspec.Struct, frozen=True):
    """One dataset in one round: what the source, the kernel and the disks showed."""

    image: SourceImage | None = None
    recalled: SourceImage | None = None
    skipped: SkippedImage | None = None
    is_listed: bool = True
    top: SeenMount | None = None
    """What its readers meet."""
    beneath: SeenMount | None = None
    """What lies directly beneath that."""
    copies: tuple[CachedImage, ...] = ()
    leftovers: tuple[StagedImage, ...] = ()
    """Copies that are not whole, as the disks have them."""
    has_unseen_copies: bool = False
    """A disk that gives no answer now had a copy of it."""
    is_copy_unseen: bool = False
    """What readers meet may be a copy on such a disk."""
    are_claims_known: bool = True


class Learned(msgspec.Struct, frozen=True):
    """What was learned of one dataset. Each part holds as long as what it is about is there."""

    tags: Mapping[MountKey, str | None] = {}
    """Mount -> generation id on its device's tag; None: not ours."""
    faults: Mapping[MountKey, str] = {}
    """Mount that answers with an I/O error -> what it answered."""
    cut_off: Mapping[MountKey, str] = {}
    """Mount whose backing can never answer again -> why; what is in memory of it looks well."""
    gates: Mapping[str, Permissions] = {}
    """Generation id -> the root directory of its mount."""
    bad_copies: Mapping[str, str] = {}
    """Path of a copy that cannot be read or mounted -> why; it goes."""
