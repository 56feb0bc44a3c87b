"""A mounted directory as an origin: an image is a regular file in it, with its manifest beside it.

A generation of an image is the file's size, its mtime, and what is in it: what the manifest says, or, without one, the
file's first 2 KiB, where every image has the time and the layout that it was made with. Neither the device nor the
inode counts: network file systems get another device number at each mount, and some file systems invent inodes (FUSE,
object store gateways).
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scratch_slurm.domain.about import NOTHING_SAID
from scratch_slurm.domain.access import distrust_directory, distrust_file
from scratch_slurm.domain.errors import ImageError, ScratchError, SourceError
from scratch_slurm.domain.manifest import MANIFEST_LIMIT_BYTES, Manifest, Promise, is_manifest, parse_manifest
from scratch_slurm.domain.model import Generation, Location, Permissions, SkippedImage, SourceImage
from scratch_slurm.domain.names import MANIFEST_SUFFIX, parse_image_name
from scratch_slurm.node.origins.imagefile import (
    HEAD_BYTES,
    check_image_head,
    digest_ends,
    make_generation,
    open_image,
    open_regular,
    read_head,
    read_permissions,
)
from scratch_slurm.node.origins.interface import Entry, Mountable

if TYPE_CHECKING:
    from scratch_slurm.node.origins.filesupplier import FileSupplier

_TRIES = 3


@dataclass(frozen=True)
class Trust:
    """Who may have written what root mounts."""

    directory: Permissions
    """Of the source."""
    owners: tuple[int, ...]
    """Users whose images are trusted beside root's."""


ROOT_ALONE = Trust(Permissions(), ())


class DirectoryOrigin:
    """Images as files of one directory; an `Origin`.

    Args:
        owners: users that are trusted beside root; none: whoever owns the directory.
        trust: as long as `reach` has not looked.
    """

    def __init__(self, source_dir: Path, owners: tuple[int, ...] = (), *, trust: Trust = ROOT_ALONE) -> None:
        self._dir = source_dir
        self._owners = owners
        self._trust = trust

    def reach(self) -> None:
        try:
            directory = read_permissions(self._dir.stat())
        except OSError as exc:
            raise SourceError(f"{self._dir}: cannot list the source: {exc.strerror}") from exc
        trust = Trust(directory, self._owners or (directory.uid,))
        reason = distrust_directory(directory, trust.owners)
        if reason:
            raise SourceError(f"{self._dir}: {reason}")
        self._trust = trust

    def list(self) -> list[str]:
        """List the image files; other files, hidden ones among them, are none of our business."""
        try:
            names = [path.name for path in self._dir.iterdir()]
        except OSError as exc:
            raise SourceError(f"{self._dir}: cannot list the source: {exc.strerror}") from exc
        return sorted(name for name in names if parse_image_name(name))

    def read(self, file_names: Sequence[str], stamps: dict[str, str]) -> Iterator[Entry | None]:
        for file_name in file_names:
            yield _read_entry(self._dir, file_name, stamps.get(file_name), self._trust)

    def open_supplier(self, image: SourceImage) -> "FileSupplier":
        # Only copies need it, and the modules below it.
        from scratch_slurm.node.origins.filesupplier import FileSupplier

        manifest = self._dir / (image.dataset + MANIFEST_SUFFIX)
        return FileSupplier.open(self._path(image), image.generation, manifest=manifest)

    def open_mountable(self, image: SourceImage) -> Mountable:
        return open_file(self._path(image), image.generation)

    def _path(self, image: SourceImage) -> Path:
        """Raises: ImageError: the key is no name of an image file, and might lead out of the directory."""
        if parse_image_name(image.at.key) is None:
            raise ImageError(f"{self._dir}: {image.at.key!r} is no name of an image file")
        return self._dir / image.at.key


def open_file(path: Path, planned: Generation) -> Mountable:
    """Open an image file that must be this generation; raises as `Origin.open_mountable` does."""
    try:
        descriptor = open_image(path)
    except OSError as exc:
        raise ScratchError(f"{path}: cannot open: {exc.strerror}") from exc
    except ImageError as exc:
        raise ImageError(f"{path}: {exc.message}") from exc
    try:
        status = os.fstat(descriptor)
        head = b"" if planned.content_id else read_head(descriptor)
        if make_generation(status, head, planned.content_id) != planned:
            raise ImageError(f"{path}: is another image now: {status.st_size} bytes, planned {planned.size_bytes}")
        return Mountable(descriptor, read_permissions(status))
    except BaseException as exc:
        os.close(descriptor)
        if isinstance(exc, OSError):
            raise ScratchError(f"{path}: cannot read: {exc.strerror}") from exc
        raise


