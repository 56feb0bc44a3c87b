"""The values that cross between modules: what is observed, and what is wanted."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from scratch_slurm.domain.about import NOTHING_SAID, About
from scratch_slurm.domain.pins import ADMINISTRATOR as ADMINISTRATOR
from scratch_slurm.domain.pins import Pin as Pin
from scratch_slurm.domain.pins import job_holder as job_holder


class Backing(enum.StrEnum):
    """Which file a dataset's loop device reads now."""

    SOURCE = "source"
    CACHE = "cache"


@dataclass(frozen=True)
class Generation:
    """One version of an image, as its origin tells it: others see whether two are equal, and nothing more."""

    id: str
    """Sixteen hexadecimal digits that stand for it in file names and device tags."""
    size_bytes: int
    content_id: str | None = None
    """BLAKE3 of the whole image in hexadecimal, which its manifest promises; None without one."""
    former_ids: tuple[str, ...] = field(default=(), compare=False)
    """What the same bytes were called before they had a manifest, or by an earlier release: copies and mounts that were
    made then are of this generation."""


@dataclass(frozen=True)
class Permissions:
    """Owner, group and mode of a file or directory, as stat(2) has them; access control lists are not looked at."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o644
    """The permission bits alone, 0 to 0o7777."""

    def __str__(self) -> str:
        return f"mode {self.mode:04o}, owner {self.uid}, group {self.gid}"


@dataclass(frozen=True)
class Location:
    """Where an image lies. Only its origin makes a path, or a request, of it."""

    origin: str
    """The origin's name, which `origins.kinds` understands: of a mounted directory its path."""
    key: str
    """The image's name in it, which the origin understands: in a directory a file name."""

    def __str__(self) -> str:
        """Say it to people; nothing is opened by this text."""
        return f"{self.origin}/{self.key}"


@dataclass(frozen=True)
class SourceImage:
    """An image in the source."""

    dataset: str
    at: Location
    generation: Generation
    fs_type: str
    permissions: Permissions = Permissions()
    """Of the image's file: who may read the dataset."""
    about: About = NOTHING_SAID
    """What its manifest says of it, for people."""

    @property
    def size_bytes(self) -> int:
        return self.generation.size_bytes


@dataclass(frozen=True)
class SkippedImage:
    """A file in the source that is not served, and why."""

    file_name: str
    reason: str
    permissions: Permissions | None = field(default=None, compare=False)
    """Of the file; None: they are not known."""


@dataclass(frozen=True)
class Catalog:
    """What the source held when it was last listed."""

    images: Mapping[str, SourceImage]
    skipped: Mapping[str, SkippedImage]
    """By dataset name where the file name gives one, else by file name."""
    complete: bool = True
    """False until the source has been listed once: what is missing may be there all the same."""
    doubt: str = ""
    """Why it is not complete, or why what came since is not in it, in words."""
    awaited: bool = False
    """The first listing is under way: what is not known yet may be in a moment."""
    recalled: Mapping[str, SourceImage] = field(default_factory=dict)
    """What an earlier listing showed of datasets that the source cannot tell of now: whole copies of it are served. It
    says nothing of what the source holds."""
    revoked: Mapping[str, str] = field(default_factory=dict)
    """Dataset -> why its mount must go at once: it lets in people who may not read the image."""


class CachedImage(msgspec.Struct, frozen=True):
    """A whole, verified copy in the cache."""

    dataset: str
    generation_id: str
    path: str
    size_bytes: int
    """Bytes that the file occupies on disk, at least its length."""
    disk: str = ""
    """The cache directory that it lies in; empty: the only one."""
    bad: str = ""
    """Why it cannot be read or mounted, as far as was seen; empty: it is well."""


class MountedImage(msgspec.Struct, frozen=True):
    """A dataset's mount and the loop device below it, as the kernel has them."""

    dataset: str
    device: str
    generation_id: str | None
    """None: the device's tag is not ours or cannot be read; the mount is replaced when nobody pins it."""
    copy_path: str = ""
    """The file in a cache directory that its device reads; empty: it reads the source."""
    disk: str = ""
    """That cache directory, of now or of before; empty: it reads the source."""

    @property
    def backing(self) -> Backing:
        return Backing.CACHE if self.copy_path else Backing.SOURCE

    def reads(self, copy: CachedImage) -> bool:
        """Whether its device reads this very copy."""
        return self.copy_path == copy.path


@dataclass(frozen=True)
class Space:
    """The room in the cache, in bytes.

    `used_bytes` counts cached images, reserved staging files, and deleted images that a loop device still holds.
    """

    capacity_bytes: int
    reserve_bytes: int
    used_bytes: int
    free_bytes: int
    """Free on the file system now, for everybody."""
    whole_bytes: int = 0
    """Size of the file system."""

    @property
    def room_bytes(self) -> int:
        """How much more may be reserved now: within the capacity, and leaving the reserve free."""
        return min(self.capacity_bytes - self.used_bytes, self.free_bytes - self.reserve_bytes)
