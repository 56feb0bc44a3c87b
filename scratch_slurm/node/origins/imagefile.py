"""An image as a file: what is at its two ends, and which generation an open one is."""

import contextlib
import errno
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from scratch_slurm.domain.errors import ImageError
from scratch_slurm.domain.model import Generation, Permissions

HEAD_BYTES = 2048
_END_BYTES = 64 * 1024
_SECTOR_BYTES = 512


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file without waiting for the other end of a FIFO, or following a link out of the source.

    Raises: OSError; ImageError: not a regular file.
    """
    with open(open_image(path), "rb") as file:
        yield file


def open_image(path: Path) -> int:
    """Open a file as above; returns its descriptor. Raises: OSError; ImageError: not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise ImageError("is a symbolic link") from exc
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageError("is not a regular file")
    os.set_blocking(descriptor, True)
    return descriptor


def read_permissions(status: os.stat_result) -> Permissions:
    """Give owner, group and mode of a file."""
    return Permissions(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


def make_generation(status: os.stat_result, head: bytes, content_id: str | None) -> Generation:
    """Make the generation of an image file: its size, its mtime, and its manifest's content id or else its head.

    Args:
        head: the file's first HEAD_BYTES, or all of it if it is shorter.
    """
    size_bytes, mtime_ns = status.st_size, status.st_mtime_ns
    of_head = _short("head", size_bytes, mtime_ns, hashlib.blake2b(head, digest_size=16).hexdigest())
    of_inode = _short(status.st_ino, size_bytes, mtime_ns)  # as the releases before 0.2 had it
    if content_id is None:
        return Generation(of_head, size_bytes, None, (of_inode,))
    return Generation(_short(0, size_bytes, mtime_ns, content_id), size_bytes, content_id, (of_head, of_inode))


def read_head(descriptor: int) -> bytes:
    """Read an image's first bytes and not what follows them. Raises: OSError."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    head = os.pread(descriptor, HEAD_BYTES, 0)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NORMAL)
    return head


def _short(*parts: int | str) -> str:
    return hashlib.blake2b(":".join(str(part) for part in parts).encode(), digest_size=8).hexdigest()


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
