"""Who owns a cluster's directory: a lock that the head's init holds for life."""

import fcntl
import os
import secrets
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.local_cluster import kernel
from tests.local_cluster.errors import AlreadyRunsError, ClusterError

_LOCK_NAME: Final = ".scratch-slurm-local-cluster"

# Below the range that the kernel hands to outgoing connections (32768 and up), so that nothing takes a
# port between its choice and its use.
_PORTS: Final = range(20000, 32000)


@dataclass(frozen=True)
class Claim:
    """A locked directory.

    Args:
        directory: real path of the directory.
        created: this claim made the directory.
        lock_fd: descriptor that holds the lock; close it to give the directory up.
    """

    directory: Path
    created: bool
    lock_fd: int


def claim_directory(directory: Path | None) -> Claim:
    """Take a directory for a new cluster: a fresh one below /tmp, or the given one.

    What a cluster left there that was killed whole (kill -9 of its init, power cut) is cleared away.

    Raises:
        AlreadyRunsError: a cluster runs there.
        ClusterError: the directory has other files, or belongs to another user.
    """
    if directory is None:
        made = Path(tempfile.mkdtemp(prefix="scratch-slurm-")).resolve()
        made.chmod(0o755)
        return Claim(made, created=True, lock_fd=_lock(made))
    try:
        directory.mkdir(mode=0o755)
        created = True
    except FileExistsError:
        created = False
    except OSError as exc:
        raise ClusterError(f"{directory}: cannot be made: {exc.strerror}") from exc
    _check_owner(directory)
    resolved = directory.resolve()
    if not created and any(resolved.iterdir()) and not (resolved / _LOCK_NAME).exists():
        raise ClusterError(f"{directory}: is neither empty nor a cluster's directory")
    lock_fd = _lock(resolved)
    try:
        resolved.chmod(0o755)
        # Only a cluster that was killed whole leaves its lock behind.
        created = _clear_remains(resolved) or created
    except BaseException:
        os.close(lock_fd)
        raise
    return Claim(resolved, created, lock_fd)


def is_running(directory: Path) -> bool:
    """Tell whether a cluster runs, or is being started or stopped, in `directory`."""
    try:
        fd = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _check_owner(directory: Path) -> None:
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ClusterError(f"{directory}: is not a directory of uid {os.geteuid()}")
    if status.st_mode & 0o022:
        raise ClusterError(f"{directory}: others may write there, which munge refuses")


def _lock(directory: Path) -> int:
    path = directory / _LOCK_NAME
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise AlreadyRunsError(f"{directory}: a cluster runs there already") from None
        # The cluster before may have removed the file between open and lock.
        try:
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


def _clear_remains(directory: Path) -> bool:
    """Clear what a dead cluster left in `directory`; tell whether that cluster had made the directory."""
    state = directory / "cluster.json"
    made_directory = state.exists() and '"remove_directory": true' in state.read_text()
    left = kernel.mounts_under(directory)
    if left:
        raise ClusterError(f"{directory}: still has mounts: {', '.join(left)}")
    kernel.release_loops(kernel.loops_under(directory))
    kernel.remove_files(directory, except_name=_LOCK_NAME)
    return made_directory


def choose_ports(count: int) -> list[int]:
    """Find `count` neighbouring TCP ports that nobody on this machine uses.

    Raises: ClusterError: after 100 tries there are none.
    """
    for _ in range(100):
        first = _PORTS.start + secrets.randbelow(len(_PORTS) - count)
        ports = list(range(first, first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise ClusterError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
