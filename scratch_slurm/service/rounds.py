"""The rounds: see, join, plan, start. One task decides; what it starts never holds it up."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from functools import partial

from scratch_slurm.domain import actions, planner
from scratch_slurm.domain.actions import ActionKind
from scratch_slurm.domain.claims import Standing, judge
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.dataset import Card
from scratch_slurm.domain.errors import DaemonError, DigestError, PinnedError, ScratchError
from scratch_slurm.domain.model import Catalog, Pin
from scratch_slurm.domain.observation import Observation, cards_of
from scratch_slurm.domain.planner import Plan
from scratch_slurm.service.events import Answers, CutOff, Event, Gate, Hangs, Progress
from scratch_slurm.service.hands import Hands, LedgerAccess
from scratch_slurm.service.health import Health
from scratch_slurm.service.identify import Identifier
from scratch_slurm.service.join import count_reads, find_covered, find_ours, former_ids, join, screen, take_over
from scratch_slurm.service.memory import Copy, Memory
from scratch_slurm.service.observe import Reading
from scratch_slurm.service.people import People
from scratch_slurm.service.perform import Performer

log = logging.getLogger(__name__)

_GATHER_S = 0.02
LIMIT_S = 60.0
"""No step of a round takes so long."""
_MOUNTS_AT_ONCE = 16
"""New datasets whose mount has begun: twice as many as worker processes. The next one is chosen when one of them is
done, so that a job's dataset need not wait for a thousand others that were new before it was asked for."""
_LAST_WORDS_S = 2.0


@dataclass(frozen=True)
class Snapshot:
    """The latest round, for status: what was seen, and what was decided from it."""

    seen: Observation
    plan: Plan


