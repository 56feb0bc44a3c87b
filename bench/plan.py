"""The planner's choice: how far from the optimum, and how long it takes.

Against a MILP solver as the check (HiGHS in scipy, `pip install -e .[bench]`; left out without it), greedy by density,
and the method of the tool before this one: a dynamic programme over sizes in units of a thousandth of the capacity.
"""

import sys

sys.path[0] = sys.path[0].rpartition("/")[0]  # not bench/: its copy.py would stand in for the standard library's

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from bench import _common as common
from bench._choosing import TIB, log_normal_size, thousandths
from scratch_slurm.domain.knapsack import Item, choose

with contextlib.suppress(ImportError):
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

CAPACITY = 4 * TIB
HORIZON_S = 1800.0

T = TypeVar("T")
Maker = Callable[[random.Random, int], list[Item]]


# Realistic: sizes log-normal from 1 GiB to 2 TiB, values as the planner makes them.


def realistic(rng: random.Random, count: int) -> list[Item]:
    """Read rates independent of the sizes, one in three cached already."""
    items = []
    for index in range(count):
        size = log_normal_size(rng)
        rate = rng.lognormvariate(0.0, 1.2) * 100e6
        cached = rng.random() < 1 / 3
        items.append(Item(f"d{index:05}", size, rate * HORIZON_S - (0 if cached else size)))
    return items


def realistic_all_hot(rng: random.Random, count: int) -> list[Item]:
    """As if rates grew with sizes: all pay, and the densities lie close."""
    return [
        Item(f"d{index:05}", size, size * rng.uniform(0.5, 2.0))
        for index in range(count)
        for size in (log_normal_size(rng),)
    ]


# Hard: the classes of Pisinger, "Where are the hard knapsack problems?", Computers & Operations Research 32 (2005),
# with coefficients up to 2 TiB. The capacity is fixed, so the sizes shrink as their number grows, to keep half fitting.


