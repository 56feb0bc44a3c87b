"""How much memory and how many processors a process may use, from what the kernel's files say. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

MIB = 2**20

_UNLIMITED_BYTES = 2**60  # cgroup v1 writes "no limit" as a number near 2**63


@dataclass(frozen=True)
class CgroupFolder:
    """A directory of files that limit this process: its own group's, or an ancestor's.

    `controllers` are those of a v1 hierarchy; empty for v2, where one hierarchy has all.
    """

    path: str
    controllers: frozenset[str]


@dataclass(frozen=True)
class Bound:
    """At most so much, and what says so."""

    amount: int
    by: str


@dataclass(frozen=True)
class Limits:
    """What a process has, as far as is known."""

    memory: Bound | None = None
    """Bytes that it may still take."""
    addresses: Bound | None = None
    """Bytes of address space, RLIMIT_AS."""
    processors: int = 1


@dataclass(frozen=True)
class Resources:
    """What mksquashfs is told to use."""

    memory_bytes: int
    processors: int
    by: str
    """What bounds the memory."""


def find_folders(cgroups: str, mountinfo: str) -> tuple[CgroupFolder, ...]:
    """List the cgroup directories whose limits count for a process, the innermost first in each hierarchy.

    Args:
        cgroups: /proc/self/cgroup.
        mountinfo: /proc/self/mountinfo.
    Returns: nothing for what is not of its form, or not mounted.
    Source: cgroups(7); a container may see its own group as the root, with a path that begins with `/..`.
    """
    mounts = [mount for line in mountinfo.splitlines() if (mount := _parse_cgroup_mount(line))]
    found = []
    for line in cgroups.splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        wanted = frozenset(fields[1].split(",")) - {""}
        for root, mount_point, controllers in mounts:
            if (controllers is None and not wanted) or (controllers is not None and wanted & controllers):
                found += [CgroupFolder(path, wanted) for path in _ancestors(fields[2], root, mount_point)]
                break
    return tuple(found)


def _parse_cgroup_mount(line: str) -> tuple[str, str, frozenset[str] | None] | None:
    """Parse a line: the group that is its root, where it is mounted, its controllers (None: v2)."""
    fields = line.split(" ")
    try:
        tail = fields.index("-", 6)
        fs_type, options = fields[tail + 1], fields[tail + 3]
    except (ValueError, IndexError):
        return None
    if fs_type not in ("cgroup", "cgroup2"):
        return None
    return fields[3], fields[4], None if fs_type == "cgroup2" else frozenset(options.split(","))


def _ancestors(group: str, root: str, mount_point: str) -> list[str]:
    inside, top = PurePosixPath(group), PurePosixPath(root)
    below = inside.relative_to(top) if inside.is_relative_to(top) else PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    folders = [PurePosixPath(mount_point) / below]
    while str(folders[-1]) != mount_point:
        folders.append(folders[-1].parent)
    return [str(folder) for folder in folders]


def parse_amount(text: str) -> int | None:
    """Parse a limit of memory, in bytes; None for no limit, or what is none."""
    text = text.strip()
    if not (text.isascii() and text.isdecimal()):
        return None
    return int(text) if int(text) < _UNLIMITED_BYTES else None


def parse_field(text: str, name: str) -> int | None:
    """Parse the number of a line `name 123` (memory.stat) or `name: 123 kB` (meminfo, in bytes then).

    Returns: None when there is no such line.
    """
    for line in text.splitlines():
        fields = line.replace(":", " ").split()
        if len(fields) >= 2 and fields[0] == name and fields[1].isdecimal():
            return int(fields[1]) * (1024 if fields[2:] == ["kB"] else 1)
    return None


def parse_quota(text: str) -> float | None:
    """Parse `200000 100000` (cpu.max, or v1's quota and period): processors; None: no quota."""
    fields = text.split()
    if len(fields) != 2 or not all(field.isdecimal() for field in fields) or 0 in map(int, fields):
        return None
    return int(fields[0]) / int(fields[1])


def read_cgroups(folders: Iterable[CgroupFolder], files: Mapping[str, str]) -> tuple[Bound | None, float | None]:
    """Find the tightest limits.

    What the group's processes have taken already is gone; what of it are files that can be dropped is not.

    Args:
        files: path -> text, of those that could be read.
    Returns: memory in bytes that is left, processors; None: no limit.
    """
    memory: list[Bound] = []
    processors: list[float] = []
    for folder in folders:

        def text(name: str, folder: CgroupFolder = folder) -> str:
            return files.get(f"{folder.path}/{name}", "")

        if not folder.controllers:
            used, dropped = parse_amount(text("memory.current")), parse_field(text("memory.stat"), "inactive_file")
            limits = {name: parse_amount(text(name)) for name in ("memory.max", "memory.high")}
            quota = parse_quota(text("cpu.max"))
        else:
            used = parse_amount(text("memory.usage_in_bytes"))
            dropped = parse_field(text("memory.stat"), "total_inactive_file")
            limits = {name: parse_amount(text(name)) for name in ("memory.limit_in_bytes",)}
            quota = parse_quota(f"{text('cpu.cfs_quota_us')} {text('cpu.cfs_period_us')}")
        taken = max(0, (used or 0) - (dropped or 0))
        for name, limit in limits.items():
            if limit is not None:
                memory.append(Bound(max(0, limit - taken), f"{folder.path}/{name}"))
        if quota is not None:
            processors.append(quota)
    return min(memory, key=lambda bound: bound.amount, default=None), min(processors, default=None)


def choose_resources(limits: Limits, *, entries: int, total_bytes: int) -> Resources:
    """Choose what mksquashfs may use, so that what it takes besides fits too.

    Its own choice is a quarter of the machine's memory and all processors, whatever its group or `ulimit` allows.
    What it is told covers its queues of blocks only. Besides come tables of the entries, compressors and stacks, the
    pages of the file that are not written yet, and this program.

    Args:
        entries: files and directories to be packed.
        total_bytes: the machine's memory.
    Returns: 16 MiB at least, less it refuses.
    """
    tables_bytes = _BESIDE_BYTES + entries * _ENTRY_BYTES
    processors = max(1, limits.processors)
    chosen, by = total_bytes // 4, "a quarter of the machine's memory"
    if limits.memory is not None:
        room = (limits.memory.amount - tables_bytes - processors * _COMPRESSOR_BYTES) // 2
        chosen, by = min((chosen, by), (room, limits.memory.by))
    if limits.addresses is not None:
        while processors > 1 and _stacks_bytes(processors) > limits.addresses.amount // 4:
            processors -= 1
        room = (limits.addresses.amount - tables_bytes - _stacks_bytes(processors)) // 2
        chosen, by = min((chosen, by), (room, limits.addresses.by))
    return Resources(max(_LEAST_BYTES, chosen // MIB * MIB), processors, by)


_LEAST_BYTES = 16 * MIB
_BESIDE_BYTES = 64 * MIB
_ENTRY_BYTES = 1024
_COMPRESSOR_BYTES = 8 * MIB
_STACK_BYTES = 8 * MIB


def _stacks_bytes(processors: int) -> int:
    # Source: mksquashfs.c: three threads a processor, and half a dozen others.
    return (6 + 3 * processors) * _STACK_BYTES
