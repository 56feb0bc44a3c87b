"""A directory that somebody named, held open: whatever its name leads to later, this is the one that was looked at."""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from scratch_slurm.domain.errors import DeniedError, UsageError

_LINKS_LIMIT = 40
_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Directory:
    """An open directory, until the end of its context."""

    fd: int
    path: Path
    """Absolute, without symbolic links; for people. Whoever may write above it may have put something else there."""
    uid: int
    """Its owner."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    @property
    def base(self) -> str:
        """The path by which the kernel finds this very directory, whatever became of its names. Source: proc(5)"""
        return f"/proc/self/fd/{self.fd}"


def open_directory(path: Path) -> Directory:
    """Open a directory step by step.

    For root a symbolic link counts if it is root's or belongs to the owner of the directory that it leads to: others
    could send root to where only root may go.

    Raises: UsageError: it is missing or no directory. DeniedError: a link of somebody else leads there.
    """
    try:
        fd, links = _walk(path)
    except OSError as exc:
        raise UsageError(f"directory {str(path)!r}: {exc.strerror}") from exc
    except ValueError as exc:  # a NUL in it
        raise UsageError(f"directory {str(path)!r}: {exc}") from exc
    try:
        return _checked(path, fd, links)
    except BaseException:
        os.close(fd)
        raise


def _checked(path: Path, fd: int, links: list[tuple[str, int]]) -> Directory:
    status = os.fstat(fd)
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"directory {str(path)!r}: not a directory", hint="build packs a directory's contents")
    found = Directory(fd, Path(f"/proc/self/fd/{fd}").readlink(), status.st_uid)
    for link, owner in links if os.geteuid() == 0 else ():
        if owner not in (0, found.uid):
            raise DeniedError(
                f"directory {str(path)!r}: the symbolic link {link!r} of uid {owner} leads to {str(found.path)!r},"
                f" which belongs to uid {found.uid}",
                hint="if that is what is meant, name that directory itself",
            )
    return found


def _walk(path: Path) -> tuple[int, list[tuple[str, int]]]:
    """Open what a path leads to.

    Returns: its descriptor, and the links on the way with their owners.
    Raises: OSError
    """
    links: list[tuple[str, int]] = []
    pending = list(reversed(path.parts))
    fd = os.open(".", _FLAGS)
    try:
        while pending:
            name = pending.pop()
            step = os.open(name, _FLAGS, dir_fd=fd)
            status = os.fstat(step)
            if not stat.S_ISLNK(status.st_mode):
                fd, done = step, fd
                os.close(done)
                continue
            try:
                target = os.readlink("", dir_fd=step)  # of the link that was looked at: readlinkat(2)
            finally:
                os.close(step)
            links.append((name, status.st_uid))
            if len(links) > _LINKS_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            pending += reversed(Path(target).parts)
    except BaseException:
        os.close(fd)
        raise
    return fd, links
