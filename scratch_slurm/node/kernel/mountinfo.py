"""What is mounted, from /proc/<pid>/mountinfo. Must not mount, nor look at what is mounted: nothing here blocks."""

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scratch_slurm.domain.errors import DeviceError

MOUNTINFO = Path("/proc/self/mountinfo")

_LOOP_MAJOR = 7
_MINOR_BITS = 20
_LOOP_SOURCE = re.compile(r"/dev/(loop[0-9]+)", re.ASCII)
_ESCAPE = re.compile(r"\\([0-7]{3})", re.ASCII)
_ESCAPED = re.compile(r"[ \t\n\\]")  # what mountinfo writes so


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. `device` is the loop device below (`loop3`), None for any other.

    Several mounts may have one `mount_point`, and their order in the list says nothing: see `parse_stacks`.
    """

    mount_id: int
    parent_id: int
    root: str
    mount_point: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    device: str | None
    number: int = field(default=0, compare=False)
    """Of the file system's device, as st_dev has it."""


def parse_mountinfo(text: str) -> list[Mount]:
    """Parse /proc/<pid>/mountinfo, in its order.

    Raises: DeviceError: a line is not of that form.
    Source: proc_pid_mountinfo(5)
    """
    return [_parse_mount(line) for line in _lines(text)]


def read_mounts(path: Path = MOUNTINFO) -> list[Mount]:
    """Read the mounts of a mount namespace; never blocks.

    Raises: DeviceError: the file cannot be read.
    """
    return parse_mountinfo(read_text(path))


def parse_stacks(text: str, directory: str) -> dict[str, list[Mount]]:
    """Find what is mounted on each path directly in a directory: name -> the mounts there, from the lowest to the top.

    A look-up meets the last one, the only one that is no other's parent there. The order of the lines does not tell:
    what was mounted beneath another comes after it. What lies hidden below a directory that was itself mounted over
    nobody meets; it is left out.

    Args:
        directory: absolute, links resolved.
    Raises: DeviceError: a line is not of its form.
    Source: path_resolution(7); MOVE_MOUNT_BENEATH in move_mount(2).
    """
    lines = _lines(text)
    wanted = directory.rstrip("/")
    steps = _steps(wanted)
    shown, below = {_escape(step) for step in steps}, f" {_escape(wanted)}/"
    found = [_parse_mount(line) for line in lines if below in line or not shown.isdisjoint(line.split(" ", 5)[4:5])]
    on_it = {(mount.parent_id, mount.mount_point): mount for mount in found}
    holder = _root_id(lines)
    for step in steps[1:]:
        stack = _climb(on_it, holder, step)
        holder = stack[-1].mount_id if stack else holder
    names: dict[str, list[Mount]] = {}
    for parent_id, path in on_it:
        directory, _, name = path.rpartition("/")
        if parent_id == holder and directory == wanted and name:
            names[name] = _climb(on_it, holder, path)
    return names


def read_stacks(directory: str | os.PathLike[str], path: Path = MOUNTINFO) -> dict[str, list[Mount]]:
    """Read what is mounted on each path directly in a directory, as `parse_stacks` tells it. Links are resolved first.

    Raises: DeviceError: the file cannot be read.
    """
    return parse_stacks(read_text(path), os.path.realpath(directory))


def find_mount(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """Find the mount that a path lies on, by the list alone.

    Args:
        path: absolute, links resolved, as the kernel tells the backing of a loop device.
        mounts: all of a namespace. Of several on one path that one is it on which no other of them lies.
    """
    above = [mount for mount in mounts if f"{path}/".startswith(f"{mount.mount_point.rstrip('/')}/")]
    deepest = max((len(mount.mount_point) for mount in above), default=0)
    stack = [mount for mount in above if len(mount.mount_point) == deepest]
    covered = {mount.parent_id for mount in stack if mount.parent_id != mount.mount_id}
    return next((mount for mount in stack if mount.mount_id not in covered), None)


def same_mount_namespace_as_init(proc: Path = Path("/proc")) -> bool:
    """Tell whether mounts made here are seen by the whole node.

    A mount has one id in the whole system, and a new namespace gives its copies new ones. /proc/1/ns/mnt says the
    same, but wants CAP_SYS_PTRACE, which root need not have.

    Raises: DeviceError: /proc does not tell.
    """
    own = {mount.mount_id for mount in read_mounts(proc / "self/mountinfo")}
    return any(mount.mount_id in own for mount in read_mounts(proc / "1/mountinfo"))


def read_text(path: Path = MOUNTINFO) -> str:
    """Read the mounts of a mount namespace as the kernel words them, for `parse_mountinfo` and `parse_stacks`.

    Raises: DeviceError: the file cannot be read.
    """
    try:
        return os.fsdecode(path.read_bytes())
    except OSError as exc:
        raise DeviceError(f"{path}: cannot read it: {exc.strerror}") from exc


def _lines(text: str) -> list[str]:
    # Paths may hold every blank and line break but these two, so neither splitlines() nor split() will do.
    return [line for line in text.split("\n") if line]


def _escape(path: str) -> str:
    return _ESCAPED.sub(lambda match: f"\\{ord(match[0]):03o}", path)


def _steps(path: str) -> list[str]:
    """The directories on the way to a path, and itself: `/`, `/a`, `/a/b`."""
    parts = path.split("/")[1:]
    return ["/", *("/" + "/".join(parts[: count + 1]) for count in range(len(parts)))]


def _root_id(lines: list[str]) -> int:
    """Find the mount that holds the process's own root: that of `/`, but for what is mounted on it, which is not met.

    Where the root is no mount point, it is the one that is a parent and not in the list.
    """
    ids = {line.partition(" ")[0] for line in lines}
    for line in lines:
        fields = line.split(" ", 5)
        if len(fields) == 6 and fields[1] not in ids and fields[1].isdecimal():
            return int(fields[0] if fields[4] == "/" else fields[1])
    return -1


def _climb(on_it: dict[tuple[int, str], Mount], holder: int, path: str) -> list[Mount]:
    """Go from the mount that holds a path to what is mounted there, and to what is mounted on that."""
    stack: list[Mount] = []
    while mount := on_it.get((holder, path)):
        if mount in stack:
            break  # no kernel tells of such
        stack.append(mount)
        holder = mount.mount_id
    return stack


# Most lines are the same in each round of the daemon.
@functools.lru_cache(maxsize=8192)
def _parse_mount(line: str) -> Mount:
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    fields = line.split(" ")
    try:
        tail = fields.index("-", 6)
        fs_type, source = fields[tail + 1 : tail + 3]
        major, minor = (int(number) for number in fields[2].split(":"))
        mount_id, parent_id = int(fields[0]), int(fields[1])
    except ValueError as exc:
        raise DeviceError(f"mountinfo: not a line of its form: {line[:200]!r}") from exc
    source = _unescape(source)
    device = None
    if major == _LOOP_MAJOR:
        # The minor is the number unless the loop module has max_part set; the source is right then too.
        named = _LOOP_SOURCE.fullmatch(source)
        device = named[1] if named else f"loop{minor}"
    return Mount(
        mount_id=mount_id,
        parent_id=parent_id,
        root=_unescape(fields[3]),
        mount_point=_unescape(fields[4]),
        options=tuple(fields[5].split(",")),
        fs_type=_unescape(fs_type),
        source=source,
        device=device,
        number=major << _MINOR_BITS | minor,
    )


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
