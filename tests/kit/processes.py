"""Processes as /proc shows them."""

import contextlib
import signal
from pathlib import Path


def children() -> set[int]:
    """Read the process ids of this process's children, zombies included."""
    found = set()
    for file in Path("/proc/self/task").glob("*/children"):
        # A thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(pid) for pid in file.read_text().split()}
    return found


def state(pid: int) -> str:
    """Read the state letter of a process; empty when there is none, `Z` is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def is_killed(pid: int) -> bool:
    """Whether a process is gone, or goes as soon as the kernel lets it: SIGKILL is pending."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return not is_running(pid) or any(mask & 1 << signal.SIGKILL - 1 for mask in pending)


def children_of(pid: int) -> set[int]:
    """Read the process ids of a process's children, whichever of its threads started them, zombies included."""
    found = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        found |= {int(child) for child in file.read_text().split()}
    return found
