"""A directory that hangs, as dead network storage does: a real one, on FUSE."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_SERVER = """
import sys, threading
from mfusepy import FUSE, Operations
class Hanging(Operations):
    use_ns = True
    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": 0o40755, "st_nlink": 2}
        threading.Event().wait()
    def readdir(self, path, fh):
        threading.Event().wait()
FUSE(Hanging(), sys.argv[1], foreground=True)
"""


@contextlib.contextmanager
def hanging_directory(path: Path) -> Iterator[Path]:
    """Mount it on `path`: it can be opened, but to look a name up, or to list it, does not return."""
    path.mkdir()
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(path)])
    try:
        deadline = time.monotonic() + 10
        while not os.path.ismount(path):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield path
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        subprocess.run(["umount", "-l", str(path)], check=True)
