"""Act: how each action of a plan is carried out. Decides nothing."""

import asyncio
import logging
import time
from collections.abc import Callable

from scratch_slurm.domain import actions
from scratch_slurm.domain.access import too_open
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import (
    DeniedError,
    DiskError,
    ImageError,
    PinnedError,
    RetargetError,
    ScratchError,
    SourceError,
)
from scratch_slurm.domain.model import SourceImage
from scratch_slurm.domain.names import device_tag
from scratch_slurm.node.staging.cache import Cache
from scratch_slurm.service import operations as op
from scratch_slurm.service.ledger_side import LedgerSide
from scratch_slurm.service.memory import Copy, Memory
from scratch_slurm.service.turns import Turns
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

_CACHE_SLOTS = 2
"""Processes that write in the cache directory at once, beside the copies; all of them may hang."""
_DISCARD_S = 600.0
"""A large file is deleted slowly by some file systems, and without a sign of life."""


class Performer:
    """Carries out one action at a time for each dataset; the loop sees to that."""

    def __init__(self, config: Config, memory: Memory, cache: Cache, ledger: LedgerSide, workers: Workers) -> None:
        self._config = config
        self._memory = memory
        self._cache = cache
        self._ledger = ledger
        self._workers = workers
        self._cache_dir = str(cache.dir)
        self._cache_slots = asyncio.Semaphore(_CACHE_SLOTS)
        self._turns = Turns(config.copies)

    async def perform(self, action: actions.Action) -> None:
        """Do it, whole.

        Raises: ScratchError, OSError: it was not done; the dataset is served as before.
        """
        match action:
            case actions.Mount():
                await self._mount(action)
            case actions.Uncover():
                await self._uncover(action)
            case actions.Unmount():
                await self._unmount(action)
            case actions.Retarget():
                await self._retarget(action)
            case actions.Stage():
                await self._stage(action)
            case actions.Evict():
                await self._evict(action)
            case actions.DropStaged():
                staged = action.staged
                await self._change_cache(
                    action.dataset, op.DropPartial(self._cache_dir, staged.dataset, staged.generation_id)
                )
                await self._record("dropped", action.dataset, action.reason)

    async def _run(
        self,
        dataset: str,
        request: op.Request,
        copy: Copy | None = None,
        on_line: Callable[[op.Line], None] | None = None,
        *,
        silence_s: float | None = None,
        takes_slot: bool = True,
    ) -> None:
        silence_s = silence_s or self._config.source_timeout_s

        def on_hang() -> None:
            self._memory.hanging_since[dataset] = time.time() - silence_s
            log.warning("hangs dataset=%s request=%s", dataset, type(request).__name__)

        try:
            await self._workers.run(
                request,
                silence_s=silence_s,
                on_line=_follow(copy) if copy else on_line,
                on_hang=on_hang,
                takes_slot=takes_slot and copy is None,
            )
        finally:
            self._memory.hanging_since.pop(dataset, None)

    async def _record(self, event: str, dataset: str, reason: str, **numbers: int) -> None:
        figures = "".join(f" {name}={number}" for name, number in numbers.items())
        log.info("%s dataset=%s%s reason=%r", event, dataset, figures, reason)
        await self._ledger.record(event, dataset=dataset, detail=reason + figures)

    async def _mount(self, action: actions.Mount) -> None:
        replace = isinstance(action, actions.Replace)
        mend = isinstance(action, actions.Mend)
        ledger_path = self._unless_pinned(even_pinned=mend or not replace)
        try:
            await self._show(action.image, action.backing_path, replace=replace, ledger_path=ledger_path)
        except DeniedError as exc:
            root = self._memory.roots.get(action.image.generation.id)
            if root is None or not too_open(root, action.image.permissions):
                raise  # its file was changed since it was listed
            # From now on it is known what is in it: it counts as skipped, and is not tried again as it is.
            await self._record("refused", action.dataset, exc.message)
            return
        except (ImageError, DiskError) as exc:
            if action.backing_path != action.image.path:
                self._memory.bad_copies[action.backing_path] = exc.message
            raise
        event = "mended" if mend else "replaced" if replace else "mounted"
        await self._record(event, action.dataset, action.reason)

    async def _show(self, image: SourceImage, backing_path: str, *, replace: bool, ledger_path: str = "") -> None:
        request = op.MountImage(
            image=image,
            backing_path=backing_path,
            mount_point=str(self._config.mount_dir / image.dataset),
            tag=device_tag(image.generation.id),
            replace=replace,
            ledger_path=ledger_path,
        )

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.Root):
                self._memory.roots[image.generation.id] = line.permissions

        await self._run(image.dataset, request, on_line=on_line)

    def _unless_pinned(self, *, even_pinned: bool) -> str:
        """Say in a request where the worker looks for pins, directly before a mount goes; empty: it need not.

        A job that pinned by then keeps what it found: PinnedError. One that pins in the very moment of the change is
        not told to start before it is over: its prolog's question is answered after (`StatusView.is_changing_hands`).
        """
        return "" if even_pinned else str(self._config.ledger_path)

    async def _uncover(self, action: actions.Uncover) -> None:
        mount_point = str(self._config.mount_dir / action.dataset)
        ledger_path = self._unless_pinned(even_pinned=action.even_pinned)
        await self._run(action.dataset, op.UncoverMount(mount_point, action.device, ledger_path))
        await self._record("uncovered", action.dataset, action.reason)

    async def _unmount(self, action: actions.Unmount) -> None:
        mount_point = str(self._config.mount_dir / action.dataset)
        ledger_path = self._unless_pinned(even_pinned=action.even_pinned)
        await self._run(action.dataset, op.UnmountImage(mount_point, ledger_path))
        await self._record("unmounted", action.dataset, action.reason)

    async def _retarget(self, action: actions.Retarget) -> None:
        try:
            await self._run(action.dataset, op.SwitchBacking(action.device, action.backing_path, action.expected))
        except (RetargetError, SourceError) as exc:
            # The kernel asks the old backing before it switches: one that is dead or was replaced under us refuses, or
            # hangs. A fresh device with the same bytes, mounted in the old one's place, serves whoever opens a file
            # from now on; it is also what heals squashfs, which remembers an I/O error until it is mounted anew.
            if action.image is None:
                raise
            await self._show(action.image, action.backing_path, replace=True)
            await self._record("replaced", action.dataset, f"{action.reason}, and the switch failed: {exc.message}")
            return
        await self._record("retargeted", action.dataset, action.reason)

    async def _stage(self, action: actions.Stage) -> None:
        image, generation_id = action.image, action.image.generation.id
        copy = self._memory.copies[action.dataset]
        request = op.CopyImage(
            image=image,
            staging_path=str(self._cache.part_path(image.dataset, generation_id)),
            readers=self._config.readers,
            bandwidth_bytes_per_s=self._config.bandwidth_bytes_per_s,
        )
        async with self._turns.take(preheat=action.preheat):
            copy.started_at = time.monotonic()
            log.info("staging dataset=%s bytes=%d reason=%r", image.dataset, image.size_bytes, action.reason)
            await self._run(action.dataset, request, copy)
        elapsed_s = time.monotonic() - copy.started_at
        await self._change_cache(action.dataset, op.PublishCopy(self._cache_dir, image.dataset, generation_id))
        await self._record(
            "staged", image.dataset, action.reason, bytes=image.size_bytes, milliseconds=round(elapsed_s * 1000)
        )

    async def _evict(self, action: actions.Evict) -> None:
        if action.device is not None:
            assert action.source is not None, "a device is switched back before its cached image goes"
            request = op.SwitchBacking(action.device, action.source.path, action.source.generation)
            await self._run(action.dataset, request)
        await self._delete(action)
        self._memory.bad_copies.pop(action.image.path, None)  # the next copy has its name
        await self._record("evicted", action.dataset, action.reason, freed_bytes=action.image.size_bytes)

    async def _delete(self, action: actions.Evict) -> None:
        """Take the image out of service, see whether a pin came meanwhile, and only then delete it.

        Nobody holds the ledger while the disk is written: it may hang. A pin that was there before the second look
        finds its image restored; one that comes after it finds none any more. Its prolog is not told to start before
        that is settled (`StatusView.is_changing_hands`).

        Raises: PinnedError: a pin came first. The next plan switches back to the cache.
        """
        image = action.image
        if not action.outdated:
            await self._refuse_evicting_pinned(action)
        try:
            await self._change_cache(action.dataset, op.RetireImage(self._cache_dir, image))
            if not action.outdated:
                await self._refuse_evicting_pinned(action)
            await self._change_cache(action.dataset, op.DiscardImage(self._cache_dir, image), silence_s=_DISCARD_S)
        except ScratchError:
            # Whichever step failed, or was done all the same by a process that was killed while it hung.
            await self._change_cache(action.dataset, op.RestoreImage(self._cache_dir, image))
            raise

    async def _refuse_evicting_pinned(self, action: actions.Evict) -> None:
        pins = await self._ledger.pins()
        if any(pin.dataset == action.dataset and pin.holder not in action.discounted for pin in pins):
            raise PinnedError(f"{action.dataset}: was pinned while its eviction began")

    async def _change_cache(self, dataset: str, request: op.OnCache, *, silence_s: float | None = None) -> None:
        """Write in the cache directory, in one of a few processes: its disk may hang."""
        async with self._cache_slots:
            await self._run(dataset, request, silence_s=silence_s, takes_slot=False)


def _follow(copy: Copy) -> Callable[[op.Line], None]:
    def on_line(line: op.Line) -> None:
        if isinstance(line, op.Copied):
            copy.progress(line.bytes_done, line.phase)

    return on_line
