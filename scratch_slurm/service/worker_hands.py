"""The hands of a real node: worker processes for all that may block for ever, a thread for the kernel's files."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from scratch_slurm.domain.actions import Despite
from scratch_slurm.domain.backing import Backing
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DaemonError
from scratch_slurm.domain.model import CachedImage, SourceImage
from scratch_slurm.domain.names import device_tag, parse_device_tag
from scratch_slurm.node.staging.cache import Cache
from scratch_slurm.service import operations as op
from scratch_slurm.service.calls import Calls
from scratch_slurm.service.disks import Disks
from scratch_slurm.service.events import Answers, Event, Gate, Hangs, Progress
from scratch_slurm.service.hands import Tag
from scratch_slurm.service.observe import DiskReading, Kernel, KernelFiles, KernelReading
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

_KERNEL_PATIENCE_S = 30.0
_NAME_SERVICE_PATIENCE_S = 10.0
_CACHE_SLOTS = 2
"""Processes that write in the cache directory at once, beside the copies; all of them may hang."""
_DISCARD_S = 600.0
"""A large file is deleted slowly by some file systems, and without a sign of life."""


class WorkerHands:
    """See `Hands`.

    Args:
        former_caches: cache directories of before: what a device reads there is no file of the source.
    """

    def __init__(
        self,
        config: Config,
        workers: Workers,
        *,
        former_caches: Callable[[], tuple[str, ...]] = tuple,
        kernel: KernelFiles | None = None,
    ) -> None:
        self.tell: Callable[[Event], None] = lambda event: None
        self._config = config
        self._workers = workers
        self._former_caches = former_caches
        self._disks = Disks(config, workers)
        self._cache_slots = asyncio.Semaphore(_CACHE_SLOTS)
        self._kernel = Kernel(kernel)
        self._kernel_calls = Calls("the kernel", error=DaemonError, patience_s=_KERNEL_PATIENCE_S)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What had better be otherwise, although all goes on."""
        return self._disks.warnings

    async def look_at_kernel(self) -> KernelReading:
        config, former = self._config, self._former_caches()
        return await self._kernel_calls.run(lambda: self._kernel.read(config.mount_dir, config.cache_dirs, former))

    async def look_at_disks(self) -> tuple[DiskReading, ...]:
        return await self._disks.look()

    async def identify(self, dataset: str, device: str, *, mounted: bool) -> Tag:
        tags: list[op.Tag] = []

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.Tag):
                tags.append(line)

        request = op.ReadTag(device, self._mount_point(dataset) if mounted else "")
        await self._run(dataset, request, on_line=on_line)
        return Tag(parse_device_tag(tags[-1].text), tags[-1].root)

    async def probe(self, dataset: str, device: str, copy_path: str) -> None:
        await self._run(dataset, op.ProbeMount(device, self._mount_point(dataset), copy_path))

    async def groups_of(self, uid: int) -> frozenset[int]:
        told: list[op.Groups] = []

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.Groups):
                told.append(line)

        silence_s = _NAME_SERVICE_PATIENCE_S
        await self._workers.run(op.ReadGroups(uid), silence_s=silence_s, on_line=on_line, takes_slot=False)
        return frozenset(told[-1].gids)

    async def show(self, image: SourceImage, backing: Backing, *, replace: bool, despite: Despite = None) -> None:
        generation_id = image.generation.id

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.Root):
                self.tell(Gate(image.dataset, generation_id, line.permissions))

        request = op.MountImage(
            image=image,
            backing=backing,
            mount_point=self._mount_point(image.dataset),
            tag=device_tag(generation_id),
            replace=replace,
            ledger_path=self._ledger_path(despite),
            despite=tuple(despite or ()),
        )
        await self._run(image.dataset, request, on_line=on_line)

    async def switch(self, dataset: str, device: str, backing: Backing) -> None:
        await self._run(dataset, op.SwitchBacking(device, backing))

    async def uncover(self, dataset: str, device: str, *, despite: Despite) -> None:
        ledger_path, holders = self._ledger_path(despite), tuple(despite or ())
        await self._run(dataset, op.UncoverMount(self._mount_point(dataset), device, ledger_path, holders))

    async def unmount(self, dataset: str, *, despite: Despite) -> None:
        ledger_path, holders = self._ledger_path(despite), tuple(despite or ())
        await self._run(dataset, op.UnmountImage(self._mount_point(dataset), ledger_path, holders))

    async def copy(self, image: SourceImage, cache_dir: str) -> None:
        dataset = image.dataset

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.Copied):
                self.tell(Progress(dataset, line.bytes_done, line.phase))

        request = op.CopyImage(
            image=image,
            staging_path=str(Cache(Path(cache_dir)).part_path(dataset, image.generation.id)),
            readers=self._config.readers,
            bandwidth_bytes_per_s=self._config.bandwidth_bytes_per_s,
        )
        await self._run(dataset, request, on_line=on_line, takes_slot=False)

    async def publish(self, dataset: str, generation_id: str, cache_dir: str) -> None:
        await self._change_cache(dataset, op.PublishCopy(cache_dir, dataset, generation_id))

    async def drop(self, dataset: str, generation_id: str, cache_dir: str) -> None:
        await self._change_cache(dataset, op.DropPartial(cache_dir, dataset, generation_id))

    async def retire(self, image: CachedImage) -> None:
        await self._change_cache(image.dataset, op.RetireImage(_cache_dir(image), image))

    async def restore(self, image: CachedImage) -> None:
        await self._change_cache(image.dataset, op.RestoreImage(_cache_dir(image), image))

    async def discard(self, image: CachedImage) -> None:
        await self._change_cache(image.dataset, op.DiscardImage(_cache_dir(image), image), silence_s=_DISCARD_S)

    def close(self) -> None:
        self._disks.close()

    def _mount_point(self, dataset: str) -> str:
        return str(self._config.mount_dir / dataset)

    def _ledger_path(self, despite: Despite) -> str:
        """Where the worker looks for pins, directly before a mount goes; empty: it need not.

        A job that pinned by then keeps what it found. One that pins in the very moment of the change is not told to
        start before it is over: its prolog's question is answered after (`StatusView.is_changing_hands`).
        """
        return "" if despite is None else str(self._config.ledger_path)

    async def _change_cache(self, dataset: str, request: op.OnCache, *, silence_s: float | None = None) -> None:
        """Write in the cache directory, in one of a few processes: its disk may hang."""
        async with self._cache_slots:
            await self._run(dataset, request, silence_s=silence_s, takes_slot=False)

    async def _run(
        self,
        dataset: str,
        request: op.Request,
        *,
        on_line: Callable[[op.Line], None] | None = None,
        silence_s: float | None = None,
        takes_slot: bool = True,
    ) -> None:
        limit_s = silence_s or self._config.source_timeout_s
        hung = False

        def on_hang() -> None:
            nonlocal hung
            hung = True
            log.warning("hangs dataset=%s request=%s", dataset, type(request).__name__)
            self.tell(Hangs(dataset, time.time() - limit_s))

        try:
            await self._workers.run(request, silence_s=limit_s, on_line=on_line, on_hang=on_hang, takes_slot=takes_slot)
        finally:
            if hung:
                self.tell(Answers(dataset))


def _cache_dir(image: CachedImage) -> str:
    return str(Path(image.path).parent)
