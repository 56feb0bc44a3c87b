"""One builder at a time gives names to a dataset's files, where the file system has locks."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from scratch_slurm.domain.errors import ImageError

_LOCK_PATIENCE_S = 60.0
_LOCK_POLL_S = 0.1


@contextlib.contextmanager
def alone(path: Path, told: Path) -> Iterator[None]:
    """Keep other builders from giving names to the same dataset meanwhile.

    Args:
        path: the file to lock; the lock goes with its process.
        told: the directory, for messages.

    Raises: ImageError: another one does not end.
    """
    give_up_at = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if _lock(fd) and _is_still(fd, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(fd)
        if time.monotonic() > give_up_at:
            raise ImageError(f"{told / path.name}: another build publishes this dataset and does not end")
        time.sleep(_LOCK_POLL_S)


def _lock(fd: int) -> bool:
    """Take a lock if it is free, and where there are any (some network file systems have none)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_still(fd: int, path: Path) -> bool:
    """Tell whether a file has its name yet: who had the lock before took it away."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
