"""Give an erofs image that mkfs.erofs(1) has just written the owners, modes and times of a dataset's image.

mkfs.erofs packs modes as they are in the directory, gives the image a random id and the time of its making, and its
ways to fix these change with its versions. So they are set in the image itself, before anybody sees it. Everything
that it holds is counted on the way.

Source: fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst of the kernel.
"""

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from scratch_slurm.domain.errors import ImageError
from scratch_slurm.domain.model import Permissions

_SUPER_AT = 1024
_SUPER_BYTES = 128
_MAGIC = 0xE0F5E1E2
_CHECKSUM = 0x1
"""The superblock has a checksum."""
_KNOWN_INCOMPATIBLE = 0x7F
"""Features that change nothing here: from 0x80 on block addresses and directories look different."""

_CHECKSUM_AT, _EPOCH_AT, _UUID_AT, _BUILD_TIME_AT = 4, 24, 48, 108
_SLOT_BYTES = 32
_INODE_BYTES = 64
_PLAIN, _INLINE = 0, 2
_ENTRY = struct.Struct("<QHBx")


@dataclass(frozen=True)
class Contents:
    """What an image holds."""

    entries: int
    files: int
    """Regular files; a file of two names counts twice."""
    content_bytes: int


class _Inode(NamedTuple):
    """An inode of the 64-byte form, without what is not looked at."""

    layout: int
    attribute_words: int
    mode: int
    size_bytes: int
    start_block: int
    uid: int
    gid: int
    modified_at: int
    modified_ns: int


_INODE = struct.Struct("<HHH2xQI4xIIqI20x")


def settle(fd: int, root: Permissions, *, newest_at: float, latest_at: int | None) -> Contents:
    """Set the owner, group and mode of the root directory, open everything else to all, and make the image repeatable.

    Args:
        fd: the image, open for reading and writing; nobody else writes in it.
        newest_at: the newest time in the directory, epoch seconds: the image's own.
        latest_at: later times become this one, epoch seconds; None: all stay.
    Returns: what the image holds, but for the root directory itself.
    Raises: ImageError: it is not what mkfs.erofs writes. OSError: it cannot be read or written.
    """
    try:
        image = _Image(fd)
        image.check_checksum()
        contents = image.settle_inodes(root, latest_at)
        image.settle_superblock(int(newest_at) if latest_at is None else min(int(newest_at), latest_at))
    except (struct.error, ValueError) as exc:
        raise ImageError(f"mkfs.erofs wrote an image that is not whole: {exc}") from exc
    return contents


