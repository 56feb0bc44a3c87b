"""What the daemon asks of its worker processes, and what they say back: one JSON object a line.

A request is answered by any number of lines that show progress, and one last line: `Done` or `Failed`.
"""

import msgspec

from scratch_slurm.domain.backing import Backing
from scratch_slurm.domain.model import CachedImage, Permissions, SkippedImage, SourceImage
from scratch_slurm.node.staging.cache import CacheContents


class Request(msgspec.Struct, frozen=True, tag=True):
    """Base of all requests."""


class Scan(Request, frozen=True):
    """List the source, or read only `file_names`.

    Answered by a `Reached`, a `Listed` (of a listing), then a `Scanned` for each file in order.
    """

    origin: str
    """The name of the origin, as in a `Location`."""
    file_names: tuple[str, ...] | None
    leave_out: tuple[str, ...]
    """Files that hang: listed, but not touched."""
    stamps: dict[str, str]
    owners: tuple[str | int, ...] = ()
    """Users whose images are trusted beside root's, by name or number; none: whoever owns the source."""


class MountImage(Request, frozen=True):
    """Bind a loop device to an image and mount it, or put it in the place of what is mounted there.

    Answered by a `Root`. Failed as DeniedError: the mount would let in people who may not read the image.
    """

    image: SourceImage
    backing: Backing
    """Of that image."""
    mount_point: str
    tag: str
    replace: bool
    ledger_path: str = ""
    """What is mounted is replaced only if nobody pins it by then; empty: whoever pins."""
    despite: tuple[str, ...] = ()
    """Holders whose pins do not keep it."""


class UncoverMount(Request, frozen=True):
    """Take the mount on top away, so that the one beneath it, which must be well, is seen; pins as above."""

    mount_point: str
    device: str
    """That of the mount beneath."""
    ledger_path: str = ""
    despite: tuple[str, ...] = ()


class UnmountImage(Request, frozen=True):
    """Take all mounts of ours off a mount point, and remove it; pins as above."""

    mount_point: str
    ledger_path: str = ""
    despite: tuple[str, ...] = ()


class SwitchBacking(Request, frozen=True):
    """Retarget a device."""

    device: str
    backing: Backing


class ReadTag(Request, frozen=True):
    """Read a device's tag, which may block with its backing; answered by `Tag`."""

    device: str
    mount_point: str = ""
    """Where it is mounted: for the permissions of its root directory. Empty: they are not asked for."""


class ProbeMount(Request, frozen=True):
    """Look at a mounted image, and at the cached copy below it.

    Failed as ImageError: the mount answers with an I/O error. As DiskError: the copy itself cannot be read.
    """

    device: str
    mount_point: str
    copy_path: str
    """The cached image that the device reads; empty: it reads the source."""


class CopyImage(Request, frozen=True):
    """Copy an image from the source to a staging path; answered by `Copied` now and then."""

    image: SourceImage
    staging_path: str
    readers: int
    bandwidth_bytes_per_s: int | None


Identity = tuple[tuple[int, int], tuple[int, int]]
"""Device and inode of the cache directory and of its staging directory."""


class LookAtCache(Request, frozen=True):
    """Read the cache directory; answered by a `CacheSeen`."""

    cache_dir: str
    prepared: Identity | None
    """What was prepared last; None: nothing."""
    cache_mount: str = ""
    """Where the cache's disk must be mounted; empty: what fstab and systemd's mount units say."""
    any_file_system: bool = False
    """It may lie on any."""


class PublishCopy(Request, frozen=True):
    """Let a whole copy be served from the cache."""

    cache_dir: str
    dataset: str
    generation_id: str


class DropPartial(Request, frozen=True):
    """Delete a copy that is not whole."""

    cache_dir: str
    dataset: str
    generation_id: str


class RetireImage(Request, frozen=True):
    """Take a cached image out of service. Failed as DiskError: it is served as before."""

    cache_dir: str
    image: CachedImage


class RestoreImage(Request, frozen=True):
    """Let a retired image be served again, if there is one."""

    cache_dir: str
    image: CachedImage


class DiscardImage(Request, frozen=True):
    """Delete a retired image."""

    cache_dir: str
    image: CachedImage


class ReadGroups(Request, frozen=True):
    """Ask the name service for a user's groups; answered by `Groups`."""

    uid: int


class Line(msgspec.Struct, frozen=True, tag=True):
    """Base of all lines that come back."""


class Reached(Line, frozen=True):
    """The source's directory has been looked at: what hangs from here on is one file of it."""


class Listed(Line, frozen=True):
    file_names: tuple[str, ...]


class Scanned(Line, frozen=True):
    """One file: an image, a skipped one, unchanged since its stamp (neither), or no longer there."""

    file_name: str
    there: bool
    stamp: str = ""
    image: SourceImage | None = None
    skipped: SkippedImage | None = None
    note: str = ""
    """What is odd about the file and keeps nobody from serving it."""


class Tag(Line, frozen=True):
    text: str
    root: Permissions | None = None
    """Of the mounted root directory; None: not asked for, or not mounted any more."""


class Root(Line, frozen=True):
    """The root directory of the image that is being mounted."""

    permissions: Permissions


class Groups(Line, frozen=True):
    """A user's primary and supplementary groups."""

    gids: tuple[int, ...]


class CacheSeen(Line, frozen=True):
    """What the cache directory holds: nothing where it cannot be used, and why."""

    contents: CacheContents
    prepared: Identity | None
    problem: str = ""
    warning: str = ""
    """Why it had better lie elsewhere; told when it was prepared."""


class Copied(Line, frozen=True):
    """How far a copy is. `phase` is resuming, copying or verifying."""

    bytes_done: int
    phase: str


class Done(Line, frozen=True):
    pass


class Failed(Line, frozen=True):
    """An error of the tree in domain.errors, by class name."""

    error: str
    message: str
    hint: str | None = None


OnCache = PublishCopy | DropPartial | RetireImage | RestoreImage | DiscardImage
OnImages = Scan | MountImage | UncoverMount | UnmountImage | SwitchBacking | ReadTag | ProbeMount | CopyImage
AnyRequest = OnImages | OnCache | LookAtCache | ReadGroups
AnyLine = Reached | Listed | CacheSeen | Scanned | Tag | Root | Groups | Copied | Done | Failed
