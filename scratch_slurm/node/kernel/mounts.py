"""Mounts of images: mount, replace, unmount. Must not log, decide or touch loop devices.

What may block: `mount_image` and `replace_image` read from the device that they mount, uninterruptibly (not even
SIGKILL ends it) while its backing hangs: call them only where a lost thread or child does no harm. The others do not
block, nor does `replace_image` when only the old device hangs.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from scratch_slurm.domain.errors import DeviceError, ImageError, ScratchError
from scratch_slurm.node.kernel.mountinfo import read_stacks
from scratch_slurm.node.kernel.roots import open_root, probe_root

FsType = Literal["squashfs", "erofs"]
Probe = Callable[[int], None]

# The same on x86_64, aarch64, riscv64, ppc64le and s390x. Source: scripts/syscall.tbl
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
# include/uapi/linux/mount.h
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSMOUNT_CLOEXEC = 1
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR_NOSUID = 2
_MOUNT_ATTR_NODEV = 4
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MOVE_MOUNT_BENEATH = 0x200  # Linux 6.5
_OPEN_TREE_CLONE = 1
_AT_FDCWD = -100
_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

# What a file system answers at mount when the image, not the node, is wrong.
_BAD_IMAGE = frozenset(
    {errno.EINVAL, errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.EOVERFLOW, errno.EOPNOTSUPP}
)

# Of a mount point, with nothing mounted on it: now, and before.
_CLOSED = 0o000
_FORMER = 0o755

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def ensure_mount_point(path: Path) -> None:
    """Make a directory to mount on that nobody but root can enter, unless a directory is there already.

    With nothing mounted on it, it must not pass for an empty dataset: a job in a mount namespace of its own, or one
    that comes between two mounts, is told "Permission denied". One of an earlier release (mode 0755) is closed, too.

    Raises: DeviceError: a symlink or another file is in the way, or the directory above is missing.
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=_CLOSED)
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            _close(path)
    except OSError as exc:
        raise DeviceError(f"{path}: cannot make the mount point: {exc.strerror}") from exc
    if not stat.S_ISDIR(mode):
        what = "a symlink" if stat.S_ISLNK(mode) else "not a directory"
        raise DeviceError(f"{path}: the mount point is {what}", hint="move it away; nothing of it was changed")


def close_mount_points(directory: Path) -> None:
    """Close the mount points that an earlier release left open, below their mounts too; never blocks.

    Raises: DeviceError: the directory cannot be looked at, or the kernel shows no directory without its mounts (before
        Linux 5.2).
    """
    try:
        # A copy of the one mount that holds the directory: what is mounted on it is not there.
        bare = _syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(directory), _OPEN_TREE_CLONE | os.O_CLOEXEC)
        try:
            with os.scandir(f"/proc/self/fd/{bare}") as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            for name in names:
                with contextlib.suppress(OSError):
                    _close(Path(f"/proc/self/fd/{bare}/{name}"))
        finally:
            os.close(bare)
    except OSError as exc:
        raise DeviceError(f"{directory}: cannot look below its mounts: {exc.strerror}") from exc


def _close(path: Path) -> None:
    """Let nobody but root enter a directory as an earlier release made it: root's, empty, and open to all."""
    status = path.lstat()
    if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == _FORMER and not list(path.iterdir()):
        path.chmod(_CLOSED)


def mount_image(device_path: str, mount_point: Path, fs_type: FsType, *, probe: Probe | None = None) -> None:
    """Mount an image: read-only, nosuid, nodev, and seen by nobody before the probe has passed.

    Before Linux 5.2 the mount is seen while it is probed, and taken away when the probe fails.

    Args:
        device_path: `/dev/loop3`. A second mount of one device shares the first one's file system, errors and all.
        mount_point: an existing directory that is neither a symlink nor mounted on.
        probe: called with a descriptor of the root directory (O_PATH), `probe_root` unless given; what it raises
            goes through.
    Raises:
        ImageError: the image cannot be mounted, with the kernel's reason, or does not pass the probe.
        DeviceError: the mount point is not fit, or the kernel refuses.
    """
    probe = probe or probe_root
    with open_root(mount_point) as target:
        _refuse_mounted(target, mount_point)
        with _detached_mount(device_path, fs_type) as root:
            if root is None:
                _mount_and_probe(device_path, target, mount_point, fs_type, probe)
                return
            probe(root)
            try:
                _move_mount(root, target)
            except OSError as exc:
                raise DeviceError(f"{mount_point}: cannot mount {device_path} there: {exc.strerror}") from exc


