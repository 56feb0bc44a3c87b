"""Pins of jobs that are certainly gone go too; no other pin does."""

import contextlib
import signal
import sqlite3
from collections.abc import Iterator

import pytest

from tests.cluster.test_features import has
from tests.kit.support import Gates, Make, Nodes, NodeView, until
from tests.local_cluster import LocalCluster
from tests.local_cluster.control import Control
from tests.local_cluster.layout import HEAD
from tests.local_cluster.programs import await_idle, start_slurmctld

pytestmark = [pytest.mark.cluster, pytest.mark.root]

UNHEARD_OF = 4_000_001


def age(view: NodeView, *job_ids: int) -> None:
    """Make the pins of jobs old enough to be judged."""
    with contextlib.closing(sqlite3.connect(view.path("state_dir") / "ledger.sqlite", timeout=5)) as database:
        for job_id in job_ids:
            older = "UPDATE pins SET asked_monotonic = asked_monotonic - 600 WHERE holder = ?"
            database.execute(older, (f"job:{job_id}",))
        database.commit()


def holders(view: NodeView) -> set[int]:
    return {int(holder.partition(":")[2]) for _, holder in view.pins()}


@contextlib.contextmanager
def epilog_lost(view: NodeView) -> Iterator[None]:
    """Another team's epilog in the place of ours."""
    ours = str(view.cluster.directory / "epilog.d" / "50-scratch-slurm")
    view.cluster.run(["mount", "--bind", "/bin/true", ours], node=view.name)
    try:
        yield
    finally:
        view.cluster.run(["umount", ours], node=view.name)


