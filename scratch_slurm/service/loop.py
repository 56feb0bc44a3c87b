"""The loop: observe, plan, act. One task decides; what it starts never holds it up."""

import asyncio
import contextlib
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Coroutine, Set
from dataclasses import dataclass

from scratch_slurm.domain import actions, planner
from scratch_slurm.domain.actions import ActionKind
from scratch_slurm.domain.claims import Standing, judge
from scratch_slurm.domain.config import Config, resolve_size
from scratch_slurm.domain.errors import (
    DaemonError,
    DeviceError,
    DigestError,
    LedgerError,
    NotFoundError,
    PinnedError,
    ScratchError,
)
from scratch_slurm.domain.messages import PlanAnswer, PlanRequest
from scratch_slurm.domain.model import Pin, job_holder
from scratch_slurm.domain.observation import Observation
from scratch_slurm.domain.planner import Plan
from scratch_slurm.domain.throughput import reading_rates
from scratch_slurm.service.events import Answers, Event, Gate, Hangs, Progress
from scratch_slurm.service.former import Former
from scratch_slurm.service.hangs import SourceAbort
from scratch_slurm.service.health import Health
from scratch_slurm.service.identify import Identifier
from scratch_slurm.service.join import count_reads, find_covered, find_ours, former_ids, join, screen, take_over
from scratch_slurm.service.ledger_side import LedgerSide
from scratch_slurm.service.memory import Copy, Memory
from scratch_slurm.service.observe import Reading
from scratch_slurm.service.people import People
from scratch_slurm.service.perform import Performer
from scratch_slurm.service.plans import answer_plan
from scratch_slurm.service.reads import load_counters, save_counters
from scratch_slurm.service.recall import Recall
from scratch_slurm.service.source import Source
from scratch_slurm.service.supervise import Supervisor
from scratch_slurm.service.worker_hands import WorkerHands

log = logging.getLogger(__name__)

_GATHER_S = 0.02
_ROUND_LIMIT_S = 60.0
"""No step of a round takes so long."""
_MOUNTS_AT_ONCE = 16
"""New datasets whose mount has begun: twice as many as worker processes. The next one is chosen when one of them is
done, so that a job's dataset need not wait for a thousand others that were new before it was asked for."""
_SAVE_EVERY_S = 30.0


@dataclass(frozen=True)
class Snapshot:
    """The latest round, for status: what was seen, and what was decided from it."""

    seen: Observation
    plan: Plan


