"""The daemon's side to its disks: each cache directory is looked at in bounded time, and prepared when it must be."""

import asyncio
import logging
import time

from scratch_slurm.domain.config import CacheDisk, Config
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.service import operations as op
from scratch_slurm.service.cache_look import NO_CONTENTS
from scratch_slurm.service.observe import DiskReading
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

_PATIENCE_S = 6.0
_AT_ONCE = 2
"""Looks at once: as many as worker processes are kept idle."""


class Disks:
    """Looks at all cache directories for the rounds. One that fails or hangs keeps nobody from the others."""

    def __init__(self, config: Config, workers: Workers) -> None:
        any_file_system = config.cache_on_any_file_system
        self._sides = [_DiskSide(disk, workers, any_file_system=any_file_system) for disk in config.disks]
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why a cache had better lie elsewhere; of those that lie well, or not at all, nothing."""
        return tuple(side.warning for side in self._sides if side.warning)

    async def look(self) -> tuple[DiskReading, ...]:
        """Read what is there, in bounded time; in the order of the configuration."""

        async def look(side: "_DiskSide") -> DiskReading:
            if side.is_hanging:  # takes no time
                return await side.look()
            async with self._turns:
                return await side.look()

        readings = await asyncio.gather(*(look(side) for side in self._sides))
        first: dict[int, str] = {}
        return tuple(
            self._refuse_twin(side, reading, first) for side, reading in zip(self._sides, readings, strict=True)
        )

    def close(self) -> None:
        """Leave what hangs to the kernel."""
        for side in self._sides:
            side.close()

    def _refuse_twin(self, side: "_DiskSide", reading: DiskReading, first: dict[int, str]) -> DiskReading:
        """Use no file system twice: its free space would be promised twice."""
        if reading.problem or side.file_system is None:
            return reading
        other = first.setdefault(side.file_system, reading.dir)
        if other == reading.dir:
            return reading
        problem = f"{reading.dir}: is on the same file system as {other}, and cannot be a disk of its own"
        return DiskReading(reading.dir, NO_CONTENTS, problem)


class _DiskSide:
    """One look is under way at most: one that hangs is waited for."""

    def __init__(self, disk: CacheDisk, workers: Workers, *, any_file_system: bool) -> None:
        self.warning = ""
        """Why the cache had better lie elsewhere; empty when it lies well, or not at all."""
        self._disk = disk
        self._dir = str(disk.dir)
        self._any_file_system = any_file_system
        self._workers = workers
        self._last = NO_CONTENTS
        self._prepared: op.Identity | None = None
        self._hanging: asyncio.Task[None] | None = None
        self._hanging_since = ""

    @property
    def is_hanging(self) -> bool:
        return self._hanging is not None

    @property
    def file_system(self) -> int | None:
        """The device number of the directory that was prepared; None: there is none."""
        return self._prepared[0][0] if self._prepared else None

    async def look(self) -> DiskReading:
        if self._hanging is not None:
            return self._unknown(f"gives no answer since {self._hanging_since}")
        seen: list[op.CacheSeen] = []
        hangs = asyncio.Event()

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.CacheSeen):
                seen.append(line)

        request = op.LookAtCache(self._dir, self._prepared, self._disk.mount, self._any_file_system)
        task = asyncio.create_task(
            self._workers.run(request, silence_s=_PATIENCE_S, on_line=on_line, on_hang=hangs.set, takes_slot=False)
        )
        told = asyncio.create_task(hangs.wait())
        try:
            await asyncio.wait([task, told], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            told.cancel()
        if not task.done():
            self._wait_for(task)
            return self._unknown(f"gives no answer since {self._hanging_since}")
        try:
            task.result()
        except ScratchError as exc:
            return self._unknown(exc.message)
        return self._take(seen[-1])

    def close(self) -> None:
        if self._hanging is not None:
            self._hanging.cancel()

    def _wait_for(self, task: asyncio.Task[None]) -> None:
        self._hanging = task
        self._hanging_since = time.strftime("%H:%M:%S", time.localtime(time.time() - _PATIENCE_S))

        def on_gone(done: asyncio.Task[None]) -> None:
            self._hanging = None
            if not done.cancelled():
                done.exception()

        task.add_done_callback(on_gone)

    def _unknown(self, why: str) -> DiskReading:
        return DiskReading(self._dir, self._last, f"{self._dir}: {why}", unknown=True)

    def _take(self, seen: op.CacheSeen) -> DiskReading:
        if seen.prepared is None:
            self.warning = ""
        elif seen.prepared != self._prepared:
            log.info("cache ready cache_dir=%s free_bytes=%d", self._dir, seen.contents.free_bytes)
            self.warning = seen.warning
            if seen.warning:
                log.warning("cache misplaced reason=%r", seen.warning)
        self._prepared = seen.prepared
        self._last = seen.contents
        return DiskReading(self._dir, seen.contents, seen.problem)