def test_each_job_whose_epilog_was_lost_lets_go_by_its_own_id(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n1, n2, task_hold, het_hold = make(), node("n1"), node("n2"), gate(), gate()
    with epilog_lost(n1):
        array = cluster.sbatch(
            f"[ $SLURM_ARRAY_TASK_ID = 1 ] && exit\n{task_hold.lines}", f"--datasets={d.name}", "-wn1", "--array=1-2"
        )
        # A part on a node of its own each.
        het = cluster.sbatch(het_hold.lines, f"--datasets={d.name}", "-wn1", ":", f"--datasets={d.name}", "-wn2")
        task_hold.wait_reached("n1")
        het_hold.wait_reached("n1")
        parts = {job.node_list: job.job_id for job in cluster.jobs(het)}
        tasks = {job.fields["ArrayTaskId"]: job.job_id for job in cluster.jobs(array)}
        assert len({*parts.values(), *tasks.values()}) == 4
        until(lambda: holders(n1) == {parts["n1"], *tasks.values()}, "three pin here")
        until(lambda: holders(n2) == {parts["n2"]}, "one pins there")
        cluster.wait_job(tasks["1"])
        age(n1, parts["n1"], *tasks.values())
        age(n2, parts["n2"])
        until(lambda: holders(n1) == {parts["n1"], tasks["2"]}, "the task that ended lets go, nobody else")
        task_hold.open()
        cluster.wait_job(tasks["2"])
        until(lambda: holders(n1) == {parts["n1"]}, "the other task lets go")
        assert holders(n2) == {parts["n2"]}
        het_hold.open()
        cluster.wait_jobs(het)
        until(lambda: holders(n1) == set(), "the part here lets go")
    events = n1.command("events", "--json").stdout
    assert "released-gone" in events
    assert n1.use_count(d.name) == 0


def test_a_completing_a_suspended_and_a_requeued_job_keep_their_pins(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n1, hold = make(), node("n1"), gate()
    epilog = cluster.directory / "epilog.d" / "50-scratch-slurm"
    quick = epilog.read_text()
    epilog.write_text(f"#!/bin/sh\n{hold.lines}{quick}")
    asked = [f"--datasets={d.name}", "-wn1"]
    try:
        suspended = cluster.sbatch("exec sleep 600", *asked)
        cluster.wait_running(suspended)
        cluster.run(["scontrol", "suspend", str(suspended)])
        completing = cluster.sbatch("true", *asked)
        hold.wait_reached("n1")
        cluster.wait_state(completing, "COMPLETING")
        assert n1.hook("prolog", UNHEARD_OF, d.name) == 0
        age(n1, suspended, completing, UNHEARD_OF)
        until(lambda: UNHEARD_OF not in holders(n1), "the job that nobody knows lets go")
        assert holders(n1) == {suspended, completing}
    finally:
        epilog.write_text(quick)
    hold.open()
    cluster.wait_job(completing)
    assert holders(n1) == {suspended}
    with epilog_lost(n1):
        cluster.run(["scontrol", "requeuehold", str(suspended)])
        cluster.wait_state(suspended, "PENDING")
        assert n1.hook("prolog", UNHEARD_OF, d.name) == 0
        age(n1, UNHEARD_OF)
        until(lambda: UNHEARD_OF not in holders(n1), "the job that nobody knows lets go")
        assert holders(n1) == {suspended}, "a job that waits to run again"
        cluster.run(["scancel", str(suspended)])
        until(lambda: holders(n1) == set(), "cancelled, it lets go")


def test_a_young_pin_is_not_judged_and_none_while_the_controller_is_down(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    d, n2 = make(), node("n2")
    young, old = UNHEARD_OF + 1, UNHEARD_OF + 2
    assert n2.hook("prolog", young, d.name) == n2.hook("prolog", old, d.name) == 0
    age(n2, old)
    until(lambda: holders(n2) == {young}, "the old one lets go, the young one is not asked about")
    until(lambda: has(cluster, "n2", d), "its feature is told")
    control = Control(cluster.layout.control_socket(HEAD))
    control.end("slurmctld", signal.SIGTERM, 10)
    try:
        age(n2, young)
        asking = ["pgrep", "-f", "^(squeue|sinfo) |pyslurm_child"]
        until(lambda: cluster.run(asking, node="n2", check=False).stdout, "n2 asks", 45)
        status = n2.status(d.name)
        assert (status.state, status.use_count) == ("cached", 1), "no answer is no reason"
    finally:
        start_slurmctld(cluster.layout)
        await_idle(cluster.layout, cluster.layout.node_names)
    until(lambda: holders(n2) == set(), "the controller answers, and knows no such job", 45)
    until(lambda: has(cluster, "n2", d), "the feature is told again after the restart", 45)


@contextlib.contextmanager
def called_otherwise(view: NodeView) -> Iterator[None]:
    """The node's host has another name than its NodeName, as on cloud machines."""
    view.cluster.run(["hostname", "ip-10-0-0-17"], node=view.name)
    try:
        view.restart_daemon()
        yield
    finally:
        view.cluster.run(["hostname", view.name], node=view.name)
        view.restart_daemon()


def test_a_node_whose_host_is_called_otherwise_judges_nobody_by_nodes_until_a_prolog_tells_its_name(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n4, hold, told = make(), node("n4"), gate(), gate()
    with called_otherwise(n4):
        running = cluster.sbatch(hold.lines, "-wn4")
        hold.wait_reached("n4")
        gone = UNHEARD_OF + 3
        assert n4.hook("prolog", running, d.name) == n4.hook("prolog", gone, d.name) == 0
        age(n4, running, gone)
        until(lambda: holders(n4) == {running}, "who is gone lets go, who may be here does not")
        assert "does not know this node" in n4.command("status", "--json").stdout
        job = cluster.sbatch(told.lines, f"--datasets={d.name}", "-wn4")
        told.wait_reached("n4")
        until(lambda: has(cluster, "n4", d), "its prolog told the name, and the feature is told")
        age(n4, job)
        n4.hook("prolog", gone, d.name)
        age(n4, gone)
        until(lambda: holders(n4) == {running, job}, "who is gone lets go, who is here does not")
        hold.open()
        told.open()
        cluster.wait_job(running)
        cluster.wait_job(job)
        until(lambda: holders(n4) == set(), "all let go")


def test_a_node_that_crashed_holds_nothing_when_it_is_back(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n4, hold = make(), node("n4"), gate()
    job = cluster.sbatch(hold.lines, f"--datasets={d.name}", "-wn4", "--no-requeue")
    hold.wait_reached("n4")
    assert holders(n4) == {job}
    cluster.crash_node("n4")
    cluster.boot_node("n4")
    until(lambda: holders(n4) == set(), "nothing is pinned")
    assert n4.use_count(d.name) == 0
    # The nodes share a kernel, whose boot Slurm believes: to it the job runs on.
    cluster.run(["scancel", str(job)])
    cluster.wait_job(job)
    assert cluster.drained() == []


def test_slurmd_the_job_and_the_daemon_killed_at_once_leave_no_pin(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    """The node has not booted since, and no epilog of ours ever runs: only Slurm can tell that the job is gone."""
    d, n4, hold = make(), node("n4"), gate()
    job = cluster.sbatch(hold.lines, f"--datasets={d.name}", "-wn4")
    hold.wait_reached("n4")
    with epilog_lost(n4):
        cluster.kill_slurmd("n4")
        cluster.kill_daemon("n4")
        stepds = cluster.run(["pgrep", "-f", f"^slurmstepd: \\[{job}\\."], node="n4").stdout.split()
        cluster.run(["kill", "-KILL", *stepds], node="n4")
        cluster.start_slurmd("n4")
        cluster.start_daemon("n4")
        assert holders(n4) == {job}
        age(n4, job)
        n4.status(d.name)
        assert holders(n4) == {job}, "to Slurm it runs on"
        cluster.run(["scancel", str(job)])
        assert cluster.wait_job(job).state == "CANCELLED"
        until(lambda: holders(n4) == set(), "it lets go")
    assert n4.use_count(d.name) == 0
