"""Loop devices: find the bound ones, bind an image, switch the backing live. Must not log, decide or mount.

What may block without a limit when the storage of a backing hangs: everything that takes a descriptor of an image, and
everything that opens /dev/loopN. The kernel asks the backing file for its attributes (LOOP_GET_STATUS64,
LOOP_CHANGE_FD: of the old file and of the new one) and waits for reads in flight, all under the device's mutex, which
open(2) of the device takes too. SIGKILL ends the wait for attributes and for the mutex, but not that for reads: call
these only where a lost thread or child does no harm. `read_backings` and `read_loop_device` read sysfs alone and
never block. Binding another device and unmounting do not block either.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from scratch_slurm.domain.errors import DeviceError, RetargetError

TAG_PREFIX = "scratch-slurm:"
MAX_TAG_BYTES = 63  # LO_NAME_SIZE - 1

SECTOR_BYTES = 512  # of sysfs sizes, and of our devices: squashfs and erofs mount on it whatever the SSD's own is

# include/uapi/linux/loop.h
_LOOP_MAJOR = 7
_LOOP_SET_FD = 0x4C00
_LOOP_CLR_FD = 0x4C01
_LOOP_SET_STATUS64 = 0x4C04
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CHANGE_FD = 0x4C06
_LOOP_SET_DIRECT_IO = 0x4C08
_LOOP_CONFIGURE = 0x4C0A  # Linux 5.8
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
# struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encryption (2), flags, names, key, init.
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
# struct loop_config: fd, block_size, struct loop_info64, reserved.
_CONFIG = struct.Struct(f"=II{_INFO.size}s64s")

# Another program can take the free device between LOOP_CTL_GET_FREE and our binding.
_ATTACH_ATTEMPTS = 32
_ATTACH_PAUSE_S = 0.01

# /sys/block has links into it, which take half as long again to follow.
BLOCK_DEVICES = Path("/sys/devices/virtual/block")

_DELETED = " (deleted)"
_PAGE_BYTES = 4096  # the most that an attribute of sysfs holds
_GONE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)
# Not ENOENT: the ioctl asks the backing file's storage, and that is its answer when the file was removed there.
_UNBOUND = (errno.ENXIO, errno.ENODEV)


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


@dataclass(frozen=True)
class LoopStatus:
    """What only LOOP_GET_STATUS64 tells: the tag given at `attach`, and the backing file's identity.

    `device` and `inode` compare with st_dev and st_ino.
    """

    tag: str
    inode: int
    device: int


class AttachedDevice:
    """A device just bound. It stays open, and so bound, until `close`; a mount keeps it bound from then on."""

    def __init__(self, name: str, path: str, fd: int, *, direct_io: bool) -> None:
        self.name = name
        self.path = path
        self.fd = fd
        self.direct_io = direct_io

    def close(self) -> None:
        """Let go of the device: without a mount on it the kernel unbinds it now."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> "AttachedDevice":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def device_tag(dataset: str) -> str:
    """Name a dataset's tag: the prefix and the dataset, shortened with a digest where it does not fit."""
    tag = TAG_PREFIX + dataset
    if len(tag) <= MAX_TAG_BYTES:
        return tag
    import hashlib  # rarely needed, and the hooks, which import this module, start with every job

    digest = hashlib.blake2s(dataset.encode(), digest_size=6).hexdigest()
    return f"{tag[: MAX_TAG_BYTES - 1 - len(digest)]}~{digest}"


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
            names = [name for name in os.listdir(folder) if _loop_number(name) is not None]  # noqa: PTH208 - of a descriptor
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
        size_bytes=size * SECTOR_BYTES,
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


def _parse_backing(shown: bytes) -> LoopBacking:
    # The attribute ends with one newline of its own; a path may hold more.
    path = os.fsdecode(shown.removesuffix(b"\n"))
    return LoopBacking(path.removesuffix(_DELETED), path.endswith(_DELETED))


