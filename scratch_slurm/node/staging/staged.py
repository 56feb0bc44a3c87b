"""The file that a copy grows in: its blocks, its writes behind, its journal. It knows nothing of the source.

Every failure of the cache's disk is worded here, as DiskError, or NoSpaceError where it is full.
"""

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from scratch_slurm.domain.errors import ConfigError, DiskError, NoSpaceError
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.node.rawio import ColdReader, drop_written, reserve_blocks, start_writeback
from scratch_slurm.node.staging.chunks import Chunk, CopyHeader, Journal, JournalContents, journal_path, read_journal

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RANGES_BEHIND = 8
"""Ranges being written by the kernel before somebody waits for the oldest one."""


class StagedFile:
    """`<name>.part` and `<name>.journal`, open. A context manager that closes, and never deletes by itself."""

    def __init__(self, path: Path, descriptor: int, header: CopyHeader, found: JournalContents | None) -> None:
        self.path = path
        self.found = found or JournalContents()
        """What the journal says is there; to be read before it is believed."""
        self._descriptor = descriptor
        self._header = header
        self._journal: Journal | None = None
        self._behind: deque[tuple[int, int]] = deque()

    @classmethod
    def open(cls, path: Path, header: CopyHeader) -> Self:
        """Open what an earlier try left, when it is of this very copy; else a new file.

        A new one is a new inode: a killed process whose last write is still under way cannot reach it.
        Raises: NoSpaceError, DiskError, ConfigError: about the cache's disk.
        """
        with _cache_errors(path, "open"):
            found = read_journal(journal_path(path), header)
            descriptor = _open_left(path, header.size_bytes) if found and found.chunks else None
            if descriptor is None:
                found = None
                _discard(path)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(path, flags, 0o600)
        staged = cls(path, descriptor, header, found)
        try:
            staged._reserve()
        except BaseException:
            staged.discard()
            os.close(descriptor)
            raise
        return staged

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._journal is not None:
            self._journal.close()
        os.close(self._descriptor)

    def _reserve(self) -> None:
        size_bytes = self._header.size_bytes
        with _cache_errors(self.path, "reserve space in"):
            try:
                reserve_blocks(self._descriptor, size_bytes)
            except OSError as exc:
                if exc.errno not in _NO_ROOM:
                    raise
                why = word_os_error(exc, self._descriptor)
                # fallocate(2) keeps what it got.
                os.ftruncate(self._descriptor, 0)
                disk = os.fstatvfs(self._descriptor)
                raise NoSpaceError(
                    f"{self.path.parent}: cannot reserve {format_bytes(size_bytes)} for {self.path.name!r}:"
                    f" {why}; {format_bytes(disk.f_bavail * disk.f_frsize)} are free"
                ) from exc

    def reader(self) -> tuple[int, ColdReader]:
        """Open the file once more, for reads from the disk itself; returns the descriptor to close, and its reader."""
        with _cache_errors(self.path, "open"):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return descriptor, ColdReader(descriptor)

    def read(self, reader: ColdReader, view: memoryview, offset: int, length: int) -> None:
        """Fill `view` with what the disk holds."""
        with _cache_errors(self.path, f"read at byte {offset} of"):
            got = reader.read(view, offset, length)
        if got != length:
            raise DiskError(f"{self.path}: ends at byte {offset + got} of {self._header.size_bytes}")

    def write(self, view: memoryview, offset: int) -> None:
        """Write a range and start its way to the disk; what was written a while ago leaves the page cache."""
        with _cache_errors(self.path, f"write at byte {offset} of"):
            done = 0
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], offset + done)
            start_writeback(self._descriptor, offset, len(view))
            self._behind.append((offset, len(view)))
            if len(self._behind) > _RANGES_BEHIND:
                drop_written(self._descriptor, *self._behind.popleft())

    def start_journal(self) -> None:
        """Begin the journal, or go on with the one that was found."""
        with _cache_errors(self.path, "write the journal of"):
            path = journal_path(self.path)
            if self.found.end:
                self._journal = Journal.resume(path, self.found)
            else:
                self._journal = Journal.create(path, self._header)

    def commit(self, chunk: Chunk) -> None:
        """Make all that was written durable, then record the chunk."""
        assert self._journal is not None
        with _cache_errors(self.path, "sync"):
            os.fdatasync(self._descriptor)
        with _cache_errors(self.path, "write the journal of"):
            self._journal.append(chunk)

    def sync(self) -> None:
        """Make the whole file durable and leave none of it in the page cache.

        Raises: DiskError: the disk failed; the kernel may say so once only, so the file is worth nothing.
        """
        with _cache_errors(self.path, "sync"):
            os.fsync(self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size_bytes = os.fstat(self._descriptor).st_size
        if size_bytes != self._header.size_bytes:
            raise DiskError(f"{self.path}: has {size_bytes} bytes, not {self._header.size_bytes}")

    def discard(self) -> None:
        """Delete the file and its journal; the space is free when the descriptor is closed."""
        with contextlib.suppress(OSError):  # there is an error to report already
            os.ftruncate(self._descriptor, 0)
            _discard(self.path)


def _open_left(path: Path, size_bytes: int) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size == size_bytes:
        os.fchmod(descriptor, 0o600)
        return descriptor
    os.close(descriptor)
    return None


def _discard(path: Path) -> None:
    # The journal first: it must never describe another file.
    journal_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _cache_errors(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        what = f"{path}: cannot {action} the cached copy: {word_os_error(exc, path)}"
        if exc.errno in _NO_ROOM:
            raise NoSpaceError(what) from exc
        if exc.errno == errno.EOPNOTSUPP:
            raise ConfigError(
                what, hint="cache_dir must be on a local file system with fallocate(2): ext4, xfs, btrfs, f2fs"
            ) from exc
        raise DiskError(what, hint="check the cache's disk and the kernel log") from exc
