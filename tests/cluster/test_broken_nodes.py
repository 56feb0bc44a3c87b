"""Whatever of ours is broken on a node: jobs run, exit 0, are told, and the node is not drained."""

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterator

import pytest

from tests.kit.support import Gates, Make, Nodes, NodeView, until
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.root]

READ = "sha256sum {mount_dir}/{name}/data; echo state=$SCRATCH_DATASETS_STATE"


def run_job(cluster: LocalCluster, name: str) -> str:
    """Run a job that asks for a dataset and reads it under its fixed path; returns what it printed."""
    script = READ.format(mount_dir=cluster.settings["mount_dir"], name=name)
    job = cluster.sbatch(script, f"--datasets={name}", "-wn1")
    info = cluster.wait_job(job)
    assert (info.state, info.exit_code, info.restarts) == ("COMPLETED", "0:0", 0)
    assert cluster.drained() == []
    return cluster.job_output(job)


def mounted(make: Make, view: NodeView):
    """Make a dataset, and wait until the node has it mounted."""
    dataset = make()
    view.status(dataset.name)
    return dataset


def test_with_the_daemon_stopped_a_job_reads_the_source_through_the_mount_that_stays(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    n1 = node("n1")
    d = mounted(make, n1)
    with n1.daemon_stopped():
        output = run_job(cluster, d.name)
        assert d.sha256 in output
        assert f"state={d.name}:source" in output
        assert re.search(r"^scratch-slurm: nothing more is cached for this job now: .*does not run", output, re.M)
        assert n1.pins() == set()


def test_with_the_daemon_stopped_a_job_finds_a_dataset_that_was_never_mounted(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    n1 = node("n1")
    with n1.daemon_stopped():
        d = make()
        assert not n1.mounted(d.name)[0]
        output = run_job(cluster, d.name)
        assert d.sha256 in output
        assert f"state={d.name}:source" in output
        device = n1.mounted(d.name)
        assert device[0]
    until(lambda: n1.status(d.name).path, "the next daemon takes it over")
    assert n1.mounted(d.name) == device


def test_the_epilog_releases_although_the_daemon_is_down(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n1, hold = make(), node("n1"), gate()
    job = cluster.sbatch(hold.lines, f"--datasets={d.name}", "-wn1")
    hold.wait_reached("n1")
    with n1.daemon_stopped():
        assert n1.pins() == {(d.name, f"job:{job}")}
        hold.open()
        assert cluster.wait_job(job).state == "COMPLETED"
        assert n1.pins() == set()
    assert n1.use_count(d.name) == 0


@contextlib.contextmanager
def read_only_state(view: NodeView) -> Iterator[None]:
    state_dir = view.cluster.settings["state_dir"]
    view.cluster.run(["mount", "-t", "tmpfs", "-o", "ro", "none", state_dir], node=view.name)
    try:
        yield
    finally:
        view.cluster.run(["umount", state_dir], node=view.name)


@contextlib.contextmanager
def locked_ledger(view: NodeView) -> Iterator[None]:
    ledger = view.path("state_dir") / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


@contextlib.contextmanager
def broken_config(view: NodeView) -> Iterator[None]:
    with view.own_config("source_dir: [nonsense\n"):
        yield


@contextlib.contextmanager
def no_run_dir(view: NodeView) -> Iterator[None]:
    """Somebody mounted a file system of his own over the run directory: no socket, and not root's."""
    run_dir = view.cluster.settings["run_dir"]
    view.cluster.run(["mount", "-t", "tmpfs", "-o", "mode=0777,uid=65534", "none", run_dir], node=view.name)
    try:
        yield
    finally:
        view.cluster.run(["umount", run_dir], node=view.name)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        pytest.param(read_only_state, "nothing is cached for this job: ", id="state-dir-read-only"),
        pytest.param(no_run_dir, "the prolog left no word on this node", id="run-dir-of-somebody-else"),
    ],
)
def test_a_job_runs_and_is_told_with_a_node_that_has(
    cluster: LocalCluster,
    make: Make,
    node: Nodes,
    broken: Callable[..., contextlib.AbstractContextManager[None]],
    told: str,
) -> None:
    n1 = node("n1")
    d = mounted(make, n1)
    with broken(n1):
        output = run_job(cluster, d.name)
    assert d.sha256 in output
    assert f"scratch-slurm: {told}" in output


def test_a_job_is_served_by_the_last_good_values_while_the_configuration_is_broken(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    n1 = node("n1")
    d = mounted(make, n1)
    with broken_config(n1):
        output = run_job(cluster, d.name)
    assert d.sha256 in output
    assert re.search(rf"^state={d.name}:(cached|staging|source)$", output, re.M)
    assert "the prolog left no word" not in output


def test_a_job_runs_and_is_told_while_somebody_holds_the_ledger(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    n1, hold = node("n1"), gate()
    d = mounted(make, n1)
    with locked_ledger(n1):
        job = cluster.sbatch(hold.lines, f"--datasets={d.name}", "-wn1")
        hold.wait_reached("n1")
    hold.open()
    assert cluster.wait_job(job).state == "COMPLETED"
    assert "scratch-slurm: nothing is cached for this job: " in cluster.job_output(job)
    assert n1.pins() == set()


def test_a_job_that_asks_for_nothing_starts_no_python_in_the_hooks(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    d, n1 = make(), node("n1")
    asks_for_nothing = executed_by_slurmd(n1, lambda: cluster.wait_job(cluster.sbatch("true", "-wn1")))
    asks = executed_by_slurmd(n1, lambda: cluster.wait_job(cluster.sbatch("true", "-wn1", f"--datasets={d.name}")))

    def hooks(programs: list[str]) -> list[str]:
        return [program for program in programs if "50-scratch-slurm" in program or "scratch-slurm-hook" in program]

    assert hooks(asks_for_nothing) == []
    assert [program for program in asks_for_nothing if "python" in program or "/timeout" in program] == []
    assert len(hooks(asks)) > 4, "a hook that runs can be seen: wrapper, stub and Python, twice"


def executed_by_slurmd(view: NodeView, work: Callable[[], object]) -> list[str]:
    """Do something; returns the programs that slurmd and its children executed meanwhile, in order."""
    cluster, trace = view.cluster, view.cluster.layout.work_dir / "strace.txt"
    trace.unlink(missing_ok=True)
    pid = cluster.run(["pgrep", "-x", "slurmd"], node=view.name).stdout.split()[0]
    tracing = ["strace", "-f", "-e", "trace=execve", "-s", "300", "-o", str(trace), "-p", pid]
    with view.background(tracing, ready=trace.exists):
        work()
    return re.findall(r'execve\("([^"]+)".* = 0$', trace.read_text(), re.M)