def replace_image(
    device_path: str,
    mount_point: Path,
    fs_type: FsType,
    *,
    probe: Probe | None = None,
    before: Callable[[], None] = lambda: None,
) -> bool:
    """Put a new mount in the place of the one at `mount_point`; files open in the old one stay readable.

    The new one is probed unseen, slides beneath the old one (Linux 6.5), and then the old one is detached: the path
    is never empty. Where the kernel refuses that, the old one goes first and the path is empty for microseconds.

    Seen on Linux 6.18: the seamless way works under private and under shared parents ("/" under systemd); peers and
    slaves in other namespaces follow and never see an empty path either; a private copy of the mount in a stranger's
    namespace stays the old one. It works while the old device hangs.

    Killed in between it leaves both mounts, and readers meet the old one: `uncover` finishes that.

    Args: as for `mount_image`; `device_path` must be another device than the one mounted now.
        before: called after the probe, directly before the change; what it raises goes through, and nothing is changed.
    Returns: True: the path was never empty.
    Raises: as `mount_image`; the old mount is untouched unless the message says that it is gone.
    """
    probe = probe or probe_root
    with _detached_mount(device_path, fs_type) as root:
        if root is None:
            _replace_visibly(device_path, mount_point, fs_type, probe, before)
            return False
        probe(root)
        before()
        with open_root(mount_point) as old:
            beneath = _try_move_beneath(root, old)
        unmount(mount_point)
        if beneath:
            return True
        with _old_mount_gone(mount_point), open_root(mount_point) as target:
            _move_mount(root, target)
        return False


def uncover(mount_point: Path, device: str, *, before: Callable[[], None] = lambda: None) -> None:
    """Take the top mount off the path, so that the one beneath it is seen; files open in the top one stay readable.

    Args:
        device: `loop3`, of the mount beneath, which is probed before it is seen, at random places.
        before: as for `replace_image`.
    Raises: ImageError: the mount beneath cannot be read. DeviceError: it is not what lies beneath the top one.
    """
    stack = read_stacks(mount_point.parent).get(mount_point.name, [])
    if len(stack) < 2 or stack[-2].device != device:
        raise DeviceError(f"{mount_point}: {device} is not mounted beneath what is seen there")
    beneath: FsType = "erofs" if stack[-2].fs_type == "erofs" else "squashfs"
    # No path leads to what lies beneath; a second mount of its device is the same file system, errors and all.
    with _detached_mount(stack[-2].source, beneath) as root:
        if root is not None:
            probe_root(root, at_random=True)
        before()
        unmount(mount_point)


