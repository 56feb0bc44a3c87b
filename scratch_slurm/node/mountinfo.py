"""What is mounted, from /proc/<pid>/mountinfo. Must not mount, nor look at what is mounted: nothing here blocks."""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from scratch_slurm.domain.errors import DeviceError

_LOOP_MAJOR = 7
_LOOP_SOURCE = re.compile(r"/dev/(loop[0-9]+)", re.ASCII)
_ESCAPE = re.compile(r"\\([0-7]{3})", re.ASCII)
_ESCAPED = re.compile(r"[ \t\n\\]")  # what mountinfo writes so


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. `device` is the loop device below (`loop3`), None for any other.

    Of several mounts with one `mount_point` the last in the list is on top.
    """

    mount_id: int
    parent_id: int
    root: str
    mount_point: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    device: str | None


def parse_mountinfo(text: str, directory: Path | None = None) -> list[Mount]:
    """Parse /proc/<pid>/mountinfo, in its order.

    Args:
        directory: only the mounts on what lies directly in it; None: all.
    Raises: DeviceError: a line is not of that form.
    Source: proc_pid_mountinfo(5)
    """
    # Paths may hold every blank and line break but these two, so neither splitlines() nor split() will do.
    lines = [line for line in text.split("\n") if line]
    if directory is None:
        return [_parse_mount(line) for line in lines]
    wanted = str(directory)
    below = f" {_ESCAPED.sub(lambda match: f'{chr(92)}{ord(match[0]):03o}', wanted)}/"
    found = [_parse_mount(line) for line in lines if below in line]
    return [mount for mount in found if mount.mount_point.rpartition("/")[0] == wanted]


def read_mounts(path: Path = Path("/proc/self/mountinfo"), directory: Path | None = None) -> list[Mount]:
    """Read the mounts of a mount namespace; never blocks.

    Args:
        directory: only the mounts on what lies directly in it, links resolved; None: all.
    Raises: DeviceError: the file cannot be read.
    """
    try:
        text = os.fsdecode(path.read_bytes())
    except OSError as exc:
        raise DeviceError(f"{path}: cannot read it: {exc.strerror}") from exc
    return parse_mountinfo(text, directory)


def same_mount_namespace_as_init(proc: Path = Path("/proc")) -> bool:
    """Tell whether mounts made here are seen by the whole node.

    A mount has one id in the whole system, and a new namespace gives its copies new ones. /proc/1/ns/mnt says the
    same, but wants CAP_SYS_PTRACE, which root need not have.

    Raises: DeviceError: /proc does not tell.
    """
    own = {mount.mount_id for mount in read_mounts(proc / "self/mountinfo")}
    return any(mount.mount_id in own for mount in read_mounts(proc / "1/mountinfo"))


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
    )


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