def _read_entry(
    source_dir: Path, file_name: str, old_stamp: str | None, trust: Trust, tries: int = _TRIES
) -> Entry | None:
    parsed = parse_image_name(file_name)
    if parsed is None:
        return None
    dataset, fs_type = parsed
    path = source_dir / file_name
    manifest_path = source_dir / (dataset + MANIFEST_SUFFIX)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as exc:
        return _skipped(file_name, "", f"cannot stat: {exc.strerror}")
    permissions = read_permissions(status)
    stamp = f"{_stamp(status)} {_manifest_stamp(manifest_path)} {trust.directory.gid}:{trust.directory.mode}"
    stamp += "".join(f":{owner}" for owner in trust.owners)
    if stamp == old_stamp:
        return Entry(file_name, stamp)
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        return _skipped(file_name, stamp, f"is {kind}", permissions)
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            permissions = read_permissions(status)
            _check_trust(permissions, trust)
            head = file.read(HEAD_BYTES)
            check_image_head(head, fs_type, status.st_size)
            manifest, promise, note = _read_manifest(manifest_path, file.fileno(), status.st_size, trust)
    except OSError as exc:
        return _skipped(file_name, "", f"cannot read: {exc.strerror}", permissions)
    except ImageError as exc:
        if tries > 1 and _is_replaced(path, status):  # between a look at the one and at the other
            return _read_entry(source_dir, file_name, None, trust, tries - 1)
        return _skipped(file_name, stamp, exc.message, permissions)
    generation = make_generation(status, head, promise.blake3 if promise else None)
    about = manifest.about if manifest else NOTHING_SAID
    image = SourceImage(dataset, Location(str(source_dir), file_name), generation, fs_type, permissions, about)
    return Entry(file_name, stamp, image=image, note=note)


def _is_replaced(path: Path, seen: os.stat_result) -> bool:
    try:
        return not os.path.samestat(path.lstat(), seen)
    except OSError:
        return False


def _check_trust(permissions: Permissions, trust: Trust) -> None:
    reason = distrust_file(permissions, trust.directory, trust.owners)
    if reason:
        raise ImageError(reason)


def _skipped(file_name: str, stamp: str, reason: str, permissions: Permissions | None = None) -> Entry:
    return Entry(file_name, stamp, skipped=SkippedImage(file_name, reason, permissions))


def _stamp(status: os.stat_result) -> str:
    return ":".join(
        str(each)
        for each in (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode, status.st_uid, status.st_gid)
    )


def _manifest_stamp(path: Path) -> str:
    try:
        return _stamp(path.lstat())
    except OSError:
        return "-"


def _read_manifest(
    path: Path, image: int, size_bytes: int, trust: Trust
) -> tuple[Manifest | None, Promise | None, str]:
    """Read the manifest beside an open image, and what it promises of it.

    A stranger's file, or one that is no manifest, is not obeyed.

    Returns: both, None where there is no manifest; and what is odd about it.
    Raises: OSError; ImageError: it is ours, and no good, or of another image.
    """
    try:
        with open_regular(path) as file:
            stranger = distrust_file(read_permissions(os.fstat(file.fileno())), trust.directory, trust.owners)
            text = file.read(MANIFEST_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None, None, ""
    except ImageError as exc:
        return None, None, f"{path.name} {exc.message} and is taken for no manifest"
    if stranger:
        return None, None, f"{path.name} {stranger}; it is taken for no manifest"
    if not is_manifest(text):
        return None, None, f"{path.name} has not the keys of a manifest (size_bytes and blake3) and is taken for none"
    manifest = parse_manifest(text, path.name)
    promise = manifest.find_promise(size_bytes, lambda: digest_ends(image, size_bytes))
    if promise is not None:
        return manifest, promise, ""
    if manifest.size_bytes != size_bytes:
        raise ImageError(f"its manifest {path.name} is for {manifest.size_bytes} bytes, the image has {size_bytes}")
    raise ImageError(f"its manifest {path.name} is of another image: not with these first and last bytes")
