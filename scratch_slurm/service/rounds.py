"""The rounds: see, fold, plan, start. One task decides; what it starts never holds it up."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from scratch_slurm.domain import actions, planner
from scratch_slurm.domain.actions import ActionKind
from scratch_slurm.domain.claims import Claim, judge, parse_holder
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.dataset import Card, Failure, Node, Reads, fail
from scratch_slurm.domain.errors import DaemonError, DigestError, DiskError, PinnedError, ScratchError
from scratch_slurm.domain.model import Catalog, Permissions
from scratch_slurm.domain.planner import Plan
from scratch_slurm.service.cards import fold, see
from scratch_slurm.service.events import Begun, Claimed, Ended, Event, Failed, Hangs, HeldOff, Read, Succeeded
from scratch_slurm.service.hands import Hands, LedgerAccess
from scratch_slurm.service.health import Health
from scratch_slurm.service.identify import Identifier
from scratch_slurm.service.observe import Reading
from scratch_slurm.service.people import People
from scratch_slurm.service.perform import Performer
from scratch_slurm.service.reads import Counters
from scratch_slurm.service.shunned import Shunned
from scratch_slurm.service.sights import find_sights
from scratch_slurm.service.space import find_disks, find_max_pinned_bytes, find_overhead_bytes

log = logging.getLogger(__name__)

_GATHER_S = 0.02
LIMIT_S = 60.0
"""No step of a round takes so long."""
_MOUNTS_AT_ONCE = 16
"""New datasets whose mount has begun: twice as many as worker processes. The next one is chosen when one of them is
done, so that a job's dataset need not wait for a thousand others that were new before it was asked for."""
_LAST_WORDS_S = 2.0
_NOT_READ = Reads()


@dataclass(frozen=True)
class Snapshot:
    """The latest round, for status: what was seen of the node, and what was decided from the cards."""

    node: Node
    plan: Plan
    catalog: Catalog
    """What the source held, as far as it was known."""