class _Image:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        head = os.pread(fd, _SUPER_BYTES, _SUPER_AT)
        magic, _, self._features, block_bits, _, root = struct.unpack_from("<IIIBBH", head)
        (metadata_block,) = struct.unpack_from("<I", head, 40)
        (incompatible,) = struct.unpack_from("<I", head, 80)
        if magic != _MAGIC or incompatible & ~_KNOWN_INCOMPATIBLE or not 9 <= block_bits <= 16:
            raise ImageError(f"mkfs.erofs wrote an image of an unknown form: {head[:16].hex()}, {incompatible:#x}")
        self._block_bytes = 1 << block_bits
        self._directory_block_bytes = self._block_bytes << head[90]
        self._metadata_at: int = metadata_block << block_bits
        self._root = root
        self._size_bytes = os.fstat(fd).st_size

    def check_checksum(self) -> None:
        """See that the checksum is made as this module makes it."""
        if self._features & _CHECKSUM:
            block = self._read_block()
            (told,) = struct.unpack_from("<I", block, _CHECKSUM_AT)
            if told != checksum(block):
                raise ImageError(f"mkfs.erofs wrote an image with an unknown checksum: {told:#x}")

    def settle_superblock(self, at: int) -> None:
        """Set the image's time, and no id: equal ones on many devices would be taken for one device's."""
        block = self._read_block()
        struct.pack_into("<qI", block, _EPOCH_AT, at, 0)
        struct.pack_into("16x", block, _UUID_AT)
        struct.pack_into("<I", block, _BUILD_TIME_AT, 0)
        if self._features & _CHECKSUM:
            struct.pack_into("<I", block, _CHECKSUM_AT, checksum(block))
        os.pwrite(self.fd, block, _SUPER_AT)

    def _read_block(self) -> bytearray:
        """Read the superblock and what follows in its block: what the checksum is of."""
        return bytearray(os.pread(self.fd, max(self._block_bytes - _SUPER_AT, _SUPER_BYTES), _SUPER_AT))

    def settle_inodes(self, root: Permissions, latest_at: int | None) -> Contents:
        """Go through all directories from the root."""
        pending, seen = [self._root], {self._root}
        self._settle(self._root, root, latest_at)
        entries = files = content_bytes = 0
        while pending:
            for number in self._list(pending.pop()):
                inode = self._settle(number, None, latest_at)
                entries += 1
                if stat.S_ISREG(inode.mode):
                    files += 1
                    content_bytes += inode.size_bytes
                elif stat.S_ISDIR(inode.mode):
                    if number in seen:
                        raise ImageError(f"mkfs.erofs wrote an image with directory {number} in two places")
                    seen.add(number)
                    pending.append(number)
        return Contents(entries, files, content_bytes)

    def _settle(self, number: int, root: Permissions | None, latest_at: int | None) -> _Inode:
        inode = self._read(number)
        mode = stat.S_IFMT(inode.mode) | root.mode if root else open_to_all(inode.mode)
        wanted = inode._replace(mode=mode, uid=root.uid if root else 0, gid=root.gid if root else 0)
        if latest_at is not None and inode.modified_at >= latest_at:
            wanted = wanted._replace(modified_at=latest_at, modified_ns=0)
        if wanted != inode:
            at = self._at(number)
            os.pwrite(self.fd, struct.pack("<H", wanted.mode), at + 4)
            os.pwrite(self.fd, struct.pack("<IIqI", *wanted[-4:]), at + 24)
        return inode

    def _at(self, number: int) -> int:
        return self._metadata_at + number * _SLOT_BYTES

    def _read(self, number: int) -> _Inode:
        if number * _SLOT_BYTES >= self._size_bytes:
            raise ImageError(f"mkfs.erofs wrote an image that is not whole: there is no inode {number}")
        form: int
        form, *fields = _INODE.unpack(os.pread(self.fd, _INODE_BYTES, self._at(number)))
        if not form & 1 or form >> 4:
            raise ImageError(f"mkfs.erofs wrote an image of an unknown form: inode {number} is {form:#x}")
        return _Inode(form >> 1 & 7, *fields)

    def _list(self, number: int) -> Iterator[int]:
        """List the inodes of a directory's entries, a file of two names twice."""
        data = self._read_directory(number)
        for start in range(0, len(data), self._directory_block_bytes):
            block = data[start : start + self._directory_block_bytes]
            _, names_at, _ = _ENTRY.unpack_from(block)
            starts = [_ENTRY.unpack_from(block, at)[1] for at in range(0, names_at, _ENTRY.size)]
            for place, (name_at, end) in enumerate(zip(starts, [*starts[1:], len(block)], strict=True)):
                name = block[name_at:end].rstrip(b"\0")
                if name not in (b".", b".."):
                    (inode,) = struct.unpack_from("<Q", block, place * _ENTRY.size)
                    yield inode

    def _read_directory(self, number: int) -> bytes:
        inode = self._read(number)
        fits = inode.size_bytes <= self._size_bytes
        if not fits or not stat.S_ISDIR(inode.mode) or inode.layout not in (_PLAIN, _INLINE):
            raise ImageError(f"mkfs.erofs wrote an image of an unknown form: directory {number} is {inode}")
        blocks = -(-inode.size_bytes // self._block_bytes)
        outside = inode.size_bytes if inode.layout == _PLAIN else max(0, blocks - 1) * self._block_bytes
        data = os.pread(self.fd, outside, inode.start_block * self._block_bytes)
        attributes_bytes = 12 + 4 * (inode.attribute_words - 1) if inode.attribute_words else 0
        tail_at = self._at(number) + _INODE_BYTES + attributes_bytes
        return data + os.pread(self.fd, inode.size_bytes - outside, tail_at)


def open_to_all(mode: int) -> int:
    """Give everybody the right to read, and to enter or execute what anybody may: `chmod a+rX,u-s,g-s,o-t`."""
    execute = 0o111 if stat.S_ISDIR(mode) or mode & 0o111 else 0
    return mode & ~0o7000 | 0o444 | execute


def checksum(block: bytes | bytearray) -> int:
    """Compute the checksum of a superblock's block, from the superblock on: CRC-32C, not inverted at the end.

    Source: erofs_superblock_csum_verify in fs/erofs/super.c of the kernel; RFC 3720, 12.1, for CRC-32C.
    """
    crc = 0xFFFFFFFF
    for place, byte in enumerate(block):
        crc = crc >> 8 ^ _TABLE[(crc ^ (0 if _CHECKSUM_AT <= place < _CHECKSUM_AT + 4 else byte)) & 0xFF]
    return crc


def _table_entry(byte: int) -> int:
    rest = byte
    for _ in range(8):
        rest = rest >> 1 ^ (0x82F63B78 if rest & 1 else 0)
    return rest


_TABLE = tuple(map(_table_entry, range(256)))
