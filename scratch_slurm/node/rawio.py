"""File system calls that Python does not wrap, for whoever moves whole images past the page cache.

It knows descriptors and byte ranges, not images; its errors are OSErrors.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

BLOCK_BYTES = 4096
"""Alignment that direct I/O asks for at most, of a buffer, an offset and a length."""

FUSE_TYPE = 0x65735546

_SYNC_FILE_RANGE_WAIT_BEFORE = 1
_SYNC_FILE_RANGE_WRITE = 2
_SYNC_FILE_RANGE_WAIT_AFTER = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
_libc.mmap.restype = ctypes.c_void_p
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def _call(function: Callable[..., int], *arguments: Any) -> int:
    while (result := function(*arguments)) == -1:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return result


def reserve_blocks(descriptor: int, size_bytes: int) -> None:
    """Give a file `size_bytes` of real blocks, keeping those it has.

    fallocate(2) and not posix_fallocate(3), which writes every block itself where the file system cannot reserve.

    Raises: OSError: ENOSPC, and then the blocks that were left over are the file's; EOPNOTSUPP.
    """
    _call(_libc.fallocate, descriptor, 0, 0, size_bytes)


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Begin to write dirty pages to the disk; does not wait for them, nor flush the disk's own cache."""
    _call(_libc.sync_file_range, descriptor, offset, length, _SYNC_FILE_RANGE_WRITE)


def drop_written(descriptor: int, offset: int, length: int) -> None:
    """Wait until a range is written and take it out of the page cache.

    Raises: OSError: a write failed. The kernel says so once only: who gets it must give the file up.
    """
    flags = _SYNC_FILE_RANGE_WAIT_BEFORE | _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT_AFTER
    _call(_libc.sync_file_range, descriptor, offset, length, flags)
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def file_system_type(descriptor: int) -> int:
    """Read the magic number of a file's file system, as in statfs(2)."""
    status = ctypes.create_string_buffer(256)
    _call(_libc.fstatfs, descriptor, status)
    return ctypes.c_long.from_buffer(status).value


def resident_map(descriptor: int, offset: int, length: int) -> bytes:
    """Tell which pages of a range are in the page cache: one byte a page, 0 or 1. `offset` is a page's start.

    mincore(2) and not cachestat(2), which is new in Linux 6.5. It reads nothing.
    """
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        _call(_libc.mincore, address, length, pages)
        return pages.raw.translate(_LOWEST_BIT)
    finally:
        _libc.munmap(address, length)


_LOWEST_BIT = bytes(number & 1 for number in range(256))


@contextlib.contextmanager
def _long_read_ahead(descriptor: int) -> Iterator[None]:
    """Let a FUSE file system have a read-ahead of 1 MiB for a moment, for what is asked of the descriptor meanwhile.

    The kernel allows 12 plain reads of a FUSE file system under way (max_background), so what a distant one delivers
    depends on their size: 256 KiB of the usual 128, and 1 MiB, which is the most that FUSE has, with this.
    Where it cannot be set, it stays as it is. A process that is killed between the two writes leaves it at 1 MiB.
    """
    device = os.fstat(descriptor).st_dev
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            if file_system_type(descriptor) == FUSE_TYPE:
                file = stack.enter_context(open(path, "r+b", buffering=0))
                # Else of two copies that begin the second would find, and put back, the first one's setting.
                fcntl.flock(file, fcntl.LOCK_EX)
                before = file.read()
                if int(before) < 1024:
                    stack.callback(os.pwrite, file.fileno(), before, 0)
                    os.pwrite(file.fileno(), b"1024", 0)
        yield


class ColdReader:
    """Reads of one descriptor that leave nothing in the page cache, and take nothing out of it.

    Direct I/O where the file system has it, but not on FUSE: there SIGKILL does not end a direct read that the
    server has taken and does not answer (fuse_direct_IO waits uninterruptibly), while it ends a plain one.
    RWF_DONTCACHE (Linux 6.14) is faster on a local disk, but its read-ahead leaves up to 3 % of a file behind, and
    without read-ahead it is slower than direct I/O.

    Elsewhere plain reads, after which the pages go that were not there before: those that others brought in stay, as a
    job may be reading the same file.

    Args:
        descriptor: open for reading; nobody else uses its open file, whose flags may change.
        direct: try direct I/O.
    """

    def __init__(self, descriptor: int, *, direct: bool = True) -> None:
        self.descriptor = descriptor
        self.direct = direct and self._set_direct()
        if not self.direct:
            # The first call sets the size of requests, to twice the file system's read-ahead, and the second keeps it
            # (mm/fadvise.c). It ends read-ahead, which would make the neighbouring range look as if somebody else
            # had wanted it.
            with _long_read_ahead(descriptor):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def _set_direct(self) -> bool:
        """Try on the first block. A storage's own error shows again in the first read, where it has an offset."""
        if file_system_type(self.descriptor) == FUSE_TYPE:
            return False
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        with mmap.mmap(-1, BLOCK_BYTES) as block:
            try:
                fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
                os.preadv(self.descriptor, [block], 0)
            except OSError:
                fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags)
                return False
        return True

    def read(self, view: memoryview, offset: int, length: int) -> int:
        """Fill `view` from `offset`, which is a block's start.

        Args:
            view: aligned memory of `length` rounded up to a block, or more.
        Returns: the bytes read; fewer than `length` only at the end of the file.
        """
        resident = b"" if self.direct else resident_map(self.descriptor, offset, length)
        aligned = -(-length // BLOCK_BYTES) * BLOCK_BYTES
        done = 0
        while done < length:
            got = done + os.preadv(self.descriptor, [view[done:aligned]], offset + done)
            if got < length:
                if got // BLOCK_BYTES * BLOCK_BYTES <= done:
                    return got
                got = got // BLOCK_BYTES * BLOCK_BYTES  # where direct I/O can go on
            done = got
        for run in re.finditer(rb"\0+", resident):
            start, stop = (edge * mmap.PAGESIZE for edge in run.span())
            os.posix_fadvise(self.descriptor, offset + start, stop - start, os.POSIX_FADV_DONTNEED)
        return length
