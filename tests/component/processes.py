"""Processes as /proc shows them."""

import contextlib
from pathlib import Path


def children():
    """Read the process ids of this process's children, zombies included."""
    found = set()
    for file in Path("/proc/self/task").glob("*/children"):
        # A thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(pid) for pid in file.read_text().split()}
    return found


def state(pid):
    """Read the state letter of a process; empty when there is none, `Z` is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid):
    return state(pid) not in ("", "Z")
