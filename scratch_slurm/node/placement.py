"""Where the cache directory lies: what is mounted there, and what should be. Must not judge."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from scratch_slurm.domain.placement import Place, on_the_way, parse_fstab, parse_mount_unit
from scratch_slurm.node.kernel.mountinfo import read_mounts

FSTAB = Path("/etc/fstab")
# Where the site's own units are. Those that distributions ship (tmp.mount in /usr/lib) say nothing of this node.
UNIT_DIRS = tuple(Path(path) for path in ("/etc/systemd/system", "/run/systemd/system"))
_MASK = Path("/dev/null")


def read_place(
    cache_dir: Path,
    cache_mount: str = "",
    *,
    fstab: Path = FSTAB,
    unit_dirs: Sequence[Path] = UNIT_DIRS,
) -> Place:
    """Look where the cache directory lies; may block with its disk.

    Args:
        cache_dir: with links resolved; it need not be there, its parent must.
        cache_mount: the mount point that the site names; empty: none.
    Raises: OSError: there is neither the directory nor its parent. DeviceError: /proc does not tell.
    """
    mounts = {mount.mount_id: mount for mount in read_mounts()}
    mounted = {mount.mount_point for mount in mounts.values()}
    named = dict.fromkeys(on_the_way(_read_units(unit_dirs), str(cache_dir)), "a mount unit of systemd")
    named |= dict.fromkeys(on_the_way(_read_fstab(fstab), str(cache_dir)), str(fstab))
    if cache_mount:
        named |= {os.path.realpath(cache_mount): "cache_mount"}
    here = mounts.get(_mount_id(cache_dir))
    return Place(
        fs_type=here.fs_type if here else "unknown",
        on_root=here is not None and here.mount_point == "/",
        missing={point: who for point, who in named.items() if point not in mounted},
    )


def _mount_id(cache_dir: Path) -> int:
    """Tell the mount that a directory, or the place where it would be, lies on. Source: proc_pid_fdinfo(5)"""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        descriptor = os.open(cache_dir, flags)
    except FileNotFoundError:
        descriptor = os.open(cache_dir.parent, flags)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    return next((int(line.partition(":")[2]) for line in lines if line.startswith("mnt_id:")), -1)


def _read_fstab(path: Path) -> list[str]:
    try:
        return parse_fstab(os.fsdecode(path.read_bytes()))
    except OSError:
        return []


def _read_units(folders: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for folder in folders:
        with contextlib.suppress(OSError):
            names += [path.name for path in folder.iterdir() if not _is_masked(path)]
    return [point for point in map(parse_mount_unit, names) if point]


def _is_masked(unit: Path) -> bool:
    return unit.is_symlink() and unit.readlink() == _MASK
