"""Be somebody else than root for a while, in a directory that everybody can reach."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Act with nobody's rights; what is imported lazily inside must be readable for everybody."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextlib.contextmanager
def reachable_directory() -> Iterator[Path]:
    """Make a directory whose parents let everybody in, as pytest's own do not."""
    path = Path(tempfile.mkdtemp(prefix="scratch-slurm-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)
