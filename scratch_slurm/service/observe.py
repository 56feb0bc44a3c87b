"""Observe: what the kernel says now, and what a round knows of this node. Never touches the source."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scratch_slurm.domain.backing import find_cache_dir
from scratch_slurm.domain.model import CachedImage, Pin
from scratch_slurm.domain.names import DATASET_NAME, parse_cached_file_name
from scratch_slurm.domain.sight import SeenMount
from scratch_slurm.node.kernel import diskstats, loopsysfs, mountinfo
from scratch_slurm.node.staging.cache import CacheContents


@dataclass(frozen=True)
class KernelFiles:
    """Where the kernel tells what is mounted, bound and read."""

    mountinfo: Path = Path("/proc/self/mountinfo")
    diskstats: Path = Path("/proc/diskstats")
    block_devices: Path = loopsysfs.BLOCK_DEVICES


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
    read_bytes: Mapping[str, int] = field(default_factory=dict)
    """Dataset -> what was read of its mount's device since that was made."""

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
    """What the kernel says; as in `Reading`."""

    mounted: Mapping[str, SeenMount]
    covered: Mapping[str, SeenMount]
    held_bytes: Mapping[str, int]
    read_bytes: Mapping[str, int]


class Kernel:
    """The kernel's files, looked at again and again. What did not change is the same object at the next look."""

    def __init__(self, files: KernelFiles | None = None) -> None:
        self._files = files or KernelFiles()
        self._open: dict[str, int] = {}
        """Files that stay open from one look to the next, see `read_backings`."""
        self._mountinfo = ("", "")
        """The text, and the directory that it was searched for."""
        self._stacks: Mapping[str, list[mountinfo.Mount]] = {}
        self._seen: dict[int, tuple[str, SeenMount]] = {}
        """By mount id, with the file that the kernel showed."""

    def read(self, mount_dir: Path, cache_dirs: Sequence[str], former_caches: tuple[str, ...] = ()) -> KernelReading:
        """Look at mounts and devices.

        Args:
            former_caches: cache directories of before: what a device reads there is no file of the source.
        Raises: ScratchError, OSError: /proc or /sys cannot be read.
        """
        backings = loopsysfs.read_backings(self._files.block_devices, self._open)
        reads = diskstats.read_diskstats(self._files.diskstats)
        all_dirs = (*cache_dirs, *former_caches)
        stacks, before = self._read_stacks(mount_dir), self._seen
        now: dict[int, tuple[str, SeenMount]] = {}

        def see(name: str, mount: mountinfo.Mount) -> SeenMount:
            device = mount.device
            bound = backings.get(device) if device else None
            path = bound.path if bound else ""
            was, seen = before.get(mount.mount_id, ("", None))
            if seen is None or was != path or seen.dataset != name or (seen.key or ("", None))[1] != device:
                key = (mount.mount_id, device) if bound and device else None
                disk = find_cache_dir(path, all_dirs)
                # Below a disk that somebody detached the kernel tells a path without the disk's mount point.
                is_copy = bool(disk) or parse_cached_file_name(path.rpartition("/")[2]) is not None
                seen = SeenMount(name, key, path if is_copy else "", disk)
            now[mount.mount_id] = (path, seen)
            return seen

        mounted = {name: see(name, stack[-1]) for name, stack in stacks.items()}
        covered = {name: see(name, stack[-2]) for name, stack in stacks.items() if len(stack) > 1}
        self._seen = now
        read_bytes = {
            name: reads[each.key[1]].bytes for name, each in mounted.items() if each.key and each.key[1] in reads
        }
        return KernelReading(mounted, covered, self._find_held(backings, cache_dirs), read_bytes)

    def _read_stacks(self, mount_dir: Path) -> Mapping[str, list[mountinfo.Mount]]:
        """Find what is mounted on the datasets' mount points. On most nodes nothing has changed since the last look."""
        shown = (mountinfo.read_text(self._files.mountinfo), os.path.realpath(mount_dir))
        if shown != self._mountinfo:
            stacks = mountinfo.parse_stacks(*shown)
            self._stacks = {name: stack for name, stack in stacks.items() if DATASET_NAME.fullmatch(name)}
            self._mountinfo = shown
        return self._stacks

    def _find_held(self, backings: Mapping[str, loopsysfs.LoopBacking], cache_dirs: Sequence[str]) -> dict[str, int]:
        held_bytes = dict.fromkeys(cache_dirs, 0)
        for name, each in backings.items():
            if each.deleted:
                cache_dir = find_cache_dir(each.path, cache_dirs)
                device = loopsysfs.read_loop_device(name, self._files.block_devices) if cache_dir else None
                if device:
                    held_bytes[cache_dir] += device.size_bytes
        return held_bytes