class Loop:
    """Runs rounds: at each interval, when something it started has ended, and when somebody nudges it."""

    def __init__(
        self,
        config: Config,
        ledger: LedgerSide,
        hands: WorkerHands,
        former: Former,
        source: Source,
        supervisor: Supervisor,
    ) -> None:
        self.config = config
        self.supervisor = supervisor
        self.memory = Memory()
        self.source = source
        self.snapshot: Snapshot | None = None
        self.problem = ""
        """Why the latest round could not be carried out, or not as usual; empty when it was."""
        self._hands = hands
        hands.tell = self._hear
        self._ledger = ledger
        self.memory.counters = load_counters(config.reads_path, ledger.boot_id, config.period_s)
        self._saved_at = time.monotonic()
        self._performer = Performer(config, self.memory, ledger, hands)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._identifier = Identifier(self.memory, hands)
        self._health = Health(config, self.memory, hands)
        self._actions_ended = 0
        """How many, so far."""
        self.people = People(hands, on_news=self.nudge)
        self._refused: tuple[Pin, ...] = ()
        """Pins of users who may not read the dataset, seen in this round."""
        self._nudged = asyncio.Event()
        source.on_news = self.nudge
        self._former = former
        self._recall = Recall(config)
        source.recalled = self._recall.load()
        self.memory.readers = {name: image.permissions for name, image in source.recalled.items()}
        self._begun = 0
        self._ended = 0
        self._rested_at = 0.0
        self._sign_due = time.monotonic() + _ROUND_LIMIT_S
        """By when the rounds give the next sign that they go on, monotonic seconds."""
        self._scan_due = time.monotonic() + _ROUND_LIMIT_S
        """By when the scanner does."""
        self._round_ended = asyncio.Condition()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What had better be otherwise, although all goes on."""
        return self._hands.warnings

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

    async def run(self) -> None:
        """Run rounds for ever; ends only when cancelled, and then leaves all mounts serving."""
        scanner = asyncio.create_task(self.supervisor.keep("the listing of the source", self._scan_for_ever))
        keep = self.supervisor.keep
        beside = [asyncio.create_task(keep("leaving former directories", self._leave_for_ever))]
        if self.config.source_abort_s:
            watch = SourceAbort(self.config, self.memory).run
            beside.append(asyncio.create_task(keep("watching for a source that hangs", watch)))
        try:
            await self.supervisor.keep("the rounds", self._run_rounds)
        finally:
            tasks = [scanner, *beside, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=2.0)
            self.source.close()
            self._hands.close()
            self.people.close()
            await self._save_counters()

    async def _run_rounds(self) -> None:
        while True:
            await self._pause()
            self._nudged.clear()
            self._begun += 1
            await self._run_round()
            self._ended = self._begun
            self._rested_at = time.monotonic() + _GATHER_S
            async with self._round_ended:
                self._round_ended.notify_all()

    def stalled(self) -> str:
        """Tell what does not go on although it should; empty when all does."""
        now = time.monotonic()
        if now > self._sign_due:
            return f"no round goes on since {now - self._sign_due:.0f} s"
        if now > max(self._scan_due, self.source.sign_at + self.config.source_timeout_s + _ROUND_LIMIT_S):
            return "the listing of the source does not go on"
        return ""

    async def evict(self, dataset: str) -> int:
        """Evict a dataset because the administrator says so; returns the bytes freed.

        Raises: ScratchError: it is pinned, busy, not cached, or the switch back to the source failed.
        """
        seen = await self._observe_at_rest(dataset)
        action = planner.plan_eviction(seen, dataset, "asked by the administrator")
        self._start(action)
        await asyncio.wait([self._tasks[dataset]])
        failure = self.memory.failures.get((dataset, ActionKind.EVICT))
        # Not what the next round sees: a dataset that is read a lot may be copied again by then.
        if failure and failure.kept:
            raise PinnedError(failure.message)
        if failure:
            raise DeviceError(f"{dataset}: {failure.message}")
        self.memory.held_off[dataset] = time.monotonic() + self.config.period_s
        return action.image.size_bytes

    async def release_early(self, job_id: int, datasets: list[str] | None, uid: int) -> tuple[str, ...]:
        """Release pins of a running job for its user, or for root.

        Returns: the datasets that it did pin; none when it had released them before.
        Raises: DeniedError: they are another user's. NotFoundError: no such job asked for datasets on this node.
        """
        released = await self._ledger.release(
            job_holder(job_id),
            datasets,
            event="released-early",
            detail=f"uid={uid}",
            owner=uid or None,  # root may release anybody's
        )
        # The prolog's word to the job tells that it is here, even when it pins nothing any more.
        if not released and not (self.config.jobs_dir / str(job_id)).exists():
            raise NotFoundError(f"job {job_id}: has no datasets on this node")
        for dataset in released:
            log.info("released dataset=%s job=%d uid=%d reason=%r", dataset, job_id, uid, "given back early")
        return released

    async def _observe_at_rest(self, dataset: str) -> Observation:
        """Observe once nothing is under way with the dataset."""
        while True:
            await self.after_next_round()
            task = self._tasks.get(dataset)
            if task is None:
                break
            await asyncio.wait([task])
        if self.snapshot is None:
            raise DaemonError(f"this node cannot be observed: {self.problem}")
        return self.snapshot.seen

    async def _pause(self) -> None:
        now = time.monotonic()
        wake_ats = [failure.retry_at for failure in self.memory.failures.values() if failure.retry_at > now]
        pause_s = max(0.05, min([now + self.config.interval_s, *wake_ats]) - now)
        self._sign_due = now + pause_s + _ROUND_LIMIT_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nudged.wait(), pause_s)
            # What ends or is asked for at nearly the same moment shares a round; what comes alone waits for nothing.
            await asyncio.sleep(max(0.0, self._rested_at - time.monotonic()))

    async def _scan_for_ever(self) -> None:
        while True:
            await self.source.scan()
            self.nudge()
            images = self.source.remember()
            if images is not None:
                await asyncio.to_thread(self._recall.save, images)
            # Jitter: thousands of nodes share the source.
            pause_s = self.config.interval_s * random.uniform(0.9, 1.1)  # noqa: S311 # not a secret
            self._scan_due = time.monotonic() + pause_s + _ROUND_LIMIT_S
            await asyncio.sleep(pause_s)

    async def _leave_for_ever(self) -> None:
        while True:
            try:
                await self._former.leave({(pin.holder, pin.dataset) for pin in await self._ledger.pins()})
            except ScratchError as exc:
                log.warning("cannot leave former directories problem=%r", str(exc))
            await asyncio.sleep(self.config.interval_s)

    async def _run_round(self) -> None:
        try:
            ended = -1
            # Else what was read may be of a mount that is another one by now, or of a copy that is one no more.
            while ended != self._actions_ended:
                ended = self._actions_ended
                self._sign_due = time.monotonic() + _ROUND_LIMIT_S
                reading = await self._read_node()
        except (ScratchError, OSError) as exc:
            self._tell_problem(str(exc))
            return
        self._tell_problem("; ".join(text for text in (reading.cache_problem, reading.pins_problem) if text))
        self._identify(reading)
        seen = self._observe(reading)
        decided = planner.plan(seen)
        self.snapshot = Snapshot(seen, decided)
        # At once: after any pause what was seen may be no more.
        for action in decided.actions:
            self._start(action)
        for mount in self._health.choose((reading.mounted[name] for name in seen.mounted), time.monotonic()):
            self._begin(mount.dataset, self._health.look(mount))
        if self._refused:
            try:
                await self._take_back(self._refused)
            except ScratchError as exc:
                log.warning("cannot take back pins problem=%r", str(exc))  # they do not count all the same
        if time.monotonic() - self._saved_at > max(_SAVE_EVERY_S, self.config.period_s / 10):
            await self._save_counters()

    def _tell_problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("cannot observe this node problem=%r", problem)
        self.problem = problem

    async def _read_node(self) -> Reading:
        """Look at this node, each part of it in bounded time.

        Raises: ScratchError, OSError: the kernel does not tell; without the cache or the ledger a round goes on.
        """
        kernel = await self._hands.look_at_kernel()
        cache = await self._hands.look_at_cache()
        pins = await self._ledger.look()
        return Reading(
            kernel.mounted,
            cache.contents,
            kernel.held_bytes,
            pins,
            pins_problem=self._ledger.problem,
            cache_problem=cache.problem,
            cache_unknown=cache.unknown,
            covered=kernel.covered,
        )

    def _hear(self, event: Event) -> None:
        """Remember what the hands tell while they are at it."""
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

    async def _save_counters(self) -> None:
        self._saved_at = time.monotonic()
        counters = self.memory.counters.copy()
        with contextlib.suppress(LedgerError):  # its disk hangs: a window of history is lost
            await self._ledger.call(lambda: save_counters(self.config.reads_path, counters, self._ledger.boot_id))

    def what_if(self, asked: PlanRequest, *, is_told: Callable[[str], object]) -> PlanAnswer:
        """Plan with other figures, from the latest observation; nothing is done.

        Args:
            is_told: whether the reader may be told of a dataset.
        Raises: DaemonError: there is no observation. UsageError: a figure is not valid.
        """
        if self.snapshot is None:
            raise DaemonError(f"this node cannot be observed: {self.problem}")
        seen, period_s = self.snapshot.seen, asked.period_s or self.config.period_s
        space = seen.space
        if asked.capacity:
            capacity_bytes = resolve_size(asked.capacity, whole_bytes=space.whole_bytes)
            space = dataclasses.replace(space, capacity_bytes=capacity_bytes)
        seen = dataclasses.replace(
            seen,
            space=space,
            bytes_per_s=reading_rates(self.memory.counters, time.monotonic(), period_s),
            horizon_s=asked.horizon_s or seen.horizon_s,
        )
        return answer_plan(seen, planner.plan(seen), period_s, is_told)

    def _start(self, action: actions.Action) -> None:
        """Start an action; a copy under way that is dropped is stopped first."""
        dataset = action.dataset
        running = self._tasks.get(dataset)
        if isinstance(action, actions.DropStaged) and action.staged.under_way:
            if running is not None and not running.cancelling():
                running.cancel()
            return
        if running is not None or (action.kind is ActionKind.MOUNT and self._mounts_begun() >= _MOUNTS_AT_ONCE):
            return
        # Without memory for a task it is not begun: then nothing may say that it is.
        self._tasks[dataset] = asyncio.create_task(self._perform(action))
        self.memory.running[dataset] = action
        if isinstance(action, actions.Stage):
            self.memory.copies[dataset] = Copy(action.image)

    def _mounts_begun(self) -> int:
        hanging = self.memory.hanging_since
        return sum(
            action.kind is ActionKind.MOUNT and dataset not in hanging
            for dataset, action in self.memory.running.items()
        )

    def has_mounted_all(self) -> bool:
        """Whether every image that was known in the latest round is mounted, skipped, failed, or gives no answer."""
        return (
            self.snapshot is not None
            and not any(action.kind is ActionKind.MOUNT for action in self.snapshot.plan.actions)
            and not self._mounts_begun()
        )

    async def _perform(self, action: actions.Action) -> None:
        dataset, memory = action.dataset, self.memory
        try:
            await self._performer.perform(action)
            memory.succeed(dataset, action.kind)
        except PinnedError as exc:
            # The next round knows of that pin. Should it not, this is no reason to try at once, and again and again.
            memory.keep(dataset, action.kind, exc.message, time.monotonic() + self.config.interval_s)
            log.info("kept dataset=%s reason=%r", dataset, exc.message)
        except (ScratchError, OSError) as exc:
            about = action.image.generation.id if isinstance(action, actions.Mount | actions.Stage) else None
            failure = memory.fail(
                dataset, action.kind, str(exc).partition("\n")[0], time.monotonic(), about,
                for_good=isinstance(exc, DigestError),
            )  # fmt: skip
            log.warning(
                "degraded dataset=%s action=%s attempt=%d problem=%r",
                dataset, action.kind, failure.attempts, failure.message,
            )  # fmt: skip
        except asyncio.CancelledError:
            log.info("stopped dataset=%s action=%s", dataset, action.kind)
            raise
        except Exception:
            log.exception("bug dataset=%s action=%s", dataset, action.kind)
            memory.fail(dataset, action.kind, "an error in scratch-slurm itself; see its log", time.monotonic())
        finally:
            if isinstance(action, actions.Mount | actions.Uncover | actions.Unmount):
                self._identifier.forget(dataset)
            self._actions_ended += 1
            memory.running.pop(dataset, None)
            memory.copies.pop(dataset, None)
            self._tasks.pop(dataset, None)
            self.nudge()

    def _identify(self, reading: Reading) -> None:
        for key in self._identifier.choose(reading.mounted.values(), reading.covered.values()):
            self._begin(key[0], self._identifier.read(key))

    def _begin(self, dataset: str, work: Coroutine[None, None, None]) -> None:
        """Begin something with a dataset that is no action, unless something is under way with it."""
        if dataset in self._tasks:
            work.close()
            return

        async def do() -> None:
            try:
                await work
            finally:
                self._tasks.pop(dataset, None)
                self.nudge()

        self._tasks[dataset] = asyncio.create_task(do())

    def _observe(self, reading: Reading) -> Observation:
        """Join what was read with what is remembered."""
        memory, now = self.memory, time.monotonic()
        listed = self.source.catalog
        former = former_ids(listed)
        reading = take_over(reading, former)
        ours = find_ours(reading, memory, former)
        catalog = screen(listed, ours, reading, memory)
        count_reads(memory, reading, ours, self.config.period_s, now)
        here = {*catalog.images, *catalog.skipped, *ours, *(copy.dataset for copy in reading.cache.images)}
        pins, undecided = self._admit(reading.pins, here)
        memory.last_used_at.update((pin.dataset, now) for pin in pins if pin.dataset in here)
        memory.forget_other_uses(here)
        return join(
            reading, catalog, ours, memory, self.config,
            covered=find_covered(reading, memory, former), pins=pins, undecided=undecided,
            refused=self._refused, busy=self._tasks.keys(), now=now,
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

    async def _take_back(self, pins: tuple[Pin, ...]) -> None:
        for pin in pins:
            permissions = self.memory.readers.get(pin.dataset)
            detail = f"uid={pin.uid} may not read the image: {permissions}"
            if await self._ledger.release(pin.holder, [pin.dataset], event="refused", detail=detail):
                log.warning("refused dataset=%s holder=%s reason=%r", pin.dataset, pin.holder, detail)
