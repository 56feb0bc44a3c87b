"""The bound loop devices as sysfs shows them. Must not open a device: nothing here blocks."""

import errno
import functools
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scratch_slurm.domain.errors import DeviceError

# /sys/block has links into it, which take half as long again to follow.
BLOCK_DEVICES = Path("/sys/devices/virtual/block")

_SECTOR_BYTES = 512  # of sysfs sizes, whatever the device's own is
_DELETED = " (deleted)"
_PAGE_BYTES = 4096  # the most that an attribute of sysfs holds
_GONE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)


class LoopBacking(NamedTuple):
    """The path of a device's open backing file now: it follows a switch and a rename.

    `deleted` says that the file has no name any more.
    """

    path: str
    deleted: bool


@dataclass(frozen=True)
class LoopDevice:
    """A bound loop device as sysfs shows it; `backing_path` and `deleted` as in LoopBacking."""

    name: str
    minor: int
    backing_path: str
    deleted: bool
    size_bytes: int
    offset_bytes: int
    read_only: bool
    auto_clear: bool
    direct_io: bool


def read_backings(block_devices: Path = BLOCK_DEVICES, kept: dict[str, int] | None = None) -> dict[str, LoopBacking]:
    """Read what every bound loop device reads, ours and others'; name -> backing. Never blocks.

    The daemon looks at all of them in each round. To open, read and close a file of sysfs takes 7 us, to read an open
    one 2: the kernel makes its text anew for each read.

    Args:
        kept: device -> its open file, for the next call with the same; as many as half the process's limit.
    Raises: DeviceError: sysfs cannot be read.
    """
    files = {} if kept is None else kept
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    backings = {}
    try:
        folder = os.open(block_devices, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names = [name for name in os.listdir(folder) if loop_number(name) is not None]  # noqa: PTH208 - of a descriptor
            for name in names:
                if shown := _read_backing_file(folder, name, files, limit):
                    backings[name] = _parse_backing(shown)
        finally:
            os.close(folder)
            for name in files.keys() - (backings.keys() if kept is not None else ()):
                os.close(files.pop(name))
    except OSError as exc:
        raise DeviceError(f"{block_devices}: cannot read the loop devices: {exc.strerror}") from exc
    return backings


def read_loop_device(name: str, sys_block: Path = Path("/sys/block")) -> LoopDevice | None:
    """Read one loop device from sysfs; None when it is not bound, or goes away meanwhile. Never blocks.

    Raises: DeviceError: sysfs refuses for another reason.
    """
    base = sys_block / name
    try:
        backing = _parse_backing((base / "loop/backing_file").read_bytes())
        numbers = [
            int((base / attribute).read_bytes())
            for attribute in ("size", "loop/offset", "ro", "loop/autoclear", "loop/dio")
        ]
        minor = int((base / "dev").read_bytes().split(b":")[1])
    except OSError as exc:
        if exc.errno in _GONE:
            return None
        raise DeviceError(f"{name}: cannot read its state: {exc.strerror}") from exc
    size, offset, read_only, auto_clear, direct_io = numbers
    return LoopDevice(
        name=name,
        minor=minor,
        backing_path=backing.path,
        deleted=backing.deleted,
        size_bytes=size * _SECTOR_BYTES,
        offset_bytes=offset,
        read_only=bool(read_only),
        auto_clear=bool(auto_clear),
        direct_io=bool(direct_io),
    )


def _read_backing_file(folder: int, name: str, files: dict[str, int], limit: int) -> bytes:
    """Read what a device shows; empty when it is not bound, or goes away meanwhile."""
    if name in files:
        try:
            return os.pread(files[name], _PAGE_BYTES, 0)
        except OSError:  # unbound since: a file of sysfs dies with what it shows, and a new one has its name
            os.close(files.pop(name))
    try:
        fd = files[name] = os.open(f"{name}/loop/backing_file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        try:
            return os.pread(fd, _PAGE_BYTES, 0)
        finally:
            if len(files) > limit:
                os.close(files.pop(name))
    except OSError as exc:
        if exc.errno in _GONE:
            return b""
        raise


# Most devices show the same in each round of the daemon.
@functools.lru_cache(maxsize=8192)
def _parse_backing(shown: bytes) -> LoopBacking:
    # The attribute ends with one newline of its own; a path may hold more.
    path = os.fsdecode(shown.removesuffix(b"\n"))
    return LoopBacking(path.removesuffix(_DELETED), path.endswith(_DELETED))


def loop_number(name: str) -> int | None:
    """Read the number in `loop3`; None: it is not the name of a loop device."""
    digits = name.removeprefix("loop")
    return int(digits) if digits != name and digits.isascii() and digits.isdigit() else None
