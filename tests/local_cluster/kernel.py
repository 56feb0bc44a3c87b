"""What the kernel holds for a cluster: mounts, loop devices, processes in its namespaces."""

import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
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
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64_BYTES: Final = 232

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class BoundLoop:
    """A loop device and the file it is bound to; (device, inode) still tells when the path no longer does."""

    name: str
    backing_file: str
    file_device: int
    file_inode: int


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
    """All bound loop devices of the machine."""
    loops = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        name = entry.parts[3]
        info = bytearray(_LOOP_INFO64_BYTES)
        try:
            backing_file = entry.read_text().rstrip("\n")
            fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # let go in the meantime
        try:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
        except OSError:
            continue
        finally:
            os.close(fd)
        device, inode = struct.unpack_from("QQ", info)
        loops.append(BoundLoop(name, backing_file, device, inode))
    return loops


def loops_under(directory: Path) -> list[BoundLoop]:
    """The loop devices that read a file of the cluster in `directory`.

    The kernel words the path from the mount that the file was opened through: once that mount is gone,
    only device and inode still tell, and only while the file has a name.
    """
    loops = bound_loops()
    if not loops:
        return []
    files = set()
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(parent, name))  # noqa: PTH118 (thousands of files)
                files.add((status.st_dev, status.st_ino))
    prefix = f"{directory}/"
    return [
        loop
        for loop in loops
        if loop.backing_file.startswith(prefix) or (loop.file_device, loop.file_inode) in files
    ]


def release_loops(loops: Iterable[BoundLoop], timeout_s: float = 3.0) -> list[BoundLoop]:
    """Wait until the kernel let go of `loops`, then unbind by hand; return those that stay bound."""
    wanted = {(loop.name, loop.file_device, loop.file_inode): loop for loop in loops}
    deadline = time.monotonic() + timeout_s
    cleared = False
    while True:
        bound = {(loop.name, loop.file_device, loop.file_inode) for loop in bound_loops()}
        left = [loop for key, loop in wanted.items() if key in bound]
        if not left or (cleared and time.monotonic() > deadline):
            return left
        if not cleared and time.monotonic() > deadline - timeout_s * 0.8:
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


def processes_in(namespaces: frozenset[str]) -> list[int]:
    """The processes of this machine that live in one of `namespaces`."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if namespaces_of(pid) & namespaces]
