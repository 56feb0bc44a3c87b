"""The loop: observe, plan, act. One task decides; what it starts never holds it up."""

import asyncio
import contextlib
import dataclasses
import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

from scratch_slurm.domain import access, planner
from scratch_slurm.domain.config import Config, resolve_size
from scratch_slurm.domain.errors import DaemonError, DeviceError, NotFoundError, PinnedError, ScratchError
from scratch_slurm.domain.messages import PlanAnswer, PlanRequest
from scratch_slurm.domain.model import MountedImage, Pin, Space, job_holder
from scratch_slurm.domain.names import parse_device_tag
from scratch_slurm.domain.planner import ActionKind, Observation, Plan, StagedImage
from scratch_slurm.domain.throughput import ReadCounter, rates, read_for
from scratch_slurm.node.cache import Cache
from scratch_slurm.node.ledger import Ledger
from scratch_slurm.service import operations as op
from scratch_slurm.service.memory import Copy, Memory
from scratch_slurm.service.observe import Reading, SeenMount, read_node
from scratch_slurm.service.people import People
from scratch_slurm.service.perform import Performer
from scratch_slurm.service.plans import answer_plan
from scratch_slurm.service.reads import load_counters, save_counters
from scratch_slurm.service.source import Source
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

_GATHER_S = 0.02
_SAVE_EVERY_S = 30.0
_IDENTIFY_AGAIN_S = 5.0
_IDENTIFY_TRIES = 2
_OVERHEAD_BYTES = 3 * 4096
"""The rest of an image's last block, the first block of its journal, and one of the file system's own."""


@dataclass(frozen=True)
class Snapshot:
    """The latest round, for status: what was seen, and what was decided from it."""

    seen: Observation
    plan: Plan


