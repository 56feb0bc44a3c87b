"""Look through a directory that is to become an image. Must not change it."""

import datetime
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scratch_slurm.build.directory import Directory
from scratch_slurm.build.rights import OWN, Rights, taken
from scratch_slurm.domain.errors import DeniedError, ImageError, UsageError
from scratch_slurm.domain.words import clean, plural
from scratch_slurm.node.owner import others_may_write

_TOLD = 3
_WATCH_EVERY = 1000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

LATEST_TIME = 2**32 - 1
"""The latest that squashfs can keep, epoch seconds; the earliest is 0. Source: fs/squashfs/squashfs_fs.h, mtime."""


@dataclass(frozen=True)
class Some:
    """Paths of a kind: how many, and the first few, as paths below the directory."""

    count: int
    first: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(clean(path) for path in self.first) + (", ..." if self.count > len(self.first) else "")


@dataclass(frozen=True)
class Tree:
    """What a directory holds."""

    files: int
    """Regular files; a file of two names counts twice."""
    content_bytes: int
    entries: int
    newest_at: float
    """Newest modification time, epoch seconds."""
    closed: Some
    """Files and directories that not everybody may read."""
    loose: Some
    """Directories in which others than root may change names."""
    strange_times: Some
    """What has a time that squashfs cannot keep."""
    strange_at: tuple[float, ...]
    """The times of the first of these, epoch seconds."""
    unfit: Some
    """What the program that packs could not take in."""


class _Gathered:
    def __init__(self) -> None:
        self._count = 0
        self._first: list[str] = []

    def add(self, path: str) -> None:
        self._count += 1
        if len(self._first) < _TOLD:
            self._first.append(path)

    def some(self) -> Some:
        return Some(self._count, tuple(self._first))


@dataclass
class _Found:
    """Tree, while it is looked through."""

    files: int = 0
    content_bytes: int = 0
    entries: int = 0
    newest_at: float = 0.0
    unreadable: _Gathered = field(default_factory=_Gathered)
    closed: _Gathered = field(default_factory=_Gathered)
    loose: _Gathered = field(default_factory=_Gathered)
    strange: _Gathered = field(default_factory=_Gathered)
    strange_at: list[float] = field(default_factory=list)
    unfit: _Gathered = field(default_factory=_Gathered)

    def add(self, path: str, status: os.stat_result) -> None:
        self.newest_at = max(self.newest_at, status.st_mtime)
        if not 0 <= status.st_mtime < LATEST_TIME + 1:
            self.strange.add(path)
            self.strange_at = [*self.strange_at, status.st_mtime][:_TOLD]
        if not _open_to_all(status):
            self.closed.add(path)
        if stat.S_ISDIR(status.st_mode) and others_may_write(status, 0):
            self.loose.add(path)


def read_tree(
    directory: Directory,
    watch: Callable[[int], None],
    rights: Rights = OWN,
    unfit: Callable[[str], bool] = lambda _path: False,
) -> Tree:
    """Look at every file below a directory.

    Args:
        watch: called now and then with the number of files seen.
        rights: with which it is read.
        unfit: tells of a path below the directory whether the program that packs could not take it in.
    Raises: UsageError: there is nothing in it. DeniedError: these rights do not suffice for all of it.
        ImageError: the storage below it fails.
    """
    with taken(rights):
        found = _look(directory, watch, unfit)
    unreadable = found.unreadable.some()
    if unreadable.count:
        who = "you" if rights is OWN else rights.name
        raise DeniedError(
            f"{directory.path}: {plural(unreadable.count, 'path')} below it that {who} may not read: {unreadable}",
            hint="have their owner open them, or let root build with --as USER; nothing was published"
            if rights is OWN
            else "open them with chmod, or name with --as USER with whose rights to read; nothing was published",
        )
    if found.entries == 0:
        raise UsageError(f"directory {str(directory.path)!r}: there is nothing in it")
    return Tree(
        found.files,
        found.content_bytes,
        found.entries,
        found.newest_at,
        found.closed.some(),
        found.loose.some(),
        found.strange.some(),
        tuple(found.strange_at),
        found.unfit.some(),
    )


def tell_times(tree: Tree, source_date_epoch: str | None) -> str:
    """Write which times squashfs cannot keep, and what they become.

    Args:
        source_date_epoch: mksquashfs gives all newer files this time, epoch seconds.
    Source: mksquashfs.c: a time is cut to its lower 32 bits, after those past SOURCE_DATE_EPOCH have become it.
    """
    latest_at = int(source_date_epoch) if source_date_epoch and source_date_epoch.isdecimal() else None
    told = []
    for path, at in zip(tree.strange_times.first, tree.strange_at, strict=True):
        kept_at = latest_at if latest_at is not None and at > latest_at else math.floor(at)
        told.append(f"{clean(path)} ({_day(math.floor(at))} becomes {_day(kept_at % 2**32)})")
    more = ", ..." if tree.strange_times.count > len(told) else ""
    return (
        f"{plural(tree.strange_times.count, 'path')} with a time before 1970 or after 2106, which squashfs cannot keep:"
        f" {', '.join(told)}{more}"
    )


def _day(at: int) -> str:
    try:
        return str((_EPOCH + datetime.timedelta(seconds=at)).date())
    except OverflowError:
        return f"{at} s after 1970"


def _look(directory: Directory, watch: Callable[[int], None], unfit: Callable[[str], bool]) -> _Found:
    found = _Found()
    found.add(".", Path(directory.base).stat())
    asks = os.geteuid() != 0  # root may read whatever mksquashfs can
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(f"{directory.base}/{folder}") as listed:
                for entry in listed:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    status = entry.stat(follow_symlinks=False)
                    found.entries += 1
                    found.add(path, status)
                    if unfit(path):
                        found.unfit.add(path)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(path)
                    elif stat.S_ISREG(status.st_mode):
                        found.files += 1
                        found.content_bytes += status.st_size
                        if asks and not os.access(entry.path, os.R_OK, effective_ids=True):
                            found.unreadable.add(path)
                    if found.entries % _WATCH_EVERY == 0:
                        watch(found.files)
        except PermissionError:
            found.unreadable.add(folder or ".")
        except OSError as exc:
            raise ImageError(f"{directory.path}/{clean(folder)}: cannot read it: {exc.strerror}") from exc
    return found


def _open_to_all(status: os.stat_result) -> bool:
    if stat.S_ISREG(status.st_mode):
        return status.st_mode & 0o004 != 0
    if stat.S_ISDIR(status.st_mode):
        return status.st_mode & 0o005 == 0o005
    return True
