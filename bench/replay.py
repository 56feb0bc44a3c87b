"""A node's days replayed: slow-storage bytes read under the planner, LRU, LFU, the tool before this one, and foresight.

Runs in the pure domain, on the traces of bench/_traces.py. Slow-storage bytes are the reads that the cache did not
serve, and all that copies read. A copy takes its time, and holds its whole room meanwhile. The full run also changes
each of the traces' figures in turn, on other seeds: what is better must be so elsewhere too.
"""

import sys

sys.path[0] = sys.path[0].rpartition("/")[0]  # not bench/: its copy.py would stand in for the standard library's

import contextlib
from collections.abc import Callable, Mapping

from bench import _common as common
from bench._choosing import TIB
from bench._policies import HORIZON_S, PERIOD_S, Figures, ancestor, foresight, lfu, lru, nothing, planner, sparing_lru
from bench._traces import DATASETS, GRID_S, SLOTS, Node, Policy, Trace, World, make_trace, replay

with contextlib.suppress(ImportError):
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import coo_array


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
    rows: list[int] = []
    columns: list[int] = []
    cells: list[float] = []
    limits: list[float] = []
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
    rows: list[common.Figures] = []
    sweep: list[common.Figures] = []
    elsewhere: list[common.Figures] = []
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
