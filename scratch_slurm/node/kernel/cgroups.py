"""What limits this process: its cgroups, `ulimit`, its processors. Must not change any."""

import contextlib
import math
import os
import resource
from pathlib import Path

from scratch_slurm.domain.limits import Bound, Limits, find_folders, parse_field, read_cgroups

_FILES = (
    *("memory.max", "memory.high", "memory.current", "memory.stat", "cpu.max"),
    *("memory.limit_in_bytes", "memory.usage_in_bytes", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
)


def read_limits() -> Limits:
    """Read what this process and its children may use; what cannot be read limits nothing."""
    folders = find_folders(_text("/proc/self/cgroup"), _text("/proc/self/mountinfo"))
    files = {path: _text(path) for folder in folders for path in (f"{folder.path}/{name}" for name in _FILES)}
    memory, quota = read_cgroups(folders, files)
    available = parse_field(_text("/proc/meminfo"), "MemAvailable")
    if available is not None and (memory is None or available < memory.amount):
        memory = Bound(available, "the memory that is free on this machine")
    processors = len(os.sched_getaffinity(0))
    if quota is not None:
        processors = max(1, min(processors, math.ceil(quota)))
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    bound = None if addresses == resource.RLIM_INFINITY else Bound(addresses, "ulimit -v")
    return Limits(memory, bound, processors)


def read_total_bytes() -> int:
    """Read how much memory the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""
