"""A cache that is too small for what jobs ask: who is evicted, who is not, and what the others are told."""

import contextlib
import re
import threading
from collections.abc import Iterator

import pytest

from tests.kit.support import MB, Dataset, Gates, Make, NodeView
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.root]

CAPACITY_BYTES = 50 * MB
IMAGE_BYTES = 20 * MB


@pytest.fixture(scope="module")
def small(cluster: LocalCluster) -> Iterator[NodeView]:
    """n4 with a capacity for two images."""
    n4 = NodeView(cluster, "n4")
    with n4.settings({"capacity": CAPACITY_BYTES}):
        yield n4


class Sampler:
    """Looks at the cache directory all the time."""

    def __init__(self, view: NodeView) -> None:
        self.view = view
        self.most_bytes = 0
        self.samples = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(0.02):
                self.most_bytes = max(self.most_bytes, self.view.used_bytes())
                self.samples += 1

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def run_job(cluster: LocalCluster, dataset: Dataset, *options: str) -> str:
    """Run a job on the small node; returns what it printed."""
    script = "sha256sum $SCRATCH_DATASETS_DIR/$SCRATCH_DATASETS/data; echo $SCRATCH_DATASETS_STATE"
    job = cluster.sbatch(script, f"--datasets={dataset.name}", "-wn4", *options)
    assert cluster.wait_job(job).state == "COMPLETED"
    output = cluster.job_output(job)
    assert dataset.sha256 in output, "wherever it reads, the bytes are right"
    return output


def test_the_least_recently_used_goes_a_pinned_one_never_and_the_capacity_holds(
    cluster: LocalCluster, make: Make, small: NodeView, gate: Gates
) -> None:
    old, pinned, new, more = (make(image_bytes=IMAGE_BYTES) for _ in range(4))
    hold, sampler = gate(), Sampler(small)
    with sampler.running():
        assert f"{pinned.name}:cached" in run_job(cluster, pinned)
        assert f"{old.name}:cached" in run_job(cluster, old)
        # Now the least recently used one is pinned again: it must stay all the same.
        holder = cluster.sbatch(hold.lines, f"--datasets={pinned.name}", "-wn4")
        hold.wait_reached("n4")
        assert f"{new.name}:cached" in run_job(cluster, new)
        assert set(small.cached()) == {pinned.name, new.name}
        assert small.is_served_from_source(old.name)
        assert f"{more.name}:cached" in run_job(cluster, more)
        assert set(small.cached()) == {pinned.name, more.name}
        assert small.copies(pinned.name) == 1, "never evicted, not even for a moment"
        hold.open()
        cluster.wait_job(holder)
        # With nothing pinned the order of use alone decides.
        assert f"{old.name}:cached" in run_job(cluster, old)
        assert set(small.cached()) == {pinned.name, old.name}
    assert sampler.samples > 50
    assert 2 * IMAGE_BYTES <= sampler.most_bytes <= CAPACITY_BYTES


def test_a_job_runs_on_the_source_when_all_room_is_pinned_and_is_told(
    cluster: LocalCluster, make: Make, small: NodeView, gate: Gates
) -> None:
    one, two, third = (make(image_bytes=IMAGE_BYTES) for _ in range(3))
    hold = gate()
    holder = cluster.sbatch(hold.lines, f"--datasets={one.name},{two.name}", "-wn4")
    hold.wait_reached("n4")
    assert set(small.cached()) == {one.name, two.name}
    output = run_job(cluster, third, "--datasets-wait=1s")
    assert f"{third.name}:queued" in output
    assert re.search(rf"^scratch-slurm: {third.name}: .*waits for room: needs 20.0 MB", output, re.M)
    assert set(small.cached()) == {one.name, two.name}
    assert (small.copies(one.name), small.copies(two.name)) == (1, 1), "never evicted, not even for a moment"
    hold.open()
    cluster.wait_job(holder)


def test_a_job_runs_on_the_source_when_its_dataset_is_larger_than_the_cache_and_is_told(
    cluster: LocalCluster, make: Make, small: NodeView
) -> None:
    large = make(image_bytes=CAPACITY_BYTES + 10 * MB)
    output = run_job(cluster, large)
    assert re.search(rf"^scratch-slurm: {large.name}: .*does not fit: 60.0 MB, the capacity is 50.0 MB", output, re.M)
    assert large.name not in small.cached()
    assert small.staging() == []
