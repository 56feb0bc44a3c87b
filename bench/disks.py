"""Several disks: how far the plan is from the best placing, each image whole on one disk.

Against the least bound that is proven of the optimum: the plan's own, over the sum of all disks, or that of a MILP
solver which places as well (HiGHS in scipy, `pip install -e .[bench]`; left out without it).
"""

import sys

sys.path[0] = sys.path[0].rpartition("/")[0]  # not bench/: its copy.py would stand in for the standard library's

import contextlib
import random
from functools import partial

from bench import _common as common
from bench._choosing import GIB, TIB, log_normal_size
from bench.plan import HORIZON_S, silence, spread, timed
from scratch_slurm.domain.dataset import Card, Disk, Node, Reads
from scratch_slurm.domain.model import Generation, Location, MountedImage, SourceImage, Space
from scratch_slurm.domain.planner import Plan, plan_cards

with contextlib.suppress(ImportError):
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix

ALL_BYTES = 4 * TIB
DATASETS = 100
DISKS = (1, 2, 4, 8)


def make_card(rng: random.Random, number: int, largest_bytes: int) -> Card:
    """A dataset that is read from the source; none is larger than a disk."""
    size = log_normal_size(rng)
    while size > largest_bytes:
        size = log_normal_size(rng)
    name, rate = f"d{number:03}", rng.lognormvariate(0.0, 1.2) * 100e6
    generation = Generation(f"{number:016x}", size)
    image = SourceImage(name, Location("/source", f"{name}.squashfs"), generation, "squashfs")
    mounted = MountedImage(name, f"loop{number}", generation.id)
    return Card(name, image=image, mounted=mounted, reads=Reads(rate, streak_s=HORIZON_S))


def bound_by_milp(plan: Plan, capacity_bytes: int, disks: int, limit_s: float) -> float | None:
    """Prove a bound on what any placing saves; None without scipy."""
    if "milp" not in globals():
        return None
    verdicts = [each for each in plan.wishes.verdicts.values() if each.value_bytes > 0]
    scale = max(each.value_bytes for each in verdicts)
    count = len(verdicts)
    # x[d, k]: dataset d lies on disk k. Each lies on one at most, and each disk holds what it holds.
    columns = np.arange(count * disks)
    sizes = np.repeat([each.size_bytes / capacity_bytes for each in verdicts], disks)
    once = coo_matrix((np.ones(count * disks), (columns // disks, columns)))
    room = coo_matrix((sizes, (columns % disks, columns)))
    with silence():
        found = milp(
            -np.repeat([each.value_bytes / scale for each in verdicts], disks),
            constraints=[LinearConstraint(once, ub=1.0), LinearConstraint(room, ub=1.0)],
            integrality=np.ones(count * disks),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 1e-5, "time_limit": limit_s},
        )
    return None if found.mip_dual_bound is None else float(-found.mip_dual_bound * scale)


def measure(quick: bool) -> common.Figures:
    runs, limit_s = (2, 1.0) if quick else (9, 10.0)
    rows = []
    for disks in DISKS:
        capacity_bytes = ALL_BYTES // disks
        gaps, said, left_out, times_s = [], [], [], []
        for seed in range(runs):
            rng = random.Random(f"disks {seed}")
            cards = [make_card(rng, number, ALL_BYTES // max(DISKS)) for number in range(DATASETS)]
            space = Space(capacity_bytes, 0, 0, capacity_bytes)
            node = Node(tuple(Disk(f"/ssd{number}", space) for number in range(disks)), HORIZON_S)
            by_name = {card.name: card for card in cards}
            plan, took_s = timed(partial(plan_cards, by_name, node))
            bound_bytes = bound_by_milp(plan, capacity_bytes, disks, limit_s)
            ceiling = min(plan.wishes.knapsack.bound_bytes, bound_bytes or plan.wishes.knapsack.bound_bytes)
            gaps.append(max(0.0, 1 - plan.value_bytes / ceiling))
            said.append(plan.gap)
            left_out.append(float(len(plan.unplaced)))
            times_s.append(took_s)
        rows.append(
            {
                "disks": disks,
                "gap_percent": spread(gaps, 100),
                "said_percent": spread(said, 100),
                "unplaced": spread(left_out, 1),
                "ms": spread(times_s, 1000),
            }
        )
    return {"milp": "milp" in globals(), "runs": runs, "rows": rows}


def show(figures: common.Figures) -> str:
    keys = (("gap_percent", 2), ("said_percent", 2), ("unplaced", 0), ("ms", 1))
    table = common.table(
        ("disks", "distance, %", "as it says, %", "find no disk", "CPU of a plan, ms"),
        [(row["disks"], *(_pair(row[key], digits) for key, digits in keys)) for row in figures["rows"]],
    )
    notes = [f"Median / worst of {figures['runs']} nodes with {DATASETS} datasets each, on disks of together "
             f"{ALL_BYTES // GIB} GiB; no image is larger than {ALL_BYTES // max(DISKS) // GIB} GiB."]  # fmt: skip
    if not figures["milp"]:
        notes.append("scipy is not installed (pip install -e .[bench]): the distance is that from our own bound.")
    return "\n".join((table, "", *notes))


def _pair(found: dict[str, float], digits: int) -> str:
    return f"{found['median']:.{digits}f} / {found['worst']:.{digits}f}"


if __name__ == "__main__":
    common.main(__doc__ or "", measure, show)
