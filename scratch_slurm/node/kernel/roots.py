"""The root directory of a mounted image: whom it lets in, and whether what is below can be read.

What may block, uninterruptibly, while the mount's backing hangs: the probes. Call them only where a lost thread or
child does no harm. Must not mount, log or decide.
"""

import contextlib
import itertools
import os
import random
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from scratch_slurm.domain.errors import DeviceError, ImageError
from scratch_slurm.domain.model import Permissions

_PROBE_ENTRIES = 64
# At random, each may lie in another block of a slow source: fewer of them, from among so many names in all.
_RANDOM_ENTRIES = 16
_RANDOM_NAMES = 1024


@contextlib.contextmanager
def open_root(path: Path) -> Iterator[int]:
    """Open a directory itself, or the root of what is mounted there, without reading it.

    Raises: DeviceError: it is gone, or a symlink.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        hint = "a symlink is refused" if path.is_symlink() else None
        raise DeviceError(f"{path}: cannot use it as mount point: {exc.strerror}", hint=hint) from exc
    try:
        yield fd
    finally:
        os.close(fd)


def read_root(mount_point: Path) -> Permissions:
    """Read the permissions of what is mounted at a path; the kernel has them in memory.

    Raises: DeviceError: the path is gone, or a symlink.
    """
    with open_root(mount_point) as root:
        return root_permissions(root)


def root_permissions(root_fd: int) -> Permissions:
    """Read the permissions of a mounted root directory from a descriptor of it.

    With an access control list the mode does not tell who gets in: it counts as open to all then.
    """
    status = os.fstat(root_fd)
    mode = stat.S_IMODE(status.st_mode)
    with contextlib.suppress(OSError):  # ENODATA: none; EOPNOTSUPP: the file system has no such lists, like squashfs
        os.getxattr(f"/proc/self/fd/{root_fd}", "system.posix_acl_access")
        mode |= 0o555
    return Permissions(status.st_uid, status.st_gid, mode)


def probe_root(root_fd: int, *, at_random: bool = False) -> None:
    """Read the first 64 inodes of a mounted image, breadth first, and look up a name that is not there.

    squashfs keeps an I/O error with the block of metadata it struck, even when the backing is well again; the
    error comes back for every name that needs the block and that the kernel had not in memory before.
    A dataset whose error lies in none of these passes.

    Args:
        at_random: read 16 inodes, others each time.
    Raises: ImageError: the file system answers with an error.
    """
    left = _RANDOM_ENTRIES if at_random else _PROBE_ENTRIES
    among = _RANDOM_NAMES if at_random else _PROBE_ENTRIES
    folders = deque(["."])
    while folders and left > 0:
        folder = folders.popleft()
        try:
            seen, names, below = _look_up(root_fd, folder, left, max(left, among))
        except OSError as exc:
            raise ImageError(
                f"{folder}: the mounted image cannot be read: {exc.strerror}",
                hint="squashfs keeps an I/O error until the image is mounted anew on another loop device",
            ) from exc
        left -= names
        among -= seen
        folders.extend(f"{folder}/{name}" for name in below)


def probe_mount(mount_point: Path) -> None:
    """Probe what is mounted at a path, at random places, as `probe_root` does.

    Raises: ImageError: it cannot be read. DeviceError: the path is not a directory.
    """
    with open_root(mount_point) as root:
        try:
            probe_root(root, at_random=True)
        except ImageError as exc:
            raise ImageError(f"{mount_point}: {exc.message}", hint=exc.hint) from exc


def _look_up(root_fd: int, folder: str, limit: int, among: int) -> tuple[int, int, list[str]]:
    """Read the inodes of `limit` of the first `among` names of a folder.

    Returns: how many names it has of these, how many inodes were read, and those of them that are folders.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        with os.scandir(fd) as entries:
            found = [entry.name for entry in itertools.islice(entries, among)]
        names = found if len(found) <= limit else random.sample(found, limit)
        below = [name for name in names if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)]
        # A name never asked for before reaches the folder's own blocks: memory cannot answer it.
        with contextlib.suppress(FileNotFoundError):
            os.stat(f".probe-{os.urandom(8).hex()}", dir_fd=fd, follow_symlinks=False)
        return len(found), len(names), below
    finally:
        os.close(fd)
