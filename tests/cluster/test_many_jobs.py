"""Many short jobs at random, with requeues and cancellations, over four caches that are too small for them.

`make stress` runs the long form: SCRATCH_STRESS_JOBS (500) from SCRATCH_STRESS_SEED (another one each time; it is
printed), and the same jobs again without scratch-slurm, to tell what the controller was asked because of it.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.kit.many_jobs import (
    CAPACITY_BYTES,
    USER,
    Fate,
    ManyJobs,
    Plan,
    describe,
    draw_plans,
    make_datasets,
)
from tests.kit.sdiag import Rpcs, compare_rpcs, read_rpcs
from tests.kit.support import four_nodes, until

pytestmark = [pytest.mark.cluster, pytest.mark.root]

SETTINGS: Mapping[str, Any] = {
    "capacity": CAPACITY_BYTES,
    "copy": {"bandwidth": "20 MB"},
    # What jobs read is worth no copy: evictions are for what they ask.
    "horizon": "0.01",
}


def run(plans: Sequence[Plan], settings: Mapping[str, Any]) -> tuple[ManyJobs, Rpcs]:
    """Run jobs, and look for all that is wrong at the end."""
    with four_nodes({**SETTINGS, **settings}) as cluster:
        many = ManyJobs(cluster, plans, make_datasets(cluster))
        rpcs = count_rpcs(many)
        assert many.find_wrong() == []
        until(lambda: not many.find_wrong_devices(), "each dataset has one device on each node")
    return many, rpcs


def run_without(plans: Sequence[Plan]) -> tuple[ManyJobs, Rpcs]:
    """Run the same jobs where nobody asks for datasets and no daemon runs."""
    with four_nodes(SETTINGS, daemons=False) as cluster:
        many = ManyJobs(cluster, [replace(plan, datasets=()) for plan in plans], {})
        rpcs = count_rpcs(many)
        assert many.find_wrong() == []
    return many, rpcs


def count_rpcs(many: ManyJobs) -> Rpcs:
    """Run jobs; returns what the controller was asked meanwhile, but for the looks of the test itself."""
    before = read_rpcs(many.cluster, USER)
    many.run()
    looks = Counter({"REQUEST_JOB_INFO": many.looks, "REQUEST_PARTITION_INFO": many.looks})  # squeue
    looks["REQUEST_STATS_INFO"] = 1  # sdiag
    return read_rpcs(many.cluster, USER) - before - Rpcs(looks, Counter({USER: looks.total()}))


@contextmanager
def told(plans: Sequence[Plan], seed: int) -> Iterator[None]:
    """Whatever fails says how to have it again."""
    try:
        yield
    except BaseException as exc:
        exc.add_note(f"seed {seed}, {sum(plan.jobs for plan in plans)} jobs")
        raise


def test_all_is_let_go_after_forty_jobs() -> None:
    seed = 64
    plans = draw_plans(random.Random(seed), 40)
    with told(plans, seed):
        many, rpcs = run(plans, {"preheat": {"wait": "1s", "timeout": "3s"}})
        assert sum(many.events["evicted"].values()) > 5, "the caches were too small"
        assert many.looks > 10
        assert many.in_prolog > 0
        assert set(many.met) == set(Fate) - {Fate.RUNS, Fate.RELEASES}
        assert 0 < sum(many.events["features"].values()) <= rpcs.by_type["REQUEST_UPDATE_NODE"]
        assert rpcs.by_type["REQUEST_JOB_INFO"] == 0, "nobody asks for all jobs"


@pytest.mark.stress
def test_all_is_let_go_after_five_hundred_jobs_and_what_the_controller_was_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = int(os.environ.get("SCRATCH_STRESS_SEED") or random.SystemRandom().randrange(10**6))
    plans = draw_plans(random.Random(seed), int(os.environ.get("SCRATCH_STRESS_JOBS") or 500))
    with told(plans, seed):
        many, rpcs = run(plans, {"preheat": {"wait": "2s", "timeout": "20s"}})
        bare, bare_rpcs = run_without(plans)
    with capsys.disabled():
        print(f"\nseed {seed}")
        print(*describe(many), "", *compare_rpcs(rpcs, bare_rpcs, len(many.most_bytes)), sep="\n")
        print(f"without scratch-slurm the jobs took {bare.took_s:.0f} s")