def _hard_sizes(rng: random.Random, count: int) -> list[int]:
    largest = min(2 * TIB, 4 * CAPACITY // count)
    return [rng.randint(1, largest) for _ in range(count)]


def _named(pairs: Sequence[tuple[int, float]]) -> list[Item]:
    return [Item(f"d{index:05}", size, value) for index, (size, value) in enumerate(pairs) if value > 0]


def uncorrelated(rng: random.Random, count: int) -> list[Item]:
    sizes = _hard_sizes(rng, count)
    return _named([(size, rng.uniform(0, max(sizes))) for size in sizes])


def weakly_correlated(rng: random.Random, count: int) -> list[Item]:
    sizes = _hard_sizes(rng, count)
    spread = max(sizes) / 10
    return _named([(size, max(1.0, size + rng.uniform(-spread, spread))) for size in sizes])


def strongly_correlated(rng: random.Random, count: int) -> list[Item]:
    sizes = _hard_sizes(rng, count)
    return _named([(size, size + max(sizes) / 10) for size in sizes])


def inverse_correlated(rng: random.Random, count: int) -> list[Item]:
    values = _hard_sizes(rng, count)
    return _named([(value + max(values) // 10, value) for value in values])


def almost_strongly_correlated(rng: random.Random, count: int) -> list[Item]:
    sizes = _hard_sizes(rng, count)
    top = max(sizes)
    return _named([(size, size + top / 10 + rng.uniform(-top / 500, top / 500)) for size in sizes])


def subset_sum(rng: random.Random, count: int) -> list[Item]:
    return _named([(size, size) for size in _hard_sizes(rng, count)])


def even_sizes(rng: random.Random, count: int) -> list[Item]:
    """Equal densities and multiples of one size that do not fill the capacity."""
    unit = 7 * CAPACITY // (5 * count) | 1
    return _named([(unit * rng.randint(1, 6), unit) for _ in range(count)])


def profit_ceiling(rng: random.Random, count: int) -> list[Item]:
    sizes = _hard_sizes(rng, count)
    step = max(sizes) // 300
    return _named([(size, -(-size // step) * step) for size in sizes])


def circle(rng: random.Random, count: int) -> list[Item]:
    sizes = _hard_sizes(rng, count)
    top = max(sizes)
    return _named([(size, 2 / 3 * (4 * top**2 - (size - 2 * top) ** 2) ** 0.5) for size in sizes])


# The other methods. Each returns the set of positions.


def greedy(items: Sequence[Item], capacity: int) -> set[int]:
    """Take what fits in the order of density."""
    taken, room = set(), capacity
    for index in sorted(range(len(items)), key=lambda at: -items[at].value_bytes / items[at].size_bytes):
        if items[index].value_bytes > 0 and items[index].size_bytes <= room:
            taken.add(index)
            room -= items[index].size_bytes
    return taken


def solve_milp(items: Sequence[Item], capacity: int, time_limit_s: float) -> tuple[float, float] | None:
    """Returns: the best value that HiGHS found and its bound; None without scipy or without a solution."""
    if "milp" not in globals():
        return None
    # In parts of the capacity and of the greatest value: bytes are too large for the solver's tolerances.
    scale = max(item.value_bytes for item in items)
    values = np.array([item.value_bytes / scale for item in items])
    sizes = np.array([[item.size_bytes / capacity for item in items]])
    with silence():
        found = milp(
            -values,
            constraints=LinearConstraint(sizes, ub=1.0),
            integrality=np.ones(len(items)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 1e-7, "time_limit": time_limit_s},
        )
    if found.x is None:
        return None
    picked = [index for index, part in enumerate(found.x) if part > 0.5]
    value = sum(items[index].value_bytes for index in picked)
    fits = sum(items[index].size_bytes for index in picked) <= capacity
    return (value if fits else 0.0), -found.mip_dual_bound * scale


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """HiGHS writes what it debugs to the standard output, whatever it is told: not into ours."""
    sys.stdout.flush()
    ours = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)


class Tally:
    """The results of one class of instances."""

    def __init__(self) -> None:
        self.true_gaps: list[float] = []
        self.reported_gaps: list[float] = []
        self.greedy_gaps: list[float] = []
        self.ancestor_gaps: list[float] = []
        self.ancestor_over: list[float] = []
        self.over = 0
        self.times_s: list[float] = []
        self.greedy_times_s: list[float] = []
        self.ancestor_times_s: list[float] = []
        self.milp_times_s: list[float] = []
        self.unproven = 0

    def run(self, items: list[Item], milp_limit_s: float) -> None:
        chosen, took_s = timed(lambda: choose(items, CAPACITY))
        self.times_s.append(took_s)
        size = sum(item.size_bytes for item in items if item.name in chosen.names)
        self.over += size > CAPACITY
        by_greedy, took_s = timed(lambda: greedy(items, CAPACITY))
        self.greedy_times_s.append(took_s)
        by_ancestor, took_s = timed(lambda: thousandths(items, CAPACITY), runs=1)
        self.ancestor_times_s.append(took_s)
        proven, took_s = timed(lambda: solve_milp(items, CAPACITY, milp_limit_s), runs=1)
        ceiling = chosen.bound_bytes
        if proven is not None:
            self.milp_times_s.append(took_s)
            # What is proven of the optimum, by whom ever; without a proof the gap is overstated, never understated.
            ceiling = max(chosen.value_bytes, min(ceiling, proven[1]))
            self.unproven += max(proven[0], chosen.value_bytes) < ceiling * (1 - 1e-6)
        self.true_gaps.append(1 - chosen.value_bytes / ceiling)
        self.reported_gaps.append(chosen.gap)
        self.greedy_gaps.append(1 - value_of(items, by_greedy) / ceiling)
        ancestor_size = sum(items[index].size_bytes for index in by_ancestor)
        if ancestor_size > CAPACITY:
            self.ancestor_over.append(ancestor_size / CAPACITY - 1)
        else:
            self.ancestor_gaps.append(1 - value_of(items, by_ancestor) / ceiling)

    def figures(self) -> common.Figures:
        return {
            "gap_percent": spread(self.true_gaps, 100),
            "reported_percent": spread(self.reported_gaps, 100),
            "greedy_percent": spread(self.greedy_gaps, 100),
            "ancestor_percent": spread(self.ancestor_gaps, 100),
            "over": self.over,
            "ancestor_over": len(self.ancestor_over),
            "ancestor_over_percent": 100 * max(self.ancestor_over, default=0.0),
            "unproven": self.unproven,
            "ms": spread(self.times_s, 1000),
            "greedy_ms": spread(self.greedy_times_s, 1000),
            "ancestor_ms": spread(self.ancestor_times_s, 1000),
            "milp_ms": spread(self.milp_times_s, 1000),
        }


def spread(values: Sequence[float], factor: float) -> dict[str, float] | None:
    """Median and worst; None of nothing."""
    if not values:
        return None
    return {"median": factor * statistics.median(values), "worst": factor * max(values)}


def value_of(items: Sequence[Item], chosen: set[int]) -> float:
    return sum(items[index].value_bytes for index in chosen)


def timed(call: Callable[[], T], runs: int = 3) -> tuple[T, float]:
    """Returns: the result, and the median CPU time in seconds: others may be busy on this machine."""
    times_s = []
    for _ in range(runs):
        began = time.process_time()
        result = call()
        times_s.append(time.process_time() - began)
    return result, statistics.median(times_s)


CLASSES: dict[str, Maker] = {
    maker.__name__.replace("_", " "): maker
    for maker in (
        realistic,
        realistic_all_hot,
        uncorrelated,
        weakly_correlated,
        strongly_correlated,
        inverse_correlated,
        almost_strongly_correlated,
        subset_sum,
        even_sizes,
        profit_ceiling,
        circle,
    )
}
REALISTIC = ("realistic", "realistic all hot")
TARGET_MEDIAN_PERCENT, TARGET_WORST_PERCENT, TARGET_MS, TARGET_HARD_MS = 0.05, 0.1, 10.0, 100.0


def measure(quick: bool) -> common.Figures:
    runs, milp_limit_s = (2, 0.5) if quick else (9, 2.0)
    rows = []
    for name, maker in CLASSES.items():
        for count in (100, 1000):
            tally = Tally()
            for seed in range(runs):
                tally.run(maker(random.Random(f"{name} {seed}"), count), milp_limit_s)
            rows.append({"instances": name, "datasets": count, "runs": runs, **tally.figures()})
    realistic_rows = [row for row in rows if row["instances"] in REALISTIC]
    hard_rows = [row for row in rows if row["instances"] not in REALISTIC]
    reached = {
        f"median gap under {TARGET_MEDIAN_PERCENT} % on realistic sizes": all(
            row["gap_percent"]["median"] < TARGET_MEDIAN_PERCENT for row in realistic_rows
        ),
        f"worst gap at most {TARGET_WORST_PERCENT} % on realistic sizes": all(
            row["gap_percent"]["worst"] <= TARGET_WORST_PERCENT for row in realistic_rows
        ),
        "never over the capacity": not any(row["over"] for row in rows),
        f"under {TARGET_MS:.0f} ms on realistic sizes": all(row["ms"]["worst"] < TARGET_MS for row in realistic_rows),
        f"under {TARGET_HARD_MS:.0f} ms on hard instances": all(
            row["ms"]["worst"] < TARGET_HARD_MS for row in hard_rows
        ),
    }
    return {"milp": "milp" in globals(), "milp_limit_s": milp_limit_s, "rows": rows, "reached": reached}


def show(figures: common.Figures) -> str:
    rows = figures["rows"]
    gaps = common.table(
        (
            "distance from the optimum, %",
            "n",
            "ours",
            "ours, as it says",
            "greedy",
            "thousandths",
            "over: ours",
            "theirs",
        ),
        [
            (
                row["instances"],
                row["datasets"],
                *(
                    _pair(row[key], 4)
                    for key in ("gap_percent", "reported_percent", "greedy_percent", "ancestor_percent")
                ),
                f"{row['over']}/{row['runs']}",
                f"{row['ancestor_over']}/{row['runs']}, {row['ancestor_over_percent']:.1f} %",
            )
            for row in rows
        ],
    )
    times = common.table(
        (
            "CPU time of one choice, ms",
            "n",
            "ours",
            "greedy",
            "thousandths",
            "HiGHS",
            "thousandths / ours",
            "HiGHS / ours",
        ),
        [
            (
                row["instances"],
                row["datasets"],
                *(_pair(row[key], 2) for key in ("ms", "greedy_ms", "ancestor_ms", "milp_ms")),
                f"{row['ancestor_ms']['median'] / row['ms']['median']:.0f}",
                f"{row['milp_ms']['median'] / row['ms']['median']:.0f}" if row["milp_ms"] else "-",
            )
            for row in rows
        ],
    )
    notes = [
        "Median / worst of each. A set of the thousandths' method that is over the capacity is no choice: its value is",
        "not counted, and by how much the worst was over is said beside how many.",
    ]
    if not figures["milp"]:
        notes.append("scipy is not installed (pip install -e .[bench]): the distance is that from our own bound.")
    unproven = sum(row["unproven"] for row in rows)
    if unproven:
        notes.append(
            f"{unproven} optima are not proven by HiGHS within {figures['milp_limit_s']:.0f} s: there the distance is"
        )
        notes.append("from the least bound proven, and overstated.")
    notes += [f"{'reached' if yes else 'NOT reached'}: {what}" for what, yes in figures["reached"].items()]
    return "\n".join((gaps, times, "", *notes))


def _pair(spread: dict[str, float] | None, digits: int) -> str:
    return f"{spread['median']:.{digits}f} / {spread['worst']:.{digits}f}" if spread else "-"


if __name__ == "__main__":
    common.main(__doc__ or "", measure, show)
