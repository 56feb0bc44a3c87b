"""Loop devices: bind an image, switch the backing live. Must not log, decide or mount.

What may block without a limit when the storage of a backing hangs: everything that takes a descriptor of an image, and
everything that opens /dev/loopN. The kernel asks the backing file for its attributes (LOOP_GET_STATUS64,
LOOP_CHANGE_FD: of the old file and of the new one) and waits for reads in flight, all under the device's mutex, which
open(2) of the device takes too. SIGKILL ends the wait for attributes and for the mutex, but not that for reads: call
these only where a lost thread or child does no harm. Binding another device and unmounting do not block.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from scratch_slurm.domain.errors import DeviceError, RetargetError
from scratch_slurm.node.kernel.loopsysfs import loop_number, read_loop_device

MAX_TAG_BYTES = 63  # LO_NAME_SIZE - 1

SECTOR_BYTES = 512  # of our devices: squashfs and erofs mount on it whatever the SSD's own is

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

_GONE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)
# Not ENOENT: the ioctl asks the backing file's storage, and that is its answer when the file was removed there.
_UNBOUND = (errno.ENXIO, errno.ENODEV)


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
    number = loop_number(name)
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
