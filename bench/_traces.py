"""Traces of a node's days for bench/replay.py, and the node that they are replayed on.

A trace is jobs that come and go, each reading one dataset at a steady rate; popularity is Zipf's and drifts; one job
in five reads its dataset once, at full speed, and is gone.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench._choosing import log_normal_size

STEP_S = 60.0
# Jobs begin and end on this grid, so that rates are constant between, and the bound of bench/replay.py is a bound.
GRID_S = 300.0
DATASETS = 200
SLOTS = 8


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


def replay(trace: Trace, policy: Policy) -> Node:
    node = Node(trace)
    per_grid = round(GRID_S / STEP_S)
    for at, reads in enumerate(trace.reads):
        for sub in range(per_grid):
            node.run(reads)
            started = trace.starts[at] if sub == 0 else []
            policy(node, Step(at * GRID_S + (sub + 1) * STEP_S, at, reads, started))
    return node
