"""What an error of the system means, in words. Must not decide anything."""

import errno
import os

_WORDS = {
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EAGAIN: "no processes: a limit of processes is reached",
    errno.ENOMEM: "no memory",
    errno.EMFILE: "no file descriptors: the limit of this process is reached",
    errno.ENFILE: "no file descriptors: the limit of this node is reached",
}


def word_os_error(exc: OSError, where: "str | os.PathLike[str] | int | None" = None) -> str:
    """Say what went wrong, and of what there is not enough.

    Args:
        where: a path, or a descriptor, on the file system that was written to; its nearest directory that is there
            is looked at when that has no room.
    """
    if exc.errno == errno.ENOSPC and where is not None:
        return word_full(where) or "no space left"
    return _WORDS.get(exc.errno or 0) or exc.strerror or str(exc)


def word_full(where: "str | os.PathLike[str] | int") -> str:
    """Say what a file system has run out of: space or inodes; empty when it has both, or does not tell."""
    try:
        disk = _statvfs(where)
    except OSError:
        return ""
    if disk.f_files and not disk.f_favail:
        return "no inodes left: too many files"
    return "" if disk.f_bavail else "no space left"


def _statvfs(where: "str | os.PathLike[str] | int") -> os.statvfs_result:
    if isinstance(where, int):
        return os.fstatvfs(where)
    path = os.fspath(where)
    while True:
        try:
            return os.statvfs(path)
        except FileNotFoundError:
            above = os.path.dirname(path)  # noqa: PTH120 - hooks pay for pathlib
            if above in ("", path):
                raise
            path = above
