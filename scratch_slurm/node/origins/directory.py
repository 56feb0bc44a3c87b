"""The source directory: which images it holds, read file by file.

Everything here touches the slow storage and may block for ever: call it only in a child process that can be killed.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scratch_slurm.domain.access import distrust_directory, distrust_file
from scratch_slurm.domain.errors import ImageError, SourceError
from scratch_slurm.domain.model import Generation, Permissions, SkippedImage, SourceImage
from scratch_slurm.domain.names import MANIFEST_SUFFIX, parse_image_name

MANIFEST_LIMIT_BYTES = 64 * 1024
_MANIFEST_KEYS = ("size_bytes", "blake3")
_END_BYTES = 64 * 1024
_HEAD_BYTES = 2048
_TRIES = 3
_SECTOR_BYTES = 512


@dataclass(frozen=True)
class Entry:
    """What one file of the source turned out to be."""

    file_name: str
    stamp: str
    """Changes whenever the image's or its manifest's metadata do; the next scan is given it back."""
    image: SourceImage | None = None
    skipped: SkippedImage | None = None
    """Neither: the file is as it was when it had this stamp."""
    note: str = ""
    """What is odd about the file and keeps nobody from serving it."""


@dataclass(frozen=True)
class Trust:
    """Who may have written what root mounts."""

    directory: Permissions
    """Of the source."""
    owners: tuple[int, ...]
    """Users whose images are trusted beside root's."""


ROOT_ALONE = Trust(Permissions(), ())


def read_trust(source_dir: Path, owners: Collection[int]) -> Trust:
    """See whether the source can be trusted at all.

    Args:
        owners: users that are trusted beside root; none: whoever owns the source.
    Raises: SourceError: others may put images into it, or it cannot be looked at.
    """
    try:
        directory = _permissions(source_dir.stat())
    except OSError as exc:
        raise SourceError(f"{source_dir}: cannot list the source: {exc.strerror}") from exc
    trust = Trust(directory, tuple(owners) or (directory.uid,))
    reason = distrust_directory(directory, trust.owners)
    if reason:
        raise SourceError(f"{source_dir}: {reason}")
    return trust


def list_source(source_dir: Path) -> list[str]:
    """List the image files of the source, sorted; other files, hidden ones among them, are none of our business.

    Raises: SourceError: the directory cannot be listed.
    """
    try:
        names = [path.name for path in source_dir.iterdir()]
    except OSError as exc:
        raise SourceError(f"{source_dir}: cannot list the source: {exc.strerror}") from exc
    return sorted(name for name in names if parse_image_name(name))


def read_entries(
    source_dir: Path, file_names: list[str], stamps: dict[str, str], trust: Trust = ROOT_ALONE
) -> Iterator[Entry | None]:
    """Read the named files one after the other; None stands for one that is not there.

    Args:
        stamps: file name -> stamp of the last scan; a file that still has it is not opened.
        trust: whose images are trusted; root's alone unless given.
    """
    for file_name in file_names:
        yield _read_entry(source_dir, file_name, stamps.get(file_name), trust)


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
    permissions = _permissions(status)
    stamp = f"{_stamp(status)} {_manifest_stamp(manifest_path)} {trust.directory.gid}:{trust.directory.mode}"
    stamp += "".join(f":{owner}" for owner in trust.owners)
    if stamp == old_stamp:
        return Entry(file_name, stamp)
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        return _skipped(file_name, stamp, f"is {kind}", permissions)
    try:
        with _open_regular(path, "") as file:
            status = os.fstat(file.fileno())
            permissions = _permissions(status)
            _check_trust(permissions, trust)
            check_image_head(file.read(_HEAD_BYTES), fs_type, status.st_size)
            manifest, note = _read_manifest(manifest_path, file.fileno(), status.st_size, trust)
    except OSError as exc:
        return _skipped(file_name, "", f"cannot read: {exc.strerror}", permissions)
    except ImageError as exc:
        if tries > 1 and _is_replaced(path, status):  # between a look at the one and at the other
            return _read_entry(source_dir, file_name, None, trust, tries - 1)
        return _skipped(file_name, stamp, exc.message, permissions)
    digest = manifest.digest if manifest else None
    generation = Generation.of(status.st_ino, status.st_size, status.st_mtime_ns, digest)
    image = SourceImage(dataset, str(path), generation, fs_type, permissions)
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


