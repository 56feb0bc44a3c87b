"""Observe: what the kernel says now, and what a round knows of this node. Never touches the source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from scratch_slurm.domain.model import Backing, CachedImage, Pin
from scratch_slurm.domain.names import DATASET_NAME
from scratch_slurm.node.kernel import diskstats, loopsysfs, mountinfo
from scratch_slurm.node.staging.cache import CacheContents


@dataclass(frozen=True)
class KernelFiles:
    """Where the kernel tells what is mounted, bound and read."""

    mountinfo: Path = Path("/proc/self/mountinfo")
    diskstats: Path = Path("/proc/diskstats")
    block_devices: Path = loopsysfs.BLOCK_DEVICES


class SeenMount(msgspec.Struct, frozen=True):
    """A mount on a dataset's mount point."""

    dataset: str
    mount_id: int
    device: str | None
    """None: not a loop device, so not ours."""
    backing: Backing
    backing_path: str
    read_bytes: int
    """Read from the device since it was bound."""


@dataclass(frozen=True)
class DiskReading:
    """One look at one cache directory."""

    dir: str
    contents: CacheContents
    """Nothing, in no space, when the directory cannot be used; what was seen last when it is not known."""
    problem: str = ""
    """Why the directory cannot be used; empty when it can."""
    unknown: bool = False
    """It gives no answer, or could not be asked: nothing can be said of what it holds, and nothing done with it."""


@dataclass(frozen=True)
class Reading:
    """One look at this node."""

    mounted: Mapping[str, SeenMount]
    """On top of each dataset's mount point: what its readers meet."""
    disks: tuple[DiskReading, ...]
    held_bytes: Mapping[str, int]
    """Cache directory -> bytes of deleted cached images of it that a loop device still reads."""
    pins: tuple[Pin, ...]
    pins_problem: str = ""
    """Why `pins` are those that were read last, and others may be there by now; empty when they are as they are."""
    covered: Mapping[str, SeenMount] = field(default_factory=dict)
    """What lies directly beneath a dataset's mount, where a change of it was cut short."""

    @property
    def problem(self) -> str:
        """What is wrong with a part of this node; empty when nothing is."""
        problems = [*(disk.problem for disk in self.disks), self.pins_problem]
        return "; ".join(text for text in problems if text)

    @property
    def images(self) -> list[CachedImage]:
        """The cached images of all disks; of one that gives no answer those that were seen last."""
        return [image for disk in self.disks for image in disk.contents.images]


@dataclass(frozen=True)
class KernelReading:
    """What the kernel says."""

    mounted: Mapping[str, SeenMount]
    covered: Mapping[str, SeenMount]
    held_bytes: Mapping[str, int]
    """As in `Reading`."""


def read_kernel(
    mount_dir: Path,
    cache_dirs: Sequence[str],
    kept: dict[str, int] | None = None,
    kernel: KernelFiles = KernelFiles(),
    former_caches: tuple[str, ...] = (),
) -> KernelReading:
    """Look at mounts and devices.

    Args:
        kept: files that stay open from one look to the next, see `read_backings`.
        former_caches: cache directories of before: what a device reads there is no file of the source.
    Raises: ScratchError, OSError: /proc or /sys cannot be read.
    """
    backings = loopsysfs.read_backings(kernel.block_devices, kept)
    reads = diskstats.read_diskstats(kernel.diskstats)
    below_caches = tuple(f"{each}/" for each in (*cache_dirs, *former_caches))

    def see(name: str, mount: mountinfo.Mount) -> SeenMount:
        device = mount.device if mount.device in backings else None
        backing_path = backings[device].path if device else ""
        backing = Backing.CACHE if backing_path.startswith(below_caches) else Backing.SOURCE
        read_bytes = reads[device].bytes if device in reads else 0
        return SeenMount(name, mount.mount_id, device, backing, backing_path, read_bytes)

    stacks = mountinfo.read_stacks(mount_dir, kernel.mountinfo)
    datasets = {name: stack for name, stack in stacks.items() if DATASET_NAME.fullmatch(name)}
    mounted = {name: see(name, stack[-1]) for name, stack in datasets.items()}
    covered = {name: see(name, stack[-2]) for name, stack in datasets.items() if len(stack) > 1}
    held_bytes = dict.fromkeys(cache_dirs, 0)
    for name, each in backings.items():
        if each.deleted:
            for cache_dir in cache_dirs:
                if each.path.startswith(f"{cache_dir}/"):
                    device = loopsysfs.read_loop_device(name, kernel.block_devices)
                    held_bytes[cache_dir] += device.size_bytes if device else 0
    return KernelReading(mounted, covered, held_bytes)