class Loop:
    """Runs rounds: at each interval, when something it started has ended, and when somebody nudges it."""

    def __init__(self, config: Config, cache: Cache, ledger: Ledger, workers: Workers, source: Source) -> None:
        self.config = config
        self.memory = Memory()
        self.source = source
        self.snapshot: Snapshot | None = None
        self.problem = ""
        """Why the latest round could not be carried out; empty when it was."""
        self._cache = cache
        self._ledger = ledger
        self._workers = workers
        self.memory.counters = load_counters(config.reads_path, ledger.boot_id, config.period_s)
        self._saved_at = time.monotonic()
        self._performer = Performer(config, self.memory, cache, ledger, workers)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._unidentified: dict[tuple[str, int, str], int] = {}
        """(dataset, mount id, device) -> how often its tag could not be read."""
        self._remounts = 0
        """Mounts made, replaced or taken away so far."""
        self.people = People(workers, on_news=self.nudge)
        self._refused: tuple[Pin, ...] = ()
        """Pins of users who may not read the dataset, seen in this round."""
        self._kept: set[str] = set()
        """Datasets whose latest eviction came after a pin."""
        self._nudged = asyncio.Event()
        self._kept_files: dict[str, int] = {}
        self._begun = 0
        self._ended = 0
        self._rested_at = 0.0
        self._round_ended = asyncio.Condition()

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
        scanner = asyncio.create_task(self._scan_for_ever())
        try:
            while True:
                await self._pause()
                self._nudged.clear()
                self._begun += 1
                await self._run_round()
                self._ended = self._begun
                self._rested_at = time.monotonic() + _GATHER_S
                async with self._round_ended:
                    self._round_ended.notify_all()
        finally:
            tasks = [scanner, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=2.0)
            self.source.close()
            self.people.close()
            self._save_counters()

    async def evict(self, dataset: str) -> int:
        """Evict a dataset because the administrator says so; returns the bytes freed.

        Raises: ScratchError: it is pinned, busy, not cached, or the switch back to the source failed.
        """
        seen = await self._observe_at_rest(dataset)
        action = planner.plan_eviction(seen, dataset, "asked by the administrator")
        self._kept.discard(dataset)
        self._start(action)
        await asyncio.wait([self._tasks[dataset]])
        failure = self.memory.failures.get((dataset, ActionKind.EVICT))
        if failure:
            raise DeviceError(f"{dataset}: {failure.message}")
        # Not what the next round sees: a dataset that is read a lot may be copied again by then.
        if dataset in self._kept:
            raise PinnedError(f"{dataset}: was pinned while its eviction began")
        self.memory.held_off[dataset] = time.time() + self.config.period_s
        return action.image.size_bytes

    def release_early(self, job_id: int, datasets: list[str] | None, uid: int) -> tuple[str, ...]:
        """Release pins of a running job for its user, or for root; may block on the ledger.

        Returns: the datasets that it did pin; none when it had released them before.
        Raises: DeniedError: they are another user's. NotFoundError: no such job asked for datasets on this node.
        """
        released = self._ledger.release(
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
        now = time.time()
        wake_ats = [failure.retry_at for failure in self.memory.failures.values() if failure.retry_at > now]
        pause_s = max(0.05, min([now + self.config.interval_s, *wake_ats]) - now)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nudged.wait(), pause_s)
            # What ends or is asked for at nearly the same moment shares a round; what comes alone waits for nothing.
            await asyncio.sleep(max(0.0, self._rested_at - time.monotonic()))

    async def _scan_for_ever(self) -> None:
        while True:
            await self.source.scan()
            self.nudge()
            # Jitter: thousands of nodes share the source.
            await asyncio.sleep(self.config.interval_s * random.uniform(0.9, 1.1))  # noqa: S311 # not a secret

    async def _run_round(self) -> None:
        try:
            remounts = -1
            while remounts != self._remounts:  # else what was read may be of a mount that is another one by now
                remounts = self._remounts
                reading = await asyncio.to_thread(
                    read_node, self.config.mount_dir, self._cache, self._ledger, self._kept_files
                )
        except (ScratchError, OSError) as exc:
            if str(exc) != self.problem:
                log.error("cannot observe this node problem=%r", str(exc))
            self.problem = str(exc)
            return
        self.problem = ""
        self._identify(reading.mounted.values())
        seen = self._observe(reading)
        decided = planner.plan(seen)
        self.snapshot = Snapshot(seen, decided)
        if self._refused:
            try:
                await asyncio.to_thread(self._take_back, self._refused)
            except ScratchError as exc:
                log.warning("cannot take back pins problem=%r", str(exc))  # they do not count all the same
        for action in decided.actions:
            self._start(action)
        if time.monotonic() - self._saved_at > max(_SAVE_EVERY_S, self.config.period_s / 10):
            await asyncio.to_thread(self._save_counters)

    def _save_counters(self) -> None:
        self._saved_at = time.monotonic()
        save_counters(self.config.reads_path, self.memory.counters.copy(), self._ledger.boot_id)

    def what_if(self, asked: PlanRequest) -> PlanAnswer:
        """Plan with other figures, from the latest observation; nothing is done.

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
            bytes_per_s=rates(self.memory.counters, time.monotonic(), period_s),
            horizon_s=asked.horizon_s or seen.horizon_s,
        )
        return answer_plan(seen, planner.plan(seen), period_s)

    def _start(self, action: planner.Action) -> None:
        """Start an action; a copy under way that is dropped is stopped first."""
        dataset = action.dataset
        running = self._tasks.get(dataset)
        if isinstance(action, planner.DropStaged) and action.staged.under_way:
            if running is not None and not running.cancelling():
                running.cancel()
            return
        if running is not None:
            return
        self.memory.running[dataset] = action
        if isinstance(action, planner.Stage):
            self.memory.copies[dataset] = Copy(action.image, time.time())
        task = asyncio.create_task(self._perform(action))
        self._tasks[dataset] = task

    async def _perform(self, action: planner.Action) -> None:
        dataset, memory = action.dataset, self.memory
        try:
            await self._performer.perform(action)
            memory.succeed(dataset, action.kind)
        except PinnedError as exc:
            self._kept.add(dataset)
            log.info("kept dataset=%s reason=%r", dataset, exc.message)
        except (ScratchError, OSError) as exc:
            about = action.image.generation.id if isinstance(action, planner.Mount | planner.Stage) else None
            failure = memory.fail(dataset, action.kind, str(exc).partition("\n")[0], time.time(), about)
            log.warning(
                "degraded dataset=%s action=%s attempt=%d problem=%r",
                dataset, action.kind, failure.attempts, failure.message,
            )  # fmt: skip
        except asyncio.CancelledError:
            log.info("stopped dataset=%s action=%s", dataset, action.kind)
            raise
        except Exception:
            log.exception("bug dataset=%s action=%s", dataset, action.kind)
            memory.fail(dataset, action.kind, "an error in scratch-slurm itself; see its log", time.time())
        finally:
            if isinstance(action, planner.Mount | planner.Unmount):
                memory.forget_mount(dataset)
                self._unidentified = {key: tries for key, tries in self._unidentified.items() if key[0] != dataset}
                self._remounts += 1
            memory.running.pop(dataset, None)
            memory.copies.pop(dataset, None)
            self._tasks.pop(dataset, None)
            self.nudge()

    def _identify(self, mounted: Iterable[SeenMount]) -> None:
        """Read the tags of devices not seen before, in workers: a tag may hang with its backing."""
        seen_now = set()
        for mount in mounted:
            if mount.device is None:
                continue
            key = (mount.dataset, mount.mount_id, mount.device)
            seen_now.add(key)
            known = key in self.memory.generations or self._unidentified.get(key, 0) >= _IDENTIFY_TRIES
            if not known and mount.dataset not in self._tasks:
                self._tasks[mount.dataset] = asyncio.create_task(self._read_tag(key))
        for gone in self.memory.generations.keys() - seen_now:
            del self.memory.generations[gone]
        self._unidentified = {key: tries for key, tries in self._unidentified.items() if key in seen_now}

    async def _read_tag(self, key: tuple[str, int, str]) -> None:
        dataset, _, device = key

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.Tag):
                generation_id = self.memory.generations[key] = parse_device_tag(line.text)
                if generation_id and line.root:
                    self.memory.roots[generation_id] = line.root

        def on_hang() -> None:
            self.memory.hanging_since[dataset] = time.time() - self.config.source_timeout_s

        try:
            await self._workers.run(
                op.ReadTag(device, str(self.config.mount_dir / dataset)),
                silence_s=self.config.source_timeout_s,
                on_line=on_line,
                on_hang=on_hang,
            )
        except ScratchError as exc:
            log.warning("cannot identify dataset=%s device=%s problem=%r", dataset, device, str(exc))
            # The kernel asks the storage of the backing, which need not know a removed file any more. A device that
            # never tells is one of an unknown generation: replaced, or unmounted, when nobody pins it.
            self._unidentified[key] = self._unidentified.get(key, 0) + 1
            await asyncio.sleep(_IDENTIFY_AGAIN_S)
        finally:
            self.memory.hanging_since.pop(dataset, None)
            self._tasks.pop(dataset, None)
            self.nudge()

    def _observe(self, reading: Reading) -> Observation:
        """Join what was read with what is remembered. Pure but for the read counters."""
        memory, now = self.memory, time.time()
        catalog = self.source.catalog
        memory.forget_other_images(catalog.images)
        ours = {
            mount.dataset: MountedImage(
                mount.dataset,
                mount.device,
                mount.backing,
                mount.backing_path,
                memory.generations.get((mount.dataset, mount.mount_id, mount.device)),
            )
            for mount in reading.mounted.values()
            if mount.device is not None
            and memory.generations.get((mount.dataset, mount.mount_id, mount.device), "") is not None
        }
        memory.forget_other_roots(catalog.images, ours)
        catalog = access.screen(catalog, ours, memory.roots)
        memory.private = access.find_private(catalog, ours, memory.roots, memory.private)
        self._count_reads(reading, ours, now)
        pins = self._admit(reading.pins)
        for pin in pins:
            memory.last_used_at[pin.dataset] = now
        sizes = (image.size_bytes for image in catalog.images.values())
        return Observation(
            catalog=catalog,
            mounted=ours,
            cached=reading.cache.images,
            staged=self._staged(reading),
            pins=pins,
            space=self._space(reading),
            last_used_at=dict(memory.last_used_at),
            busy=frozenset(self._tasks),
            backing_off=memory.backing_off(now, {pin.dataset for pin in reading.pins}),
            foreign=frozenset(reading.mounted.keys() - ours.keys()),
            leaving=frozenset(name for name, action in memory.running.items() if isinstance(action, planner.Evict)),
            bytes_per_s=rates(memory.counters, time.monotonic(), self.config.period_s),
            read_for_s=read_for(memory.counters, time.monotonic()),
            horizon_s=self.config.horizon_s,
            overhead_bytes=_OVERHEAD_BYTES + _journal_bytes(max(sizes, default=0)),
            # What hangs frees nothing that could be foreseen: nobody waits for its room.
            leaving_bytes=sum(
                action.image.size_bytes
                for name, action in memory.running.items()
                if isinstance(action, planner.Evict) and name not in memory.hanging_since
            ),
        )

    def _admit(self, pins: tuple[Pin, ...]) -> tuple[Pin, ...]:
        """Choose the pins that count: of users who may read the dataset. The others are taken back, or wait."""
        private = self.memory.private
        verdicts = {pin: self.people.judge(pin.uid, private[pin.dataset]) for pin in pins if pin.dataset in private}
        self._refused = tuple(pin for pin, verdict in verdicts.items() if verdict is False)
        return tuple(pin for pin in pins if verdicts.get(pin, True))

    def _take_back(self, pins: tuple[Pin, ...]) -> None:
        for pin in pins:
            permissions = self.memory.private.get(pin.dataset)
            detail = f"uid={pin.uid} may not read the image: {permissions}"
            if self._ledger.release(pin.holder, [pin.dataset], event="refused", detail=detail):
                log.warning("refused dataset=%s holder=%s reason=%r", pin.dataset, pin.holder, detail)

    def _count_reads(self, reading: Reading, ours: dict[str, MountedImage], now: float) -> None:
        at = time.monotonic()
        for dataset, mounted in ours.items():
            counter = self.memory.counters.get(dataset)
            if counter is None:
                counter = self.memory.counters[dataset] = ReadCounter(self.config.period_s)
            seen = reading.mounted[dataset]
            # A device's counter goes on when it is bound anew, so the mount is part of its name.
            device = f"{mounted.device}@{seen.mount_id}"
            if counter.sample(at, device, seen.read_bytes, mounted.backing):
                self.memory.last_used_at[dataset] = now
        for gone in self.memory.counters.keys() - ours.keys():
            del self.memory.counters[gone]

    def _staged(self, reading: Reading) -> tuple[StagedImage, ...]:
        copies = self.memory.copies
        under_way = [
            StagedImage(dataset, copy.image.generation.id, _most_bytes(copy.image.size_bytes), True, copy.bytes_done)
            for dataset, copy in copies.items()
        ]
        left_over = [
            StagedImage(partial.dataset, partial.generation_id, partial.size_bytes, False)
            for partial in reading.cache.partials
            if partial.dataset not in copies
        ]
        return (*under_way, *left_over)

    def _space(self, reading: Reading) -> Space:
        """Count what copies under way will still take as taken already: the capacity holds at every moment."""
        contents = reading.cache
        on_disk = {(part.dataset, part.generation_id): part.size_bytes for part in contents.partials}
        coming_bytes = sum(
            max(0, _most_bytes(copy.image.size_bytes) - on_disk.get((dataset, copy.image.generation.id), 0))
            for dataset, copy in self.memory.copies.items()
        )
        return Space(
            capacity_bytes=resolve_size(self.config.capacity, whole_bytes=contents.whole_bytes),
            reserve_bytes=resolve_size(self.config.reserve, whole_bytes=contents.whole_bytes),
            used_bytes=contents.used_bytes + reading.held_bytes + coming_bytes,
            free_bytes=contents.free_bytes - coming_bytes,
            whole_bytes=contents.whole_bytes,
        )


def _most_bytes(size_bytes: int) -> int:
    """What an image and the journal of its copy take on the disk at most."""
    return size_bytes + _OVERHEAD_BYTES + _journal_bytes(size_bytes)


def _journal_bytes(size_bytes: int) -> int:
    return size_bytes >> 19  # a line of about 110 bytes for each 64 MiB
