"""A node's days replayed: slow-storage bytes read under the planner, LRU, LFU, the tool before this one, and foresight.

Runs in the pure domain. A trace is jobs that come and go, each reading one dataset at a steady rate; popularity is
Zipf's and drifts; one job in five reads its dataset once, at full speed, and is gone. Slow-storage bytes are the reads
that the cache did not serve, and all that copies read. A copy takes its time, and holds its whole room meanwhile. The
full run also changes each of the traces' figures in turn, on other seeds: what is better must be so elsewhere too.
"""

import sys

sys.path[0] = sys.path[0].rpartition("/")[0]  # not bench/: its copy.py would stand in for the standard library's

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from bench import _common as common
from bench._choosing import TIB, log_normal_size, thousandths
from scratch_slurm.domain.choice import Candidate, wish
from scratch_slurm.domain.knapsack import Item
from scratch_slurm.domain.model import Backing
from scratch_slurm.domain.throughput import (
    ReadCounter,
    rates,
    read_for,
    reading_bytes,
    reading_rates,
    usual_reading_s,
)

with contextlib.suppress(ImportError):
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

STEP_S = 60.0
# Jobs begin and end on this grid, so that rates are constant between, and the bound below is a bound.
GRID_S = 300.0
DATASETS = 200
SLOTS = 8
PERIOD_S, HORIZON_S = 600.0, 1800.0


@dataclass(frozen=True)
class World:
    """What traces are made of; each figure may be another one elsewhere."""

    zipf: float = 1.0
    """Exponent of the popularity; 0: all datasets are as popular."""
    jumps: int = 2
    """How many datasets jump to another rank in a step of the grid."""
    rate: float = 1.0
    """Times the rates of jobs, but for those that read once."""
    length: float = 1.0
    """Times how long these jobs last."""
    once: float = 0.2
    """The part of the jobs that read their dataset once, at full speed."""
    grid_fills: bool = True
    """Those read at full speed to the end of their step, so a small image more than once; else exactly once."""
    slots: int = SLOTS
    copy_bytes_per_s: float = 1e9


@dataclass(frozen=True)
class Trace:
    """What is read when."""

    sizes: Mapping[str, int]
    capacity: int
    reads: list[dict[str, float]]
    """For each step of the grid: dataset -> bytes per second."""
    starts: list[list[str]]
    """For each step of the grid: the dataset of each job that begins then."""
    copy_bytes_per_s: float


def make_trace(seed: int, hours: float, capacity: int, world: World = World()) -> Trace:
    """Each of the node's slots runs one job after another, with pauses."""
    rng = random.Random(f"replay {seed}")
    names = [f"d{index:03}" for index in range(DATASETS)]
    sizes = {name: log_normal_size(rng) for name in names}
    count = round(hours * 3600 / GRID_S)
    ranked = rng.sample(names, len(names))
    rankings = []
    for _ in range(count):
        for _ in range(world.jumps):  # drift: one dataset jumps to another rank
            ranked.insert(int(rng.random() ** 2 * len(ranked)), ranked.pop(rng.randrange(len(ranked))))
        rankings.append(ranked.copy())
    weights = [(rank + 1) ** -world.zipf for rank in range(DATASETS)]
    reads: list[dict[str, float]] = [{} for _ in range(count)]
    starts: list[list[str]] = [[] for _ in range(count)]
    for _ in range(world.slots):
        at = math.floor(rng.expovariate(1 / 6))
        while at < count:
            dataset = rng.choices(rankings[at], weights)[0]
            if rng.random() < world.once:
                steps = math.ceil(sizes[dataset] / 1e9 / GRID_S)
                rate = 1e9 if world.grid_fills else sizes[dataset] / (steps * GRID_S)
            else:
                rate = world.rate * 20e6 * 25 ** rng.random()
                lasts_s = world.length * rng.lognormvariate(math.log(2700), 1.2)
                steps = math.ceil(min(24 * 3600.0, lasts_s) / GRID_S)
            starts[at].append(dataset)
            for step in range(at, min(count, at + steps)):
                reads[step][dataset] = reads[step].get(dataset, 0.0) + rate
            at += steps + math.floor(rng.expovariate(1 / 2))
    return Trace(sizes, capacity, reads, starts, world.copy_bytes_per_s)


