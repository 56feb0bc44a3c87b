"""What the kernel holds for a cluster: mounts, loop devices, processes in its namespaces."""

import contextlib
import ctypes
import fcntl
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MS_BIND: Final = 1 << 12
MS_REC: Final = 1 << 14
MS_SHARED: Final = 1 << 20
MNT_DETACH: Final = 2

# <linux/loop.h>
_LOOP_CLR_FD: Final = 0x4C01

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class BoundLoop:
    """A loop device that is bound to a file.

    Args:
        name: `loop3`.
        sequence: a new number for each binding, from Linux 5.15 on; else empty.
        backing_file: as the kernel words it.
    """

    name: str
    sequence: str
    backing_file: str


def mount(source: str, target: str, flags: int) -> None:
    """mount(2) without a file system type or options.

    Raises: OSError.
    """
    if _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)


def unmount(target: str) -> None:
    """Detach the topmost mount at `target`, even if it is busy.

    Raises: OSError.
    """
    if _libc.umount2(target.encode(), MNT_DETACH):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)


def mounts_under(directory: Path) -> list[str]:
    """The mount points at or below `directory` in this mount namespace, in the order of mounting."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Octal escapes for space, tab, newline and backslash: proc(5).
        point = line.split(" ")[4].encode().decode("unicode_escape").encode("latin-1").decode()
        if Path(point).is_relative_to(directory):
            points.append(point)
    return points


def unmount_all(directory: Path) -> list[str]:
    """Detach every mount at or below `directory`, last first; return the mount points that stay."""
    for point in reversed(mounts_under(directory)):
        with contextlib.suppress(OSError):
            unmount(point)
    return mounts_under(directory)


def bound_loops() -> list[BoundLoop]:
    """All bound loop devices of the machine.

    Read from /sys alone: LOOP_GET_STATUS64 asks the backing file, and hangs with its storage.
    """
    loops = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        sequence = entry.parents[1] / "diskseq"
        with contextlib.suppress(OSError):  # let go in the meantime
            number = sequence.read_text().strip() if sequence.exists() else ""
            loops.append(BoundLoop(entry.parts[3], number, entry.read_text().rstrip("\n")))
    return loops


def loops_under(directory: Path) -> list[BoundLoop]:
    """The loop devices that read a file below `directory`.

    The kernel words the path from the mount that the file was opened through: ask before that is gone.
    """
    return [loop for loop in bound_loops() if loop.backing_file.startswith(f"{directory}/")]


def release_loops(loops: Iterable[BoundLoop], patience_s: float = 0.5, timeout_s: float = 3.0) -> list[str]:
    """Wait `patience_s` for the kernel to let go of `loops`, then unbind them; return what stays bound."""
    wanted = {(loop.name, loop.sequence): loop for loop in loops}
    began = time.monotonic()
    cleared = False
    while True:
        bound = {(loop.name, loop.sequence) for loop in bound_loops()}
        left = [loop for key, loop in wanted.items() if key in bound]
        if not left or time.monotonic() > began + timeout_s:
            return [f"/dev/{loop.name} on {loop.backing_file}" for loop in left]
        if not cleared and time.monotonic() > began + patience_s:
            for loop in left:
                with contextlib.suppress(OSError):
                    clear_loop(loop.name)
            cleared = True
        time.sleep(0.02)


def clear_loop(name: str) -> None:
    """Unbind a loop device; while something holds it, the kernel puts this off.

    Raises: OSError.
    """
    fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD)
    finally:
        os.close(fd)


def remove_files(directory: Path, except_name: str | None = None) -> None:
    """Remove what is in `directory`. The caller made sure that nothing is mounted below it."""
    for entry in directory.iterdir():
        if entry.name == except_name:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def namespaces_of(pid: int) -> frozenset[str]:
    """The PID and mount namespaces of a process, as the kernel names them; empty when it is gone."""
    names = set()
    for kind in ("pid", "mnt"):
        with contextlib.suppress(OSError):
            names.add(os.readlink(f"/proc/{pid}/ns/{kind}"))  # noqa: PTH115 (no file has this name)
    return frozenset(names)


def processes_in(namespaces: frozenset[str]) -> list[str]:
    """The processes of this machine that live in one of `namespaces`, described."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and namespaces_of(int(entry.name)) & namespaces:
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                state, parent = rest.split()[:2]
                found.append(f"process {entry.name} ({name}, state {state}, child of {parent})")
    return found