def read_status(name: str) -> LoopStatus | None:
    """Read a device's tag and its backing file's identity; None when it is not bound.

    Blocks while the backing file's storage hangs. `device` is the file system's as stat(2) gives it.

    Raises: DeviceError: the kernel refuses.
    """
    info = bytearray(_INFO.size)
    try:
        with _opened(name) as fd:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
    except OSError as exc:
        if exc.errno in _UNBOUND:
            return None
        raise DeviceError(f"{name}: cannot read its status: {exc.strerror}") from exc
    fields = _INFO.unpack(info)
    return LoopStatus(tag=fields[9].split(b"\0", 1)[0].decode(errors="replace"), inode=fields[1], device=fields[0])


def attach(image_fd: int, *, tag: str, direct_io: bool, sleep: Callable[[float], None] = time.sleep) -> AttachedDevice:
    """Bind an image to a free loop device: read-only, unbound by itself when its last user goes, 512-byte blocks.

    May block while the image's storage hangs.

    Args:
        image_fd: the image, open for reading; the device keeps its own reference.
        tag: at most 63 bytes; kept by the device through every switch, see `read_status`.
        direct_io: bypass the page cache for the backing; without a word the device is buffered where the file
            system does not take direct reads of 512 bytes.
        sleep: called between two attempts when another program took the free device.
    Raises: DeviceError: no free device, or the kernel refuses the image.
    """
    name_bytes = tag.encode()
    if len(name_bytes) > MAX_TAG_BYTES or b"\0" in name_bytes:
        raise ValueError(f"loop device tag {tag!r} is longer than {MAX_TAG_BYTES} bytes or holds a NUL")
    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
    if direct_io and _takes_direct_io(image_fd):
        flags |= _LO_FLAGS_DIRECT_IO
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name_bytes, b"", b"", 0, 0)
    for attempt in range(_ATTACH_ATTEMPTS):
        if attempt:
            sleep(_ATTACH_PAUSE_S)
        name = _free_device()
        try:
            fd = _open_device(name)
        except OSError as exc:
            if exc.errno in _GONE:  # removed meanwhile (LOOP_CTL_REMOVE)
                continue
            raise DeviceError(f"{name}: cannot open it: {exc.strerror}") from exc
        try:
            _bind(fd, image_fd, info)
        except OSError as exc:
            os.close(fd)
            if exc.errno == errno.EBUSY:
                continue
            raise DeviceError(
                f"{name}: cannot bind the image: {exc.strerror}", hint="an image is a regular file, open for reading"
            ) from exc
        bound = read_loop_device(name)
        return AttachedDevice(name, f"/dev/{name}", fd, direct_io=bound is not None and bound.direct_io)
    raise DeviceError(
        f"loop devices: other programs took the free one {_ATTACH_ATTEMPTS} times",
        hint="`losetup -l` and `fuser /dev/loop*` show who uses them",
    )


def retarget(name: str, image_fd: int, *, direct_io: bool = False) -> None:
    """Switch a bound device to another copy of its image, under mounts and open files.

    The kernel asks for the same size (in sectors) of the new file and of the old one *as it is now*: an old backing
    that was truncated or deleted on a network file system meanwhile refuses every switch, and the mount needs a
    fresh device. The statistics and the tag go on. Blocks while the old or the new backing hangs, with or without a
    read in flight: the way out is a fresh device on the copy, mounted in the old one's place.

    Args:
        name: `loop3`.
        image_fd: the other copy, open for reading.
        direct_io: as in `attach`; for the new backing.
    Raises: RetargetError: the device keeps its old backing.
    """
    direct_io = direct_io and _takes_direct_io(image_fd)
    before = read_loop_device(name)
    was_direct = before is not None and before.direct_io
    try:
        with _opened(name) as fd:
            # Off before, on after: no backing ever sees direct reads that it may refuse (EIO would poison squashfs).
            if was_direct and not direct_io:
                fcntl.ioctl(fd, _LOOP_SET_DIRECT_IO, 0)
            try:
                fcntl.ioctl(fd, _LOOP_CHANGE_FD, image_fd)
            except OSError:
                if was_direct and not direct_io:
                    _set_direct_io(fd)
                raise
            if direct_io:
                _set_direct_io(fd)
    except OSError as exc:
        raise _retarget_error(name, image_fd, exc) from exc


def detach(name: str) -> None:
    """Unbind a device now, or, while something has it open or mounted, as soon as the last user goes.

    A device that is not bound is no error. Raises: DeviceError: the kernel refuses.
    """
    try:
        with _opened(name) as fd:
            fcntl.ioctl(fd, _LOOP_CLR_FD, 0)
    except OSError as exc:
        if exc.errno not in _GONE:
            raise DeviceError(f"{name}: cannot unbind it: {exc.strerror}") from exc