class Rounds:
    """Runs rounds: at each interval, when something it started has ended, and when somebody nudges it.

    Args:
        catalog: gives what is known of the source.
        counters: of an earlier daemon of this boot.
        monotonic: seconds.
        sleep: waits for so many of them.
    """

    def __init__(
        self,
        config: Config,
        hands: Hands,
        ledger: LedgerAccess,
        catalog: Callable[[], Catalog],
        counters: Counters | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.cards: dict[str, Card] = {}
        """By dataset, with all that was learned up to now."""
        self.counters = counters or Counters(config.period_s)
        self.started_at = time.time()
        self.snapshot: Snapshot | None = None
        self.problem = ""
        """Why the latest round could not be carried out, or not as usual; empty when it was."""
        self.people = People(hands, on_news=self.nudge, monotonic=monotonic)
        self._config = config
        self._hands = hands
        hands.tell = self.tell
        self._ledger = ledger
        self._catalog = catalog
        self._monotonic = monotonic
        self._sleep = sleep
        self._performer = Performer(config, ledger, hands, tell=self.tell, gate=self._gate_of, monotonic=monotonic)
        self._identifier = Identifier(hands, self.tell, sleep=sleep)
        self._health = Health(hands, self.tell, interval_s=config.interval_s)
        self._works: dict[str, asyncio.Task[ScratchError | None]] = {}
        """Dataset -> what is under way with it."""
        self._actions_ended = 0
        """How many, so far."""
        self._shunned = Shunned(monotonic)
        self._nudged = asyncio.Event()
        self._begun = 0
        self._ended = 0
        self._rested_at = 0.0
        self._sign_due = monotonic() + LIMIT_S
        """By when the rounds give the next sign that they go on, monotonic seconds."""
        self._round_ended = asyncio.Condition()

    # What others ask of the rounds.

    def nudge(self) -> None:
        """Ask for a round now."""
        self._nudged.set()

    async def after_next_round(self) -> None:
        """Return when a round that began after this call has ended."""
        wanted = self._begun + 1
        self.nudge()
        async with self._round_ended:
            await self._round_ended.wait_for(lambda: self._ended >= wanted)

    async def wait_for_change(self) -> None:
        """Return when the next round has ended, whatever causes it."""
        async with self._round_ended:
            await self._round_ended.wait()

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way with any dataset."""
        return bool(self._works)

    async def see_at_rest(self, dataset: str) -> Node:
        """Return what a round saw of the node once nothing was under way with a dataset.

        Raises: DaemonError: this node cannot be observed.
        """
        while True:
            await self.after_next_round()
            work = self._works.get(dataset)
            if work is None:
                return self.latest().node
            await asyncio.wait([work])

    def latest(self) -> Snapshot:
        """Raises: DaemonError: there is none, as this node cannot be observed."""
        if self.snapshot is None:
            raise DaemonError(f"this node cannot be observed: {self.problem}")
        return self.snapshot

    async def do(self, action: actions.Action) -> None:
        """Do what no plan asked for, while nothing is under way with the dataset; returns when it is done.

        Raises: ScratchError: it was not done.
        """
        self._start(action)
        work = self._works[action.dataset]
        await asyncio.wait([work])
        failure = None if work.cancelled() else work.result()
        if failure:
            raise failure

    def hold_off(self, dataset: str) -> None:
        """Let no throughput bring a dataset back for a while: the administrator evicted it."""
        self.tell(HeldOff(dataset, self._monotonic() + self._config.period_s))

    def has_mounted_all(self) -> bool:
        """Whether every image that was known in the latest round is mounted, skipped, failed, or gives no answer."""
        return (
            self.snapshot is not None
            and not any(action.kind is ActionKind.MOUNT for action in self.snapshot.plan.actions)
            and not self._mounts_begun()
        )

    def stalled(self) -> str:
        """Tell what does not go on although it should; empty when all does."""
        late_s = self._monotonic() - self._sign_due
        return f"no round goes on since {late_s:.0f} s" if late_s > 0 else ""

    def tell(self, event: Event) -> None:
        """Take in what was learned of a dataset."""
        name = event.dataset
        staging = self.cards[name].staging if name in self.cards else None
        if isinstance(event, Hangs) and staging is not None:
            self._shunned.add(staging.disk)
        self.cards[name] = fold(self.cards.get(name) or Card(name), event)

    # The rounds.

    async def run(self) -> None:
        """Run rounds for ever; ends only when cancelled."""
        while True:
            await self._pause()
            self._nudged.clear()
            self._begun += 1
            await self.run_once()
            self._ended = self._begun
            self._rested_at = self._monotonic() + _GATHER_S
            async with self._round_ended:
                self._round_ended.notify_all()

    async def close(self) -> None:
        """Stop what is under way; all mounts go on serving."""
        works = list(self._works.values())
        for work in works:
            work.cancel()
        if works:
            await asyncio.wait(works, timeout=_LAST_WORDS_S)
        self._hands.close()
        self.people.close()

    async def _pause(self) -> None:
        now = self._monotonic()
        failures = [failure for card in self.cards.values() for failure in card.failures.values()]
        wake_ats = [failure.retry_at for failure in failures if failure.retry_at > now]
        pause_s = max(0.05, min([now + self._config.interval_s, *wake_ats]) - now)
        self._sign_due = now + pause_s + LIMIT_S
        if await self._is_nudged_within(pause_s):
            # What ends or is asked for at nearly the same moment shares a round; what comes alone waits for nothing.
            await self._sleep(max(0.0, self._rested_at - self._monotonic()))

    async def _is_nudged_within(self, pause_s: float) -> bool:
        nudged = asyncio.ensure_future(self._nudged.wait())
        slept = asyncio.ensure_future(self._sleep(pause_s))
        try:
            await asyncio.wait([nudged, slept], return_when=asyncio.FIRST_COMPLETED)
            return nudged.done()
        finally:
            nudged.cancel()
            slept.cancel()

    async def run_once(self) -> None:
        """Run one round. A node that cannot be observed is told in `problem`, and left as it is."""
        try:
            ended = -1
            # Else what was read may be of a mount that is another one by now, or of a copy that is one no more.
            while ended != self._actions_ended:
                ended = self._actions_ended
                self._sign_due = self._monotonic() + LIMIT_S
                reading = await self.look()
        except (ScratchError, OSError) as exc:
            self._tell_problem(str(exc))
            return
        self._tell_problem(reading.problem)
        catalog, now = self._catalog(), self._monotonic()
        self.cards, node = self.observe(reading, catalog, now)
        for dataset, mount, is_beneath in self._identifier.choose(self.cards.values()):
            self._begin(dataset, partial(self._identifier.read, dataset, mount, is_beneath))
        before = self.snapshot.plan.decisions if self.snapshot else None
        decided = planner.plan_cards(self.cards, node, before)
        self.snapshot = Snapshot(node, decided, catalog)
        # At once: after any pause what was seen may be no more.
        for action in decided.actions:
            self._start(action)
        for card in self._health.choose(self.cards.values(), now):
            self._begin(card.name, partial(self._health.look, card))
        await self._performer.take_back([card for card in self.cards.values() if card.claims and card.refused])

    def _tell_problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("cannot observe this node problem=%r", problem)
        self.problem = problem

    async def look(self) -> Reading:
        """Look at this node, each part of it in bounded time.

        Raises: ScratchError, OSError: the kernel does not tell; without the cache or the ledger a round goes on.
        """
        kernel = await self._hands.look_at_kernel()
        disks = await self._hands.look_at_disks()
        pins = await self._ledger.look()
        return Reading(
            kernel.mounted,
            disks,
            kernel.held_bytes,
            pins,
            pins_problem=self._ledger.problem,
            covered=kernel.covered,
            read_bytes=kernel.read_bytes,
        )

    def _start(self, action: actions.Action) -> None:
        """Start an action; a copy under way that is dropped is stopped first."""
        dataset = action.dataset
        running = self._works.get(dataset)
        if isinstance(action, actions.DropStaged) and action.staged.under_way:
            if running is not None and not running.cancelling():
                running.cancel()
            return
        if running is not None or (action.kind is ActionKind.MOUNT and self._mounts_begun() >= _MOUNTS_AT_ONCE):
            return
        # Without memory for a task it is not begun: then nothing may say that it is.
        self._works[dataset] = asyncio.create_task(self._perform(action))
        self.tell(Begun(dataset, action))

    def _mounts_begun(self) -> int:
        return sum(
            card.action.kind is ActionKind.MOUNT and card.under_way.hanging_since is None
            for card in map(self.cards.__getitem__, self._works)
            if card.under_way and card.action
        )

    async def _perform(self, action: actions.Action) -> ScratchError | None:
        """Returns: why it was not done; None: it was."""
        dataset, kind = action.dataset, action.kind
        try:
            await self._performer.perform(action)
            self.tell(Succeeded(dataset, action))
            if isinstance(action, actions.Stage):
                self._shunned.forgive([action.disk])
        except PinnedError as exc:
            # The next round knows of that pin. Should it not, this is no reason to try at once, and again and again.
            retry_at = self._monotonic() + self._config.interval_s
            self.tell(Failed(dataset, kind, Failure(exc.message, 0, retry_at, kept=True)))
            log.info("kept dataset=%s reason=%r", dataset, exc.message)
            return exc
        except (ScratchError, OSError) as exc:
            if isinstance(action, actions.Stage) and isinstance(exc, DiskError):
                self._shunned.add(action.disk)
            about = action.image.generation.id if isinstance(action, actions.Mount | actions.Stage) else None
            failure = self._fail(action, str(exc).partition("\n")[0], about, for_good=isinstance(exc, DigestError))
            log.warning(
                "degraded dataset=%s action=%s attempt=%d problem=%r",
                dataset, kind, failure.attempts, failure.message,
            )  # fmt: skip
            return exc if isinstance(exc, ScratchError) else ScratchError(failure.message)
        except asyncio.CancelledError:
            log.info("stopped dataset=%s action=%s", dataset, kind)
            raise
        except Exception:
            log.exception("bug dataset=%s action=%s", dataset, kind)
            what = "an error in scratch-slurm itself; see its log"
            self._fail(action, what)
            return DaemonError(f"{dataset}: {what}")
        finally:
            if isinstance(action, actions.Mount | actions.Uncover | actions.Unmount):
                self._identifier.forget(dataset)
            self._actions_ended += 1
            self._end(dataset, action)
        return None

    def _fail(
        self, action: actions.Action, message: str, about: str | None = None, *, for_good: bool = False
    ) -> Failure:
        before = self.cards[action.dataset].failures.get(action.kind)
        failure = fail(before, message, self._monotonic(), about, for_good=for_good)
        self.tell(Failed(action.dataset, action.kind, failure))
        return failure

    def _begin(self, dataset: str, work: Callable[[], Awaitable[None]]) -> None:
        """Begin something with a dataset that is no action, unless something is under way with it."""
        if dataset in self._works:
            return

        async def do() -> None:
            try:
                await work()
            finally:
                self._end(dataset)

        self._works[dataset] = asyncio.create_task(do())
        self.tell(Begun(dataset))

    def _end(self, dataset: str, action: actions.Action | None = None) -> None:
        self.tell(Ended(dataset, action))
        self._works.pop(dataset, None)
        self.nudge()

    def _gate_of(self, dataset: str, generation_id: str) -> Permissions | None:
        return self.cards[dataset].learned.gates.get(generation_id)

    def observe(self, reading: Reading, catalog: Catalog, now: float) -> tuple[dict[str, Card], Node]:
        """Fold what was seen into the cards; what this node has nothing of any more has none.

        Args:
            now: monotonic seconds.
        """
        known = self.cards
        sights = find_sights(reading, catalog, self._works)
        cards = {name: see(known.get(name) or Card(name), seen) for name, seen in sights.items()}
        ours = [card.seen.top for card in cards.values() if card.mounted and card.seen.top]
        reads = self.counters.take(ours, reading.read_bytes, now)
        for name, card in cards.items():
            if name in reads or card.reads.bytes_per_s:
                cards[name] = fold(card, Read(name, reads.get(name, _NOT_READ)))
        for name, claims in self._find_claims(reading, cards).items():
            cards[name] = fold(cards[name], Claimed(name, claims, now))
        self._shunned.forgive(disk.dir for disk in reading.disks if disk.problem)  # the next one there may be another
        disks = find_disks(reading, cards.values(), self._config, self._shunned.find())
        node = Node(
            disks,
            self.counters.usual_streak_s(now, self._config.horizon_s),
            find_overhead_bytes(catalog.images.values()),
            find_max_pinned_bytes(self._config, disks),
            now,
        )
        return cards, node

    def _find_claims(self, reading: Reading, cards: dict[str, Card]) -> dict[str, tuple[Claim, ...]]:
        """Judge all claims: those of users who may read the dataset count. The others are taken back, or wait."""
        claims: dict[str, tuple[Claim, ...]] = {name: () for name, card in cards.items() if card.claims}
        for place, pin in enumerate(reading.pins):
            card = cards[pin.dataset]
            standing = judge(self.people.judge(pin.uid, card.permissions), is_here=card.is_here)
            claim = Claim(parse_holder(pin.holder), pin.uid, place, standing, pin.asked_at, pin.asked_monotonic_s)
            claims[pin.dataset] = (*claims.get(pin.dataset, ()), claim)
        return claims
