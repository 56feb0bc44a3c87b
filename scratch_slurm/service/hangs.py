"""Turn a source that hangs below a reader into one that fails, where the site says so (`source_abort`).

A read of a mounted image waits for its loop device uninterruptibly: the job cannot be ended, and Slurm drains the node.
Only the end of what the device waits for helps. On FUSE that is the end of its connection: reads fail, jobs can be
ended, and when the site has mounted the source anew the mounts are mended.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scratch_slurm.domain.backing import find_cache_dir
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DeviceError
from scratch_slurm.domain.sight import MountKey
from scratch_slurm.node.kernel import diskstats, fuse, loopsysfs, mountinfo
from scratch_slurm.service.events import CutOff

log = logging.getLogger(__name__)


@dataclass
class Stalls:
    """Finds devices that have reads under way and have finished none for a while. Pure.

    Args:
        limit_s: for how long, seconds.
    """

    limit_s: float
    _since: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Device -> the reads that it had finished, and since when it has finished no more."""

    def sample(self, reads: Mapping[str, diskstats.DiskReads], now: float) -> list[str]:
        """Take the counters of the devices that matter; returns those that stall, each time they do.

        Args:
            now: monotonic seconds.
        """
        since = {}
        for device, each in reads.items():
            if each.under_way:
                before = self._since.get(device)
                since[device] = before if before and before[0] == each.reads else (each.reads, now)
        self._since = since
        return [device for device, (_, at) in since.items() if now - at >= self.limit_s]


class SourceAbort:
    """Watches the devices that read the source, and ends the FUSE connection below one that stalls.

    Args:
        tell: called with each mount that was cut off.
        abort: ends a connection.
    """

    def __init__(
        self, config: Config, tell: Callable[[CutOff], None], *, abort: Callable[[int], None] = fuse.abort
    ) -> None:
        self._config = config
        self._tell = tell
        self._abort = abort
        self._stalls = Stalls(config.source_abort_s)
        self._told: set[str] = set()

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            try:
                for dataset, mount in await asyncio.to_thread(self.look):
                    self._tell(CutOff(dataset, mount, "its source gave no answer, and its connection was ended"))
            except DeviceError as exc:
                log.warning("cannot watch the source problem=%r", exc.message)
            await asyncio.sleep(max(0.2, self._config.source_abort_s / 4))

    def look(self) -> list[tuple[str, MountKey]]:
        """Look once.

        Returns: the datasets, with their mounts that have nothing to read any more.
        Raises: DeviceError: the kernel does not tell.
        """
        stacks = mountinfo.read_stacks(self._config.mount_dir)
        backings = loopsysfs.read_backings()
        mounts = {mount.device: (name, mount.mount_id) for name, stack in stacks.items() for mount in stack}
        paths = {device: backings[device].path for device in mounts if device in backings}
        caches = self._config.cache_dirs
        reading = {device: path for device, path in paths.items() if device and not find_cache_dir(path, caches)}
        reads = {name: each for name, each in diskstats.read_diskstats().items() if name in reading}
        stalled = {reading[name] for name in self._stalls.sample(reads, time.monotonic())}
        self._told &= stalled
        ended = tuple(f"{point}/" for path in stalled for point in self._end(path))
        cut_off = [device for device, path in reading.items() if path.startswith(ended)]
        return [(mounts[device][0], (mounts[device][1], device)) for device in cut_off]

    def _end(self, path: str) -> list[str]:
        """Returns: where what was ended is mounted."""
        new = path not in self._told
        self._told.add(path)
        waited_s = self._config.source_abort_s
        mount = mountinfo.find_mount(path, mountinfo.read_mounts())
        if mount is None or not fuse.is_fuse(mount.fs_type):
            if new:
                log.error(
                    "hangs source=%s reason=%r", path, f"no answer for {waited_s:g} s, and not FUSE: nothing to end"
                )
            return []
        try:
            self._abort(mount.number)
        except DeviceError as exc:
            if new:
                log.error("hangs source=%s problem=%r", path, str(exc))
            return []
        log.error(
            "aborted source=%s fs_type=%s mount_point=%s reason=%r",
            path, mount.fs_type, mount.mount_point, f"no answer for {waited_s:g} s (source_abort)",
        )  # fmt: skip
        return [mount.mount_point]