def _retarget_error(name: str, image_fd: int, exc: OSError) -> RetargetError:
    device = read_loop_device(name)
    if device is None:
        return RetargetError(f"{name}: cannot switch: the device is not bound")
    new_bytes = os.fstat(image_fd).st_size
    sizes = f"the device has {device.size_bytes} bytes, the new image {new_bytes}"
    if exc.errno != errno.EINVAL:
        return RetargetError(f"{name}: cannot switch: {exc.strerror}; {sizes}")
    if not device.read_only:
        return RetargetError(f"{name}: cannot switch: the device is not read-only; {sizes}")
    if device.size_bytes != new_bytes // SECTOR_BYTES * SECTOR_BYTES:
        return RetargetError(
            f"{name}: cannot switch to an image of another size: {sizes}",
            hint="only a copy of the same image can take over; another version needs a new mount",
        )
    return RetargetError(
        f"{name}: cannot switch although the size is right: {sizes}",
        hint="the old backing changed or vanished while in use: mount the dataset anew",
    )


def _bind(fd: int, image_fd: int, info: bytes) -> None:
    try:
        fcntl.ioctl(fd, _LOOP_CONFIGURE, _CONFIG.pack(image_fd, SECTOR_BYTES, info, b""))
    except OSError as exc:
        if exc.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
        _bind_in_two_steps(fd, image_fd, info)


def _bind_in_two_steps(fd: int, image_fd: int, info: bytes) -> None:
    """Bind as before Linux 5.8. A kill between the two steps leaves a device without tag and auto-clear."""
    fcntl.ioctl(fd, _LOOP_SET_FD, image_fd)  # read-only, as `fd` is
    try:
        fcntl.ioctl(fd, _LOOP_SET_STATUS64, info)
        if _INFO.unpack(info)[8] & _LO_FLAGS_DIRECT_IO:  # SET_STATUS64 ignores it
            _set_direct_io(fd)
    except OSError:
        fcntl.ioctl(fd, _LOOP_CLR_FD, 0)
        raise


def _set_direct_io(fd: int) -> None:
    with contextlib.suppress(OSError):  # a buffered device serves the same bytes
        fcntl.ioctl(fd, _LOOP_SET_DIRECT_IO, 1)


def _takes_direct_io(image_fd: int) -> bool:
    """Try one direct read as the device would make it.

    The kernel checks only that the file system knows O_DIRECT at all; some want whole pages and answer EINVAL at
    the first read, which the mounted file system then sees as EIO.
    """
    try:
        fd = os.open(f"/proc/self/fd/{image_fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as view, view[:SECTOR_BYTES] as sector:
            return os.preadv(fd, [sector], SECTOR_BYTES) == SECTOR_BYTES
    except OSError:
        return False
    finally:
        os.close(fd)


def _free_device() -> str:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            return f"loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        finally:
            os.close(control)
    except OSError as exc:
        hint = "modprobe loop" if exc.errno in _GONE else None
        raise DeviceError(f"/dev/loop-control: no free loop device: {exc.strerror}", hint=hint) from exc


@contextlib.contextmanager
def _opened(name: str) -> Iterator[int]:
    fd = _open_device(name)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_device(name: str) -> int:
    """Open /dev/loopN, making the node where no udev does (containers). Read-only: udev stays quiet."""
    number = _loop_number(name)
    if number is None:
        raise ValueError(f"{name!r} is not the name of a loop device")
    path = f"/dev/{name}"
    # Not the number itself where the module parameter max_part is set.
    major, minor = (int(part) for part in Path(f"/sys/block/{name}/dev").read_text().split(":"))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISBLK(found.st_mode) or found.st_rdev != os.makedev(major, minor):
        os.close(fd)
        raise DeviceError(f"{path}: not the node of device {major}:{minor}", hint="remove it; udev or we make it anew")
    return fd


def _loop_number(name: str) -> int | None:
    digits = name.removeprefix("loop")
    return int(digits) if digits != name and digits.isascii() and digits.isdigit() else None
