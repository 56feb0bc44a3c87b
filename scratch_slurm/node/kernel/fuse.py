"""The end of a FUSE connection, through the control file system. Nothing here touches what is mounted, or blocks."""

import ctypes
import os
import re
from pathlib import Path

from scratch_slurm.domain.errors import DeviceError

CONNECTIONS = Path("/sys/fs/fuse/connections")

_FUSE = re.compile(r"fuse(\..*)?|fuseblk", re.ASCII)

_libc = ctypes.CDLL(None, use_errno=True)


def is_fuse(fs_type: str) -> bool:
    """Tell whether a file system of this type, as mountinfo has it, has a FUSE connection."""
    return _FUSE.fullmatch(fs_type) is not None


def abort(number: int, connections: Path = CONNECTIONS) -> None:
    """End a FUSE connection: whatever waits for its server fails at once, and so does everything after.

    Mounts the control file system where nobody has; systemd does on all nodes.

    Args:
        number: the file system's device number, as st_dev has it.
    Raises: DeviceError: there is no such connection, or the kernel refuses.
    Source: Documentation/filesystems/fuse.rst, "Control filesystem"; fuse_ctl_add_conn() in fs/fuse/control.c.
    """
    file = connections / str(number) / "abort"
    try:
        if not file.exists():
            _mount_control(connections)
        file.write_text("1")
    except OSError as exc:
        raise DeviceError(f"{file}: cannot end the FUSE connection: {exc.strerror}") from exc


def _mount_control(connections: Path) -> None:
    if _libc.mount(b"fusectl", os.fsencode(connections), b"fusectl", ctypes.c_ulong(0), None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
