"""Be somebody else than root for a while, in a directory that everybody can reach."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534
STRANGER_UID = 12345

# Bound by root, so that no directory need be open to strangers: the peer is who called listen(2), unix(7) SO_PEERCRED.
_LISTENER = f"""
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.setgid({STRANGER_UID})
os.setuid({STRANGER_UID})
listener.listen()
print("listening", flush=True)
connection, _ = listener.accept()
sys.exit(7 if connection.recv(1) else 0)
"""


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


@contextlib.contextmanager
def stranger_listens(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Let a process of STRANGER_UID accept one connection at `path`; it ends with 7 if it is told anything, else 0."""
    argv = [sys.executable, "-c", _LISTENER, str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()
