"""Look through a directory that is to become an image. Must not change it."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scratch_slurm.cli.words import clean, plural
from scratch_slurm.domain.errors import DeniedError, ImageError, UsageError

_TOLD = 3
_WATCH_EVERY = 1000


@dataclass(frozen=True)
class Tree:
    """What a directory holds."""

    files: int
    """Regular files; a file of two names counts twice."""
    content_bytes: int
    newest_at: float
    """Newest modification time, epoch seconds."""
    closed: tuple[str, ...]
    """Files and directories that not everybody may read, the first few."""


def resolve_directory(path: Path) -> Path:
    """Check that a directory can be packed.

    Returns: its absolute path without symlinks.
    Raises: UsageError: it is missing or no directory.
    """
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise UsageError(f"directory {str(path)!r}: {getattr(exc, 'strerror', None) or exc}") from exc
    if not resolved.is_dir():
        raise UsageError(f"directory {str(path)!r}: not a directory", hint="build packs a directory's contents")
    return resolved


def read_tree(directory: Path, watch: Callable[[int], None]) -> Tree:
    """Look at every file below a directory.

    Args:
        watch: called now and then with the number of files seen.
    Raises: UsageError: there is nothing in it. DeniedError: the caller may not read all of it.
        ImageError: the storage below it fails.
    """
    files, content_bytes, entries = 0, 0, 0
    status = directory.stat()
    newest_at = status.st_mtime
    unreadable: list[str] = []
    closed: list[str] = [] if _open_to_all(status) else [str(directory)]
    asks = os.geteuid() != 0  # root may read whatever mksquashfs can
    pending = [str(directory)]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as listed:
                for entry in listed:
                    status = entry.stat(follow_symlinks=False)
                    entries += 1
                    newest_at = max(newest_at, status.st_mtime)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
                    elif stat.S_ISREG(status.st_mode):
                        files += 1
                        content_bytes += status.st_size
                        if asks and not os.access(entry.path, os.R_OK, effective_ids=True):
                            unreadable.append(entry.path)
                    if not _open_to_all(status):
                        closed.append(entry.path)
                    if entries % _WATCH_EVERY == 0:
                        watch(files)
        except PermissionError:
            unreadable.append(folder)
        except OSError as exc:
            raise ImageError(f"{folder}: cannot read it: {exc.strerror}") from exc
    if unreadable:
        raise DeniedError(
            f"{directory}: {plural(len(unreadable), 'path')} below it that you may not read: {some(unreadable)}",
            hint="have their owner open them, or build as root; nothing was published",
        )
    if entries == 0:
        raise UsageError(f"directory {str(directory)!r}: there is nothing in it")
    return Tree(files, content_bytes, newest_at, tuple(closed[: _TOLD + 1]))


def some(paths: list[str] | tuple[str, ...]) -> str:
    """Write the first three paths."""
    return ", ".join(clean(path) for path in paths[:_TOLD]) + (", ..." if len(paths) > _TOLD else "")


def _open_to_all(status: os.stat_result) -> bool:
    if stat.S_ISREG(status.st_mode):
        return status.st_mode & 0o004 != 0
    if stat.S_ISDIR(status.st_mode):
        return status.st_mode & 0o005 == 0o005
    return True
