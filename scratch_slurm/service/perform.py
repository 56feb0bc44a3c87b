"""Act: how each action of a plan is carried out. Decides nothing."""

import logging
import time
from collections.abc import Callable, Iterable

from scratch_slurm.domain import actions
from scratch_slurm.domain.access import too_open
from scratch_slurm.domain.backing import FromCopy, FromSource
from scratch_slurm.domain.claims import find_keepers
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.dataset import Card
from scratch_slurm.domain.errors import (
    DeniedError,
    DiskError,
    ImageError,
    PinnedError,
    RetargetError,
    ScratchError,
    SourceError,
)
from scratch_slurm.domain.model import Permissions
from scratch_slurm.service.events import BadCopy, CopyStarted, Event
from scratch_slurm.service.hands import Hands, LedgerAccess
from scratch_slurm.service.turns import Turns

log = logging.getLogger(__name__)


class Performer:
    """Carries out one action at a time for each dataset; the rounds see to that.

    Args:
        tell: takes `CopyStarted` and `BadCopy`.
        gate: gives the root directory of a dataset's generation, where it is known.
    """

    def __init__(
        self,
        config: Config,
        ledger: LedgerAccess,
        hands: Hands,
        *,
        tell: Callable[[Event], None],
        gate: Callable[[str, str], Permissions | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._gate = gate
        self._ledger = ledger
        self._hands = hands
        self._config = config
        self._monotonic = monotonic
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
                disk = staged.disk or self._config.cache_dirs[0]
                await self._hands.drop(staged.dataset, staged.made_as or staged.generation_id, disk)
                await self._record("dropped", action.dataset, action.reason)

    async def take_back(self, cards: Iterable[Card]) -> None:
        """Take claims back whose users may not read the dataset."""
        for card, claim in ((each, claim) for each in cards for claim in each.claims if not claim.stands):
            holder, detail = str(claim.holder), f"uid={claim.uid} may not read the image: {card.permissions}"
            try:
                taken = await self._ledger.release(holder, [card.name], event="refused", detail=detail)
            except ScratchError as exc:
                log.warning("cannot take back pins problem=%r", str(exc))  # they do not count all the same
                return
            if taken:
                log.warning("refused dataset=%s holder=%s reason=%r", card.name, holder, detail)

    async def _record(self, event: str, dataset: str, reason: str, **numbers: int) -> None:
        figures = "".join(f" {name}={number}" for name, number in numbers.items())
        log.info("%s dataset=%s%s reason=%r", event, dataset, figures, reason)
        await self._ledger.record(event, dataset=dataset, detail=reason + figures)

    async def _mount(self, action: actions.Mount) -> None:
        replace = isinstance(action, actions.Replace)
        mend = isinstance(action, actions.Mend)
        despite = action.despite if isinstance(action, actions.Replace) else None
        try:
            await self._hands.show(action.image, action.backing, replace=replace, despite=despite)
        except DeniedError as exc:
            root = self._gate(action.dataset, action.image.generation.id)
            if root is None or not too_open(root, action.image.permissions):
                raise  # its file was changed since it was listed
            # From now on it is known what is in it: it counts as skipped, and is not tried again as it is.
            await self._record("refused", action.dataset, exc.message)
            return
        except (ImageError, DiskError) as exc:
            if isinstance(action.backing, FromCopy):
                self._tell(BadCopy(action.dataset, action.backing.copy.path, exc.message))
            raise
        event = "mended" if mend else "replaced" if replace else "mounted"
        await self._record(event, action.dataset, action.reason)

    async def _uncover(self, action: actions.Uncover) -> None:
        await self._hands.uncover(action.dataset, action.device, despite=action.despite)
        await self._record("uncovered", action.dataset, action.reason)

    async def _unmount(self, action: actions.Unmount) -> None:
        await self._hands.unmount(action.dataset, despite=action.despite)
        await self._record("unmounted", action.dataset, action.reason)

    async def _retarget(self, action: actions.Retarget) -> None:
        try:
            await self._hands.switch(action.dataset, action.device, action.backing)
        except (RetargetError, SourceError) as exc:
            # The kernel asks the old backing before it switches: one that is dead or was replaced under us refuses, or
            # hangs. A fresh device with the same bytes, mounted in the old one's place, serves whoever opens a file
            # from now on; it is also what heals squashfs, which remembers an I/O error until it is mounted anew.
            if action.image is None:
                raise
            await self._hands.show(action.image, action.backing, replace=True)
            await self._record("replaced", action.dataset, f"{action.reason}, and the switch failed: {exc.message}")
            return
        await self._record("retargeted", action.dataset, action.reason)

    async def _stage(self, action: actions.Stage) -> None:
        image, disk = action.image, action.disk or self._config.cache_dirs[0]
        async with self._turns.take(preheat=action.preheat):
            started_at = self._monotonic()
            self._tell(CopyStarted(image.dataset, started_at))
            log.info("staging dataset=%s bytes=%d reason=%r", image.dataset, image.size_bytes, action.reason)
            await self._hands.copy(image, disk)
        elapsed_s = self._monotonic() - started_at
        await self._hands.publish(image.dataset, image.generation.id, disk)
        await self._record(
            "staged", image.dataset, action.reason, bytes=image.size_bytes, milliseconds=round(elapsed_s * 1000)
        )

    async def _evict(self, action: actions.Evict) -> None:
        await self._keep_pinned(action)
        if action.back_to is not None:
            await self._hands.switch(action.dataset, action.back_to.device, FromSource(action.back_to.image))
        await self._delete(action)
        await self._record("evicted", action.dataset, action.reason, freed_bytes=action.image.size_bytes)

    async def _delete(self, action: actions.Evict) -> None:
        """Take the image out of service, see whether a pin came since the first look, and only then delete it.

        Nobody holds the ledger while the disk is written: it may hang. A pin that was there before the second look
        finds its image restored; one that comes after it finds none any more. Its prolog is not told to start before
        that is settled (`StatusView.is_changing_hands`).

        Raises: PinnedError: a pin came first. The next plan switches back to the cache.
        """
        image = action.image
        try:
            await self._hands.retire(image)
            await self._keep_pinned(action)
            await self._hands.discard(image)
        except ScratchError:
            # Whichever step failed, or was done all the same by a process that was killed while it hung.
            await self._hands.restore(image)
            raise

    async def _keep_pinned(self, action: actions.Evict) -> None:
        if action.despite is None:
            return
        holders = [pin.holder for pin in await self._ledger.pins() if pin.dataset == action.dataset]
        keepers = find_keepers(holders, action.despite)
        if keepers:
            raise PinnedError(f"{action.dataset}: was pinned by {', '.join(keepers)} while its eviction began")