@dataclass
class Node:
    """A cache directory, and the copies under way in the order of asking."""

    trace: Trace
    cached: set[str] = field(default_factory=set)
    copying: dict[str, float] = field(default_factory=dict)
    """Dataset -> bytes copied."""
    read_bytes: float = 0.0
    copied_bytes: float = 0.0

    @property
    def slow_bytes(self) -> float:
        return self.read_bytes + self.copied_bytes

    @property
    def room_bytes(self) -> int:
        return self.trace.capacity - sum(self.trace.sizes[name] for name in (*self.cached, *self.copying))

    def start(self, dataset: str) -> None:
        self.copying[dataset] = 0.0
        assert self.room_bytes >= 0, "the capacity holds at every moment"

    def run(self, reads: Mapping[str, float]) -> None:
        """Let a step pass."""
        self.read_bytes += sum(rate * STEP_S for name, rate in reads.items() if name not in self.cached)
        left_bytes = self.trace.copy_bytes_per_s * STEP_S
        for name, done in list(self.copying.items()):
            part = min(left_bytes, self.trace.sizes[name] - done)
            left_bytes -= part
            self.copied_bytes += part
            self.copying[name] += part
            if self.copying[name] >= self.trace.sizes[name]:
                del self.copying[name]
                self.cached.add(name)


@dataclass(frozen=True)
class Step:
    """What a policy may know."""

    now: float
    at: int
    """Position on the grid."""
    reads: Mapping[str, float]
    """Dataset -> bytes per second, of the step that has just passed."""
    started: list[str]
    """Datasets of the jobs that have just begun."""


Policy = Callable[[Node, Step], None]


def nothing(_: Trace) -> Policy:
    """Cache nothing."""
    return lambda node, step: None


@dataclass(frozen=True)
class Figures:
    """The planner's figures, and what may be left out of its rule to see what it is good for."""

    period_s: float = PERIOD_S
    horizon_s: float = HORIZON_S
    at_once: bool = True
    """Rates are measured since a reading began; else over the whole period always."""
    learns: bool = True
    """The horizon is how long readings here go on; else fixed."""
    grows: bool = True
    """And as long as this one has gone on."""
    limits: bool = True
    """No more is trusted than what was read in this reading and the image once."""


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
        follow(
            node,
            (reading_rates if figures.at_once else rates)(counters, step.now, period_s),
            last_used,
            usual_reading_s(counters, step.now, horizon_s) if figures.learns else horizon_s,
            read_for(counters, step.now) if figures.grows else {},
            reading_bytes(counters, step.now) if figures.limits else {},
        )

    return decide


def foresight(trace: Trace, horizon_s: float = 3600.0) -> Policy:
    """The same choice, told what will be read over the horizon instead of what has been; an hour is its best."""
    last_used: dict[str, float] = {}

    def decide(node: Node, step: Step) -> None:
        last_used.update(dict.fromkeys(step.reads, step.now))
        if step.now % GRID_S:
            return
        coming: Counter[str] = Counter()
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
    read_for_s: Mapping[str, float],
    read_bytes: Mapping[str, float],
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
            read_for_s.get(name, 0.0),
            read_bytes.get(name, math.inf),
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
        victims = sorted((name for name in node.cached if name not in step.reads), key=lambda name: last_used[name])
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
            admit(node, [name], sorted(victims, key=lambda each: (used[each], last_used[each])))

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


def replay(trace: Trace, policy: Policy) -> Node:
    node = Node(trace)
    per_grid = round(GRID_S / STEP_S)
    for at, reads in enumerate(trace.reads):
        for sub in range(per_grid):
            node.run(reads)
            started = trace.starts[at] if sub == 0 else []
            policy(node, Step(at * GRID_S + (sub + 1) * STEP_S, at, reads, started))
    return node


