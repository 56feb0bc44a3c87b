"""Observe: what the kernel, the cache directory and the ledger say now. Never touches the source."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scratch_slurm.domain.model import Backing, Pin
from scratch_slurm.domain.names import DATASET_NAME
from scratch_slurm.node import diskstats, loopdev, mounts
from scratch_slurm.node.cache import Cache, CacheContents
from scratch_slurm.node.ledger import Ledger


@dataclass(frozen=True)
class SeenMount:
    """What is mounted on top of a dataset's mount point."""

    dataset: str
    mount_id: int
    device: str | None
    """None: not a loop device, so not ours."""
    backing: Backing
    backing_path: str
    read_bytes: int
    """Read from the device since it was bound."""


@dataclass(frozen=True)
class Reading:
    """One look at this node."""

    mounted: Mapping[str, SeenMount]
    cache: CacheContents
    held_bytes: int
    """Of deleted cached images that a loop device still reads."""
    pins: tuple[Pin, ...]


def read_node(mount_dir: Path, cache: Cache, ledger: Ledger) -> Reading:
    """Look at mounts, devices, cache and pins.

    Raises: ScratchError, OSError: /proc, /sys, the cache directory or the ledger cannot be read.
    """
    devices = {device.name: device for device in loopdev.read_loop_devices()}
    reads = diskstats.read_diskstats()
    mounted: dict[str, SeenMount] = {}
    for mount in mounts.read_mounts():
        path = Path(mount.mount_point)
        if path.parent != mount_dir or not DATASET_NAME.fullmatch(path.name):
            continue
        device = devices.get(mount.device or "")
        backing_path = device.backing_path if device else ""
        backing = Backing.CACHE if Path(backing_path).is_relative_to(cache.dir) else Backing.SOURCE
        read_bytes = reads[device.name].bytes if device and device.name in reads else 0
        # Of several mounts on one path the last is on top.
        mounted[path.name] = SeenMount(
            path.name, mount.mount_id, device.name if device else None, backing, backing_path, read_bytes
        )
    held_bytes = sum(
        device.size_bytes
        for device in devices.values()
        if device.deleted and Path(device.backing_path).is_relative_to(cache.dir)
    )
    return Reading(mounted, cache.read(), held_bytes, tuple(ledger.pins()))