@contextlib.contextmanager
def _open_regular(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a file without waiting for the other end of a FIFO, or following a link out of the source.

    Raises: OSError; ImageError: not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise ImageError(f"{what}is a symbolic link") from exc
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageError(f"{what}is not a regular file")
    with open(descriptor, "rb") as file:
        yield file


def _skipped(file_name: str, stamp: str, reason: str, permissions: Permissions | None = None) -> Entry:
    return Entry(file_name, stamp, skipped=SkippedImage(file_name, reason, permissions))


def check_image_head(head: bytes, fs_type: str, size_bytes: int) -> None:
    """Check the superblock of an image.

    Args:
        head: the first 2048 bytes of the file, or all of it if it is shorter.
        fs_type: `squashfs` or `erofs`, as the file's suffix says.
        size_bytes: the length of the file.
    Raises: ImageError: not such a file system, or cut short.
    Source: Documentation/filesystems/squashfs.rst (magic 0x73717368, bytes_used at 40) and fs/erofs/erofs_fs.h
        (magic 0xE0F5E1E2 at 1024, block size shift at 12, 32-bit block count at 36) of the kernel.
    """
    whole_sectors_bytes = size_bytes // _SECTOR_BYTES * _SECTOR_BYTES
    if fs_type == "squashfs":
        if len(head) < 96 or head[:4] != b"hsqs":
            raise ImageError("is not a squashfs image: no magic number in its first bytes")
        (used_bytes,) = struct.unpack_from("<Q", head, 40)
    else:
        if len(head) < 1024 + 128 or head[1024:1028] != b"\xe2\xe1\xf5\xe0":
            raise ImageError("is not an erofs image: no magic number at byte 1024")
        used_bytes = struct.unpack_from("<I", head, 1024 + 36)[0] << min(head[1024 + 12], 16)
    if used_bytes > size_bytes:
        raise ImageError(f"is cut short: {size_bytes} bytes of {used_bytes}")
    if used_bytes > whole_sectors_bytes:
        raise ImageError(f"has {size_bytes} bytes, not a multiple of 512: its last block cannot be read")


def check_generation(descriptor: int, expected: Generation, path: str) -> Permissions:
    """Make sure that an open file is the generation that was planned with.

    Returns: what its permissions are now.
    Raises: ImageError: another file took its place, or it was rewritten.
    """
    status = os.fstat(descriptor)
    if not expected.is_of(status.st_ino, status.st_size, status.st_mtime_ns):
        raise ImageError(f"{path}: is another image now: {status.st_size} bytes, planned {expected.size_bytes}")
    return _permissions(status)


def _stamp(status: os.stat_result) -> str:
    return ":".join(
        str(each)
        for each in (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode, status.st_uid, status.st_gid)
    )


def _permissions(status: os.stat_result) -> Permissions:
    return Permissions(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


def _manifest_stamp(path: Path) -> str:
    try:
        return _stamp(path.lstat())
    except OSError:
        return "-"


@dataclass(frozen=True)
class ManifestEntry:
    """What a manifest promises of one image."""

    size_bytes: int
    digest: str
    """BLAKE3 of the whole image in hexadecimal."""
    ends: str | None = None
    """See `digest_ends`; manifests of earlier releases have none."""


def digest_ends(descriptor: int, size_bytes: int) -> str:
    """Digest an image's first and last 64 KiB: what tells it from another one of its size without reading it.

    Returns: BLAKE2b of 256 bits in hexadecimal, as `(head -c 65536 FILE; tail -c 65536 FILE) | b2sum -l 256` gives it.
    Raises: OSError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=32)
    for start in (0, max(0, size_bytes - _END_BYTES)):
        at, end = start, min(start + _END_BYTES, size_bytes)
        while at < end and (piece := os.pread(descriptor, end - at, at)):
            digest.update(piece)
            at += len(piece)
    return digest.hexdigest()


def _read_manifest(path: Path, image: int, size_bytes: int, trust: Trust) -> tuple[ManifestEntry | None, str]:
    """Read what the manifest beside an open image says of it.

    A stranger's file, or one that is no manifest, is not obeyed.

    Returns: what it promises, None where there is no manifest; and what is odd about it.
    Raises: OSError; ImageError: it is ours, and no good, or of another image.
    """
    try:
        with _open_regular(path, "") as file:
            stranger = distrust_file(_permissions(os.fstat(file.fileno())), trust.directory, trust.owners)
            text = file.read(MANIFEST_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None, ""
    except ImageError as exc:
        return None, f"{path.name} {exc.message} and is taken for no manifest"
    if stranger:
        return None, f"{path.name} {stranger}; it is taken for no manifest"
    if not is_manifest(text):
        return None, f"{path.name} has not the keys of a manifest (size_bytes and blake3) and is taken for none"
    entries = parse_manifest(text, path.name)
    entry = choose_entry(entries, image, size_bytes)
    if entry is None:
        if entries[0].size_bytes != size_bytes:
            raise ImageError(
                f"its manifest {path.name} is for {entries[0].size_bytes} bytes, the image has {size_bytes}"
            )
        raise ImageError(f"its manifest {path.name} is of another image: not with these first and last bytes")
    return entry, ""


def choose_entry(entries: tuple[ManifestEntry, ...], image: int, size_bytes: int) -> ManifestEntry | None:
    """Choose the entry of a manifest that belongs to an open image; None: it is of another image.

    Raises: OSError: the image cannot be read.
    """
    ends = None
    for entry in entries:
        if entry.size_bytes == size_bytes:
            ends = ends or (digest_ends(image, size_bytes) if entry.ends else None)
            if entry.ends in (None, ends):
                return entry
    return None


def is_manifest(text: bytes) -> bool:
    """Tell whether a file is a manifest of ours, by its keys; one that cannot be parsed is if it names both."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return all(f'"{key}"'.encode() in text for key in _MANIFEST_KEYS)
    return isinstance(body, dict) and all(key in body for key in _MANIFEST_KEYS)


def parse_manifest(text: bytes, name: str) -> tuple[ManifestEntry, ...]:
    """Parse a manifest: what it says of its own image, then of the one before it, whose place it is about to take.

    Args:
        name: the file's, for messages.
    Raises: ImageError: what it says of its own image is not of the form.
    """
    try:
        body = json.loads(text)
        own, former = _parse_entry(body, name), body.get("previous")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as exc:
        raise ImageError(f"its manifest {name} is not readable: needs size_bytes and blake3") from exc
    try:
        return own, *([_parse_entry(former, name)] if former is not None else [])
    except (ImageError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return (own,)


def _parse_entry(body: Any, name: str) -> ManifestEntry:
    digest, size_bytes, ends = str(body["blake3"]), int(body["size_bytes"]), body.get("ends_blake2b")
    if not _is_digest(digest):
        raise ImageError(f"its manifest {name} has no BLAKE3 digest of 64 hexadecimal digits")
    if ends is not None and not _is_digest(str(ends)):
        raise ImageError(f"its manifest {name} has in ends_blake2b no digest of 64 hexadecimal digits")
    return ManifestEntry(size_bytes, digest, ends and str(ends))


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
