"""The daemon's side to the cache directory: it is looked at in bounded time, prepared whenever it must be."""

import asyncio
import logging
import time
from dataclasses import dataclass

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.node.staging.cache import CacheContents
from scratch_slurm.service import operations as op
from scratch_slurm.service.cache_look import NO_CONTENTS
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

_PATIENCE_S = 6.0


@dataclass(frozen=True)
class CacheReading:
    """One look at the cache directory."""

    contents: CacheContents
    """Nothing, in no space, when the directory cannot be used; what was seen last when it is not known."""
    problem: str = ""
    """Why the directory cannot be used; empty when it can."""
    unknown: bool = False
    """It gives no answer, or could not be asked: nothing can be said of what it holds, and nothing done with it."""


class CacheSide:
    """Looks at the cache directory for the rounds. One look is under way at most: one that hangs is waited for."""

    def __init__(self, config: Config, workers: Workers) -> None:
        self.warning = ""
        """Why the cache had better lie elsewhere; empty when it lies well, or not at all."""
        self._config = config
        self._dir = str(config.cache_dir)
        self._workers = workers
        self._last = NO_CONTENTS
        self._prepared: op.Identity | None = None
        self._hanging: asyncio.Task[None] | None = None
        self._hanging_since = ""

    async def look(self) -> CacheReading:
        """Read what is there, in bounded time."""
        if self._hanging is not None:
            return self._unknown(f"gives no answer since {self._hanging_since}")
        seen: list[op.CacheSeen] = []
        hangs = asyncio.Event()

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.CacheSeen):
                seen.append(line)

        task = asyncio.create_task(
            self._workers.run(
                op.LookAtCache(
                    self._dir, self._prepared, self._config.disks[0].mount, self._config.cache_on_any_file_system
                ),
                silence_s=_PATIENCE_S,
                on_line=on_line,
                on_hang=hangs.set,
                takes_slot=False,
            )
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
        """Leave what hangs to the kernel."""
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

    def _unknown(self, why: str) -> CacheReading:
        return CacheReading(self._last, f"{self._dir}: {why}", unknown=True)

    def _take(self, seen: op.CacheSeen) -> CacheReading:
        if seen.prepared is None:
            self.warning = ""
        elif seen.prepared != self._prepared:
            log.info("cache ready cache_dir=%s free_bytes=%d", self._dir, seen.contents.free_bytes)
            self.warning = seen.warning
            if seen.warning:
                log.warning("cache misplaced reason=%r", seen.warning)
        self._prepared = seen.prepared
        self._last = seen.contents
        return CacheReading(seen.contents, seen.problem)