def unmount(mount_point: Path, *, lazy: bool = True) -> None:
    """Take the top mount off the path; lazily, it lives on for those who have files open in it.

    Raises: DeviceError: nothing is mounted there, or, when not lazy, it is busy.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(mount_point), flags) == 0:
        return
    code = ctypes.get_errno()
    why = "it is not a mount point" if code == errno.EINVAL else os.strerror(code)
    hint = f"`fuser -vm {mount_point}` shows who uses it" if code == errno.EBUSY else None
    raise DeviceError(f"{mount_point}: cannot unmount: {why}", hint=hint)


def _refuse_mounted(target_fd: int, mount_point: Path) -> None:
    path = Path(f"/proc/self/fd/{target_fd}").readlink()  # as mountinfo has it, symlinks above resolved
    if stack := read_stacks(path.parent).get(path.name):
        mount = stack[-1]
        raise DeviceError(f"{mount_point}: {mount.fs_type} of {mount.source} is mounted there already")


@contextlib.contextmanager
def _detached_mount(device_path: str, fs_type: FsType) -> Iterator[int | None]:
    """Mount an image without a path; None where the kernel has no such mounts (before Linux 5.2).

    Closing the descriptor, or death, takes the mount away unless it was moved to a path.
    """
    try:
        context = _syscall(_SYS_FSOPEN, fs_type.encode(), _FSOPEN_CLOEXEC)
    except OSError as exc:
        # Seccomp filters of older container run-times say EPERM for what they do not know.
        if exc.errno in (errno.ENOSYS, errno.EPERM):
            yield None
            return
        raise _mount_error(device_path, fs_type, exc, "") from exc
    try:
        try:
            _syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, b"source", os.fsencode(device_path), 0)
            _syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, b"ro", None, 0)
            _syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
            root = _syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
        except OSError as exc:
            raise _mount_error(device_path, fs_type, exc, _context_log(context)) from exc
    finally:
        os.close(context)
    try:
        yield root
    finally:
        os.close(root)


def _context_log(context: int) -> str:
    """Read the kernel's messages about a mount: `e squashfs: Can't find a SQUASHFS superblock on loop3`."""
    lines = []
    with contextlib.suppress(OSError):  # ENODATA: no more
        while line := os.read(context, 4096):
            lines.append(line.decode(errors="replace").strip()[2:])
    return "; ".join(lines)


def _mount_error(device_path: str, fs_type: str, exc: OSError, log: str) -> ScratchError:
    reason = log or exc.strerror
    if exc.errno in _BAD_IMAGE:
        return ImageError(f"{device_path}: cannot mount it as {fs_type}: {reason}")
    if exc.errno == errno.ENODEV:
        return DeviceError(f"{device_path}: this kernel has no {fs_type}", hint=f"modprobe {fs_type}")
    return DeviceError(f"{device_path}: cannot mount it as {fs_type}: {reason}")


def _mount_and_probe(device_path: str, target_fd: int, mount_point: Path, fs_type: FsType, probe: Probe) -> None:
    """Mount as before Linux 5.2: seen at once."""
    target = f"/proc/self/fd/{target_fd}".encode()
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    if _libc.mount(os.fsencode(device_path), target, fs_type.encode(), ctypes.c_ulong(flags), None) != 0:
        code = ctypes.get_errno()
        raise _mount_error(device_path, fs_type, OSError(code, os.strerror(code)), "")
    try:
        with open_root(mount_point) as root:
            probe(root)
    except BaseException:
        unmount(mount_point)
        raise


def _replace_visibly(
    device_path: str, mount_point: Path, fs_type: FsType, probe: Probe, before: Callable[[], None]
) -> None:
    """Replace as before Linux 5.2: tried on top of the old one, which is there still when the new one is no good."""
    with open_root(mount_point) as old:
        _mount_and_probe(device_path, old, mount_point, fs_type, probe)
    unmount(mount_point)
    before()
    unmount(mount_point)
    with _old_mount_gone(mount_point), open_root(mount_point) as target:
        _mount_and_probe(device_path, target, mount_point, fs_type, lambda root: None)


@contextlib.contextmanager
def _old_mount_gone(mount_point: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ScratchError) as exc:
        reason = exc.message if isinstance(exc, ScratchError) else exc.strerror
        raise DeviceError(f"{mount_point}: the old mount is gone, and the new one refused: {reason}") from exc


def _move_mount(root_fd: int, target_fd: int, flags: int = 0) -> None:
    flags |= _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _syscall(_SYS_MOVE_MOUNT, root_fd, b"", target_fd, b"", flags)


def _try_move_beneath(root_fd: int, old_root_fd: int) -> bool:
    try:
        _move_mount(root_fd, old_root_fd, _MOVE_MOUNT_BENEATH)
    except OSError:
        return False
    return True


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    """Call the kernel where libc has no name for it; the GIL is free meanwhile."""
    converted = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