class Rounds:
    """Runs rounds: at each interval, when something it started has ended, and when somebody nudges it.

    Args:
        catalog: gives what is known of the source.
        monotonic: seconds.
        sleep: waits for so many of them.
    """

    def __init__(
        self,
        config: Config,
        hands: Hands,
        ledger: LedgerAccess,
        catalog: Callable[[], Catalog],
        memory: Memory,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.memory = memory
        self.snapshot: Snapshot | None = None
        self.problem = ""
        """Why the latest round could not be carried out, or not as usual; empty when it was."""
        self.people = People(hands, on_news=self.nudge, monotonic=monotonic)
        self._config = config
        self._hands = hands
        hands.tell = self.hear
        self._ledger = ledger
        self._catalog = catalog
        self._monotonic = monotonic
        self._sleep = sleep
        self._performer = Performer(config, memory, ledger, hands, monotonic=monotonic)
        self._identifier = Identifier(memory, hands, sleep=sleep)
        self._health = Health(config, memory, hands)
        self._works: dict[str, asyncio.Task[ScratchError | None]] = {}
        """Dataset -> what is under way with it."""
        self._actions_ended = 0
        """How many, so far."""
        self._refused: tuple[Pin, ...] = ()
        """Pins of users who may not read the dataset, seen in this round."""
        self._cards: dict[str, Card] = {}
        """As of the latest round."""
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

    async def see_at_rest(self, dataset: str) -> Observation:
        """Return what a round saw once nothing was under way with a dataset.

        Raises: DaemonError: this node cannot be observed.
        """
        while True:
            await self.after_next_round()
            work = self._works.get(dataset)
            if work is None:
                return self.latest().seen
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
        self.memory.held_off[dataset] = self._monotonic() + self._config.period_s

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

    def hear(self, event: Event) -> None:
        """Take in what was learned beside the rounds' own looks."""
        memory = self.memory
        match event:
            case Hangs():
                memory.hanging_since[event.dataset] = event.since
            case Answers():
                memory.hanging_since.pop(event.dataset, None)
            case Progress():
                if event.dataset in memory.copies:
                    memory.copies[event.dataset].progress(event.bytes_done, event.phase)
            case Gate():
                memory.roots[event.generation_id] = event.permissions
            case CutOff():
                memory.cut_off[event.key] = event.why

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
        wake_ats = [failure.retry_at for failure in self.memory.failures.values() if failure.retry_at > now]
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
        for key in self._identifier.choose(reading.mounted.values(), reading.covered.values()):
            self._begin(key[0], partial(self._identifier.read, key))
        seen = self.observe(reading)
        decided = self._plan(seen)
        self.snapshot = Snapshot(seen, decided)
        # At once: after any pause what was seen may be no more.
        for action in decided.actions:
            self._start(action)
        for mount in self._health.choose((reading.mounted[name] for name in seen.mounted), self._monotonic()):
            self._begin(mount.dataset, partial(self._health.look, mount))
        await self._performer.take_back(self._refused)

    def _plan(self, seen: Observation) -> Plan:
        """Plan. A card that did not change stays the same object: what was decided of it still holds."""
        cards, node = cards_of(seen)
        known = self._cards
        self._cards = {name: old if (old := known.get(name)) == card else card for name, card in cards.items()}
        return planner.plan_cards(self._cards, node, self.snapshot.plan.decisions if self.snapshot else None)

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
        self.memory.running[dataset] = action
        if isinstance(action, actions.Stage):
            self.memory.copies[dataset] = Copy(action.image, action.disk or self._config.cache_dirs[0])

    def _mounts_begun(self) -> int:
        hanging = self.memory.hanging_since
        return sum(
            action.kind is ActionKind.MOUNT and dataset not in hanging
            for dataset, action in self.memory.running.items()
        )

    async def _perform(self, action: actions.Action) -> ScratchError | None:
        """Returns: why it was not done; None: it was."""
        dataset, memory = action.dataset, self.memory
        try:
            await self._performer.perform(action)
            memory.succeed(dataset, action.kind)
        except PinnedError as exc:
            # The next round knows of that pin. Should it not, this is no reason to try at once, and again and again.
            memory.keep(dataset, action.kind, exc.message, self._monotonic() + self._config.interval_s)
            log.info("kept dataset=%s reason=%r", dataset, exc.message)
            return exc
        except (ScratchError, OSError) as exc:
            about = action.image.generation.id if isinstance(action, actions.Mount | actions.Stage) else None
            failure = memory.fail(
                dataset, action.kind, str(exc).partition("\n")[0], self._monotonic(), about,
                for_good=isinstance(exc, DigestError),
            )  # fmt: skip
            log.warning(
                "degraded dataset=%s action=%s attempt=%d problem=%r",
                dataset, action.kind, failure.attempts, failure.message,
            )  # fmt: skip
            return exc if isinstance(exc, ScratchError) else ScratchError(failure.message)
        except asyncio.CancelledError:
            log.info("stopped dataset=%s action=%s", dataset, action.kind)
            raise
        except Exception:
            log.exception("bug dataset=%s action=%s", dataset, action.kind)
            what = "an error in scratch-slurm itself; see its log"
            memory.fail(dataset, action.kind, what, self._monotonic())
            return DaemonError(f"{dataset}: {what}")
        finally:
            if isinstance(action, actions.Mount | actions.Uncover | actions.Unmount):
                self._identifier.forget(dataset)
            self._actions_ended += 1
            memory.running.pop(dataset, None)
            memory.copies.pop(dataset, None)
            self._works.pop(dataset, None)
            self.nudge()
        return None

    def _begin(self, dataset: str, work: Callable[[], Awaitable[None]]) -> None:
        """Begin something with a dataset that is no action, unless something is under way with it."""
        if dataset in self._works:
            return

        async def do() -> None:
            try:
                await work()
            finally:
                self._works.pop(dataset, None)
                self.nudge()

        self._works[dataset] = asyncio.create_task(do())

    def observe(self, reading: Reading) -> Observation:
        """Join what was read with what is remembered."""
        memory, now = self.memory, self._monotonic()
        listed = self._catalog()
        former = former_ids(listed)
        reading = take_over(reading, former)
        ours = find_ours(reading, memory, former)
        catalog = screen(listed, ours, reading, memory)
        count_reads(memory, reading, ours, self._config.period_s, now)
        here = {*catalog.images, *catalog.skipped, *ours, *(copy.dataset for copy in reading.images)}
        pins, undecided = self._admit(reading.pins, here)
        memory.last_used_at.update((pin.dataset, now) for pin in pins if pin.dataset in here)
        memory.forget_other_uses(here)
        return join(
            reading, catalog, ours, memory, self._config,
            covered=find_covered(reading, memory, former), pins=pins, undecided=undecided,
            refused=self._refused, busy=self._works.keys(), now=now,
        )  # fmt: skip

    def _admit(self, pins: tuple[Pin, ...], here: Set[str]) -> tuple[tuple[Pin, ...], set[str]]:
        """Choose the pins that count: of users who may read the dataset. The others are taken back, or wait.

        Args:
            here: datasets that this node has something of; a pin of another name has nothing to read.
        Returns: the pins that count, and the datasets with a pin that waits.
        """

        def may_read(pin: Pin) -> bool | None:
            return self.people.judge(pin.uid, self.memory.readers.get(pin.dataset))

        standings = {pin: judge(may_read(pin), is_here=pin.dataset in here) for pin in pins}
        self._refused = tuple(pin for pin in pins if standings[pin] is Standing.REFUSED)
        undecided = {pin.dataset for pin in pins if standings[pin] is Standing.WAITS}
        return tuple(pin for pin in pins if standings[pin] is Standing.COUNTS), undecided
