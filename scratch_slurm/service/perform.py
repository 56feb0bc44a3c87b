"""Act: how each action of a plan is carried out. Decides nothing."""

import asyncio
import logging
import time
from collections.abc import Callable

from scratch_slurm.domain import actions
from scratch_slurm.domain.access import too_open
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DeniedError, ImageError, PinnedError, RetargetError, SourceError
from scratch_slurm.domain.model import SourceImage
from scratch_slurm.domain.names import device_tag
from scratch_slurm.node.cache import Cache
from scratch_slurm.node.ledger import Ledger
from scratch_slurm.service import operations as op
from scratch_slurm.service.memory import Copy, Memory
from scratch_slurm.service.turns import Turns
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)


class Performer:
    """Carries out one action at a time for each dataset; the loop sees to that."""

    def __init__(self, config: Config, memory: Memory, cache: Cache, ledger: Ledger, workers: Workers) -> None:
        self._config = config
        self._memory = memory
        self._cache = cache
        self._ledger = ledger
        self._workers = workers
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
                await asyncio.to_thread(self._cache.drop_partial, staged.dataset, staged.generation_id)
                await self._record("dropped", action.dataset, action.reason)

    async def _run(
        self,
        dataset: str,
        request: op.Request,
        copy: Copy | None = None,
        on_line: Callable[[op.Line], None] | None = None,
    ) -> None:
        def on_hang() -> None:
            self._memory.hanging_since[dataset] = time.time() - self._config.source_timeout_s
            log.warning("hangs dataset=%s request=%s", dataset, type(request).__name__)

        try:
            await self._workers.run(
                request,
                silence_s=self._config.source_timeout_s,
                on_line=_follow(copy) if copy else on_line,
                on_hang=on_hang,
                takes_slot=copy is None,
            )
        finally:
            self._memory.hanging_since.pop(dataset, None)

    async def _record(self, event: str, dataset: str, reason: str, **numbers: int) -> None:
        figures = "".join(f" {name}={number}" for name, number in numbers.items())
        log.info("%s dataset=%s%s reason=%r", event, dataset, figures, reason)
        await asyncio.to_thread(self._ledger.record, event, dataset=dataset, detail=reason + figures)

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
        except ImageError as exc:
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
        await asyncio.to_thread(self._cache.publish, image.dataset, generation_id)
        await self._record(
            "staged", image.dataset, action.reason, bytes=image.size_bytes, milliseconds=round(elapsed_s * 1000)
        )

    async def _evict(self, action: actions.Evict) -> None:
        if action.device is not None:
            assert action.source is not None, "a device is switched back before its cached image goes"
            request = op.SwitchBacking(action.device, action.source.path, action.source.generation)
            await self._run(action.dataset, request)
        await asyncio.to_thread(self._delete, action)
        self._memory.bad_copies.pop(action.image.path, None)  # the next copy has its name
        await self._record("evicted", action.dataset, action.reason, freed_bytes=action.image.size_bytes)

    def _delete(self, action: actions.Evict) -> None:
        """Take the image out of service unless a pin came first, then delete it.

        Raises: PinnedError: a pin came first. The next plan switches back to the cache.
        """
        image = action.image
        if action.outdated or (action.discounted and self._only_discounted(action)):
            self._cache.withdraw(image)
        elif not self._ledger.remove_unless_pinned(image.dataset, lambda: self._cache.withdraw(image)):
            raise PinnedError(f"{image.dataset}: was pinned while its eviction began")
        self._cache.discard(image)

    def _only_discounted(self, action: actions.Evict) -> bool:
        pins = self._ledger.pins()
        return all(pin.holder in action.discounted for pin in pins if pin.dataset == action.dataset)


def _follow(copy: Copy) -> Callable[[op.Line], None]:
    def on_line(line: op.Line) -> None:
        if isinstance(line, op.Copied):
            copy.progress(line.bytes_done, line.phase)

    return on_line
