"""What decides which images a node caches, for bench/replay.py: ours, and what one would use instead."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench._choosing import thousandths
from bench._traces import GRID_S, STEP_S, Node, Policy, Step, Trace
from scratch_slurm.domain.choice import Candidate, wish
from scratch_slurm.domain.knapsack import Item
from scratch_slurm.domain.model import Backing
from scratch_slurm.domain.throughput import ReadCounter, rates, usual_streak_s

PERIOD_S, HORIZON_S = 600.0, 1800.0


def nothing(_: Trace) -> Policy:
    """Cache nothing."""
    return lambda node, step: None


@dataclass(frozen=True)
class Figures:
    """The planner's figures, and what may be left out of its rule to see what it is good for."""

    period_s: float = PERIOD_S
    horizon_s: float = HORIZON_S
    at_once: bool = True
    """Rates are measured since a streak began; else over the whole period always."""
    learns: bool = True
    """The horizon is how long streaks here go on; else fixed."""
    grows: bool = True
    """And as long as this one has gone on."""
    limits: bool = True
    """No more is trusted than what was read in this streak and the image once."""


def planner(trace: Trace, figures: Figures = Figures()) -> Policy:
    """Ours: `choice.wish` on measured rates, and what the planner makes of it."""
    period_s, horizon_s = figures.period_s, figures.horizon_s
    counters: dict[str, ReadCounter] = {}
    totals: Counter[str] = Counter()
    last_used: dict[str, float] = {}

    def decide(node: Node, step: Step) -> None:
        for name, rate in step.reads.items():
            if name not in counters:
                counters[name] = ReadCounter(period_s)
                counters[name].sample(step.now - STEP_S, name, 0, Backing.SOURCE)
            totals[name] += round(rate * STEP_S)
            last_used[name] = step.now
        for name, counter in counters.items():
            counter.sample(step.now, name, totals[name], Backing.CACHE if name in node.cached else Backing.SOURCE)
        read = {name: counter for name, counter in counters.items() if counter.is_read(step.now)}
        follow(
            node,
            {name: rate for name, each in read.items() if (rate := each.streak_rate(step.now, period_s)) > 0}
            if figures.at_once
            else rates(counters, step.now, period_s),
            last_used,
            usual_streak_s(counters.values(), step.now, horizon_s) if figures.learns else horizon_s,
            {name: each.streak_s(step.now) for name, each in read.items()} if figures.grows else {},
            {name: each.streak_bytes(step.now) for name, each in read.items()} if figures.limits else {},
        )

    return decide


def foresight(trace: Trace, horizon_s: float = 3600.0) -> Policy:
    """The same choice, told what will be read over the horizon instead of what has been; an hour is its best."""
    last_used: dict[str, float] = {}

    def decide(node: Node, step: Step) -> None:
        last_used.update(dict.fromkeys(step.reads, step.now))
        if step.now % GRID_S:
            return
        coming: defaultdict[str, float] = defaultdict(float)
        for reads in trace.reads[step.at + 1 : step.at + 1 + round(horizon_s / GRID_S)]:
            for name, rate in reads.items():
                coming[name] += rate * GRID_S / horizon_s
        follow(node, coming, last_used, horizon_s, {}, {})

    return decide


def follow(
    node: Node,
    bytes_per_s: Mapping[str, float],
    last_used: Mapping[str, float],
    horizon_s: float,
    streak_s: Mapping[str, float],
    streak_bytes: Mapping[str, float],
) -> None:
    """Do what is wished for, as the planner does: evict for room only, copy into what is free."""
    sizes = node.trace.sizes
    candidates = [
        Candidate(
            name,
            size,
            0 if name in node.cached else max(1, size - int(node.copying.get(name, 0))),
            bytes_per_s.get(name, 0.0),
            False,
            last_used.get(name, 0.0),
            streak_s.get(name, 0.0),
            streak_bytes.get(name, math.inf),
        )
        for name, size in sizes.items()
        if name in node.cached or name in bytes_per_s or name in node.copying
    ]
    wishes = wish(candidates, (), node.trace.capacity, horizon_s)
    for name in list(node.copying):
        if name not in wishes.chosen:
            del node.copying[name]
    unneeded = list(wishes.unneeded)
    for name in wishes.chosen:
        if name in node.cached or name in node.copying:
            continue
        while node.room_bytes < sizes[name] and unneeded:
            node.cached.remove(unneeded.pop(0))
        if node.room_bytes >= sizes[name]:
            node.start(name)


def lru(trace: Trace) -> Policy:
    """Cache whatever is read, in the place of what was read longest ago; ties go by name."""
    last_used: dict[str, float] = {}

    def decide(node: Node, step: Step) -> None:
        last_used.update(dict.fromkeys(step.reads, step.now))
        for name in sorted(step.reads):
            admit(node, [name], sorted(node.cached, key=lambda each: (last_used[each], each)))

    return decide


def sparing_lru(trace: Trace) -> Policy:
    """LRU that takes no room from what is read now, so that it does not thrash when all do not fit."""
    last_used: dict[str, float] = {}

    def decide(node: Node, step: Step) -> None:
        last_used.update(dict.fromkeys(step.reads, step.now))
        victims = sorted(
            (name for name in node.cached if name not in step.reads), key=lambda name: (last_used[name], name)
        )
        admit(node, step.reads, victims)

    return decide


def lfu(trace: Trace) -> Policy:
    """Cache whatever is read, in the place of what fewer jobs have read so far, and nobody reads now: it spares too."""
    used: Counter[str] = Counter()
    last_used: dict[str, float] = {}

    def decide(node: Node, step: Step) -> None:
        used.update(step.started)
        last_used.update(dict.fromkeys(step.reads, step.now))
        for name in sorted(step.reads, key=lambda name: (-used[name], name)):
            victims = [each for each in node.cached if each not in step.reads and used[each] <= used[name]]
            admit(node, [name], sorted(victims, key=lambda each: (used[each], last_used[each], each)))

    return decide


def admit(node: Node, wanted: Iterable[str], victims: list[str]) -> None:
    """Copy each of these, as far as the victims, in this order, make room."""
    sizes = node.trace.sizes
    for name in wanted:
        if name in node.cached or name in node.copying:
            continue
        if sizes[name] > node.room_bytes + sum(sizes[victim] for victim in victims):
            continue
        while node.room_bytes < sizes[name]:
            node.cached.remove(victims.pop(0))
        node.start(name)


def ancestor(trace: Trace) -> Policy:
    """Every ten minutes the set of the greatest throughput, by thousandths of the capacity; copies cost nothing.

    What is not in the set is dropped; what does not fit after all, by rounding, is not copied.
    """
    read: Counter[str] = Counter()

    def decide(node: Node, step: Step) -> None:
        for name, rate in step.reads.items():
            read[name] += round(rate * STEP_S)
        if step.now % 600:
            return
        items = [Item(name, trace.sizes[name], float(total)) for name, total in sorted(read.items())]
        wanted = {items[index].name for index in thousandths(items, trace.capacity)}
        read.clear()
        node.cached &= wanted
        for name in node.copying.keys() - wanted:
            del node.copying[name]
        for name in sorted(wanted):
            if name not in node.cached and name not in node.copying and node.room_bytes >= trace.sizes[name]:
                node.start(name)

    return decide
