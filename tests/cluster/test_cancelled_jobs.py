"""Jobs that are cancelled, and epilogs that run more than once: what was held is let go, and copies stop."""

import pytest

from tests.kit.support import MB, Gates, Make, Nodes, until
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.root]

ENDLESS_BYTES = 4000 * MB


def test_a_job_cancelled_in_its_prolog_stops_the_copy_and_frees_the_node_soon(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    d, n1 = make(image_bytes=ENDLESS_BYTES), node("n1")
    job = cluster.sbatch("true", f"--datasets={d.name}", "--datasets-wait=5m", "-wn1")
    cluster.wait_prolog(job)
    until(lambda: n1.status(d.name).staged_bytes > 0, "the copy is under way")
    assert n1.workers() != [], "a worker copies: what is looked for below can be seen"
    cluster.run(["scancel", str(job)])
    # Slurm neither stops nor tells a prolog: it asks some 10 s after its beginning.
    assert cluster.wait_job(job, timeout=40).state == "CANCELLED"
    assert n1.pins() == set()
    until(lambda: n1.staging() == [], "the partial copy is deleted")
    until(lambda: n1.workers() == [], "nobody copies")
    assert n1.use_count(d.name) == 0
    assert d.name not in n1.cached()


def test_a_job_cancelled_while_it_runs_stops_the_copy_that_it_alone_wanted(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n1, hold = make(image_bytes=ENDLESS_BYTES), node("n1"), gate()
    job = cluster.sbatch(hold.lines, f"--datasets={d.name}", "--datasets-wait=0", "-wn1")
    hold.wait_reached("n1")
    until(lambda: n1.status(d.name).staged_bytes > 0, "the copy is under way")
    assert len(n1.staging()) == 2
    assert n1.workers() != []
    cluster.run(["scancel", str(job)])
    assert cluster.wait_job(job).state == "CANCELLED"
    assert n1.pins() == set()
    until(lambda: n1.staging() == [], "the partial copy is deleted")
    until(lambda: n1.workers() == [], "nobody copies")
    assert n1.use_count(d.name) == 0
    assert n1.is_served_from_source(d.name)


def test_a_copy_that_another_job_wants_goes_on_when_one_is_cancelled(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n1, holds = make(image_bytes=100 * MB), node("n1"), (gate(), gate())
    first, second = (cluster.sbatch(hold.lines, f"--datasets={d.name}", "--datasets-wait=0", "-wn1") for hold in holds)
    for hold in holds:
        hold.wait_reached("n1")
    cluster.run(["scancel", str(first)])
    assert cluster.wait_job(first).state == "CANCELLED"
    assert n1.pins() == {(d.name, f"job:{second}")}
    until(lambda: n1.is_served_from_cache(d.name), "the copy is complete")
    assert n1.copies(d.name) == 1
    holds[1].open()
    cluster.wait_job(second)


def test_an_epilog_that_runs_twice_releases_nothing_of_others(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n1, hold = make(), node("n1"), gate()
    done = cluster.sbatch("true", f"--datasets={d.name}", "-wn1")
    cluster.wait_job(done)
    held = cluster.sbatch(hold.lines, f"--datasets={d.name}", "-wn1")
    hold.wait_reached("n1")
    assert n1.hook("epilog", done, d.name) == 0
    assert n1.pins() == {(d.name, f"job:{held}")}
    assert n1.use_count(d.name) == 1
    hold.open()
    cluster.wait_job(held)
    assert [n1.hook("epilog", held, d.name) for _ in range(2)] == [0, 0]
    assert n1.pins() == set()
    assert n1.use_count(d.name) == 0