def bound(trace: Trace) -> float | None:
    """The least slow-storage bytes that any policy could read, knowing all; None without scipy.

    The linear relaxation: any part of an image may be cached, copies take no time, and at each moment the parts
    take no more than the capacity. Rates are constant between two points of the grid, so that averaging a better
    policy over each such stretch gives a solution of this programme that costs no more.
    """
    if "linprog" not in globals():
        return None
    names = sorted({name for reads in trace.reads for name in reads})
    variables: dict[tuple[str, int], int] = {}
    for name in names:
        times = [at for at, reads in enumerate(trace.reads) if name in reads]
        for at in range(times[0], times[-1] + 1):
            variables[name, at] = len(variables)
    n = len(variables)  # x: the part cached; then as many y: the part copied at its beginning
    cost = np.zeros(2 * n)
    base = 0.0
    rows, columns, cells, limits = [], [], [], []
    for (name, at), x in variables.items():
        seen = trace.reads[at].get(name, 0.0) * GRID_S
        base += seen
        # In parts of the capacity: x and y are parts of an image.
        cost[x] = -seen / trace.capacity
        cost[n + x] = trace.sizes[name] / trace.capacity
        row = len(limits)
        rows += [row, row]
        columns += [x, n + x]
        cells += [1.0, -1.0]
        if (name, at - 1) in variables:
            rows.append(row)
            columns.append(variables[name, at - 1])
            cells.append(-1.0)
        limits.append(0.0)
    for at in range(len(trace.reads)):
        here = [(name, variables[name, at]) for name in names if (name, at) in variables]
        rows += [len(limits)] * len(here)
        columns += [x for _, x in here]
        cells += [trace.sizes[name] / trace.capacity for name, _ in here]
        limits.append(1.0)
    matrix = coo_array((cells, (rows, columns)), shape=(len(limits), 2 * n)).tocsr()
    found = linprog(cost, A_ub=matrix, b_ub=limits, bounds=(0, 1), method="highs")
    return base + found.fun * trace.capacity if found.success else None


POLICIES: dict[str, Callable[[Trace], Policy]] = {
    "nothing cached": nothing,
    "LRU": lru,
    "LRU, sparing what is read now": sparing_lru,
    "LFU, sparing what is read now": lfu,
    "the ancestor's rule": ancestor,
    "the planner": planner,
    "the planner, told the next hour": foresight,
}
OTHERS = tuple(POLICIES)[:5]
CAPACITIES = (TIB, 4 * TIB)
SWEEP = {
    "as it is": Figures(),
    "horizon 15 min": Figures(horizon_s=HORIZON_S / 2),
    "horizon 1 h": Figures(horizon_s=HORIZON_S * 2),
    "period 5 min": Figures(period_s=PERIOD_S / 2),
    "period 20 min": Figures(period_s=PERIOD_S * 2),
    "rates over the whole period always": Figures(at_once=False),
    "a horizon of 30 min that does not learn": Figures(learns=False),
    "... of 1 h": Figures(horizon_s=HORIZON_S * 2, learns=False),
    "... of 2 h": Figures(horizon_s=HORIZON_S * 4, learns=False),
    "the horizon does not grow": Figures(grows=False),
    "trust without a limit": Figures(limits=False),
    "none of the four": Figures(at_once=False, learns=False, grows=False, limits=False),
}
WORLDS = {
    "other seeds": World(),
    "zipf 0.6": World(zipf=0.6),
    "zipf 1.4": World(zipf=1.4),
    "no drift": World(jumps=0),
    "drift x 4": World(jumps=8),
    "rates / 3": World(rate=1 / 3),
    "rates x 3": World(rate=3.0),
    "jobs / 3": World(length=1 / 3),
    "jobs x 3": World(length=3.0),
    "none reads once": World(once=0.0),
    "half read once": World(once=0.5),
    "exactly once": World(grid_fills=False),
    "4 slots": World(slots=4),
    "16 slots": World(slots=16),
    "copies / 4": World(copy_bytes_per_s=0.25e9),
    "copies x 3": World(copy_bytes_per_s=3e9),
}
ELSEWHERE_SEEDS = range(100, 109)


def measure(quick: bool) -> common.Figures:
    seeds, hours = (range(2), 12.0) if quick else (range(9), 24.0)
    rows, sweep, elsewhere = [], [], []
    for capacity in CAPACITIES:
        traces = [make_trace(seed, hours, capacity) for seed in seeds]
        bounds = [bound(trace) for trace in traces]
        nodes = {name: [replay(trace, make(trace)) for trace in traces] for name, make in POLICIES.items()}
        ours = [node.slow_bytes for node in nodes["the planner"]]
        for name, ran in nodes.items():
            rows.append(
                {
                    "capacity_bytes": capacity,
                    "policy": name,
                    "slow_tb": common.median([node.slow_bytes for node in ran]) / 1e12,
                    "copied_tb": common.median([node.copied_bytes for node in ran]) / 1e12,
                    "ratio": common.median([node.slow_bytes / our for node, our in zip(ran, ours, strict=True)]),
                    "we_read_less": sum(our < node.slow_bytes for node, our in zip(ran, ours, strict=True)),
                    "traces": len(traces),
                }
            )
        known = [least for least in bounds if least is not None]
        if known:
            rows.append(
                {
                    "capacity_bytes": capacity,
                    "policy": "no policy reads less than",
                    "slow_tb": common.median(known) / 1e12,
                    "ratio": common.median([least / our for least, our in zip(known, ours, strict=True)]),
                    "traces": len(traces),
                }
            )
        for name, others in SWEEP.items() if not quick else ():
            ran = [replay(trace, planner(trace, others)) for trace in traces]
            row = {
                "capacity_bytes": capacity,
                "planner": name,
                "all_slow_tb": sum(node.slow_bytes for node in ran) / 1e12,
            }
            sweep.append(row | compare([node.slow_bytes for node in ran], nodes))
        for name, world in WORLDS.items() if not quick else ():
            traces = [make_trace(seed, hours, capacity, world) for seed in ELSEWHERE_SEEDS]
            nodes = {other: [replay(trace, POLICIES[other](trace)) for trace in traces] for other in OTHERS[1:]}
            ours = [replay(trace, planner(trace)).slow_bytes for trace in traces]
            elsewhere.append({"capacity_bytes": capacity, "world": name} | compare(ours, nodes))
    reached = all(row["ratio"] > 1 for row in rows if row["policy"] in OTHERS)
    settings = {"hours": hours, "datasets": DATASETS, "slots": SLOTS}
    return {**settings, "rows": rows, "sweep": sweep, "elsewhere": elsewhere, "reached": reached}


def compare(ours: list[float], nodes: Mapping[str, list[Node]]) -> common.Figures:
    """For each of the others: the median of its bytes by ours, and how often ours are fewer."""
    pairs = {name: list(zip((node.slow_bytes for node in nodes[name]), ours, strict=True)) for name in OTHERS[1:]}
    return {
        "ratios": {name: common.median([theirs / our for theirs, our in each]) for name, each in pairs.items()},
        "less": {name: sum(our < theirs for theirs, our in each) for name, each in pairs.items()},
        "traces": len(ours),
    }


def show(figures: common.Figures) -> str:
    rows = [
        (
            row["policy"],
            f"{row['capacity_bytes'] / TIB:.0f} TiB",
            f"{row['slow_tb']:.1f}",
            f"{row['copied_tb']:.1f}" if "copied_tb" in row else "",
            f"{row['ratio']:.2f}",
            f"{row['we_read_less']}/{row['traces']}" if row["policy"] in OTHERS else "",
        )
        for row in figures["rows"]
    ]
    header = (
        "slow-storage reads, medians",
        "capacity",
        "TB",
        "of it copies",
        "/ the planner's",
        "the planner reads less",
    )
    texts = [common.table(header, rows)]
    columns = ("LRU", "sparing LRU", "LFU", "the ancestor's")
    for rows, key, title in (
        (figures["sweep"], "planner", "the planner with other figures: theirs / its"),
        (figures["elsewhere"], "world", "other traces: theirs / the planner's"),
    ):
        if rows:
            lines = [
                (
                    row[key],
                    f"{row['capacity_bytes'] / TIB:.0f} TiB",
                    *(f"{row['ratios'][name]:.2f}, {row['less'][name]}/{row['traces']}" for name in OTHERS[1:]),
                    *([f"{row['all_slow_tb']:.0f}"] if "all_slow_tb" in row else []),
                )
                for row in rows
            ]
            more = ("TB, all traces",) if key == "planner" else ()
            texts.append(common.table((title, "capacity", *columns, *more), lines))
    if not any(row["policy"].startswith("no policy") for row in figures["rows"]):
        texts.append("scipy is not installed (pip install -e .[bench]): no bound.")
    medians = [row["ratios"][name] for row in figures["elsewhere"] for name in OTHERS[1:]]
    if medians:
        texts.append(
            f"Other traces: the planner reads less in {sum(each > 1 for each in medians)} of {len(medians)} medians."
        )
    texts.append("")
    texts.append(
        f"{'reached' if figures['reached'] else 'NOT reached'}: fewer slow-storage bytes than each of the others"
    )
    return "\n".join(texts)


if __name__ == "__main__":
    common.main(__doc__ or "", measure, show)
