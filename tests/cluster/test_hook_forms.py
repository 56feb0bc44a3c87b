"""How Slurm gets to our hooks, and that nothing on this way fails a job or drains a node: not what is missing on a node
that was not reached yet or is half removed, nor a limit of Slurm's that is over."""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.support import NodeView, make_dataset, until
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.root]

PLUGIN = "scratch_slurm.so"
STUB = "50-scratch-slurm"


class Site:
    """A cluster of one node. The head has all of ours in `lib`; the node has a directory of its own in its place."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.view = NodeView(cluster, "n1")
        self.head_lib = cluster.directory / "lib"
        self.lib = cluster.directory / "lib-of-n1"
        for directory in (self.head_lib, self.lib):
            directory.mkdir()
        shutil.copy(cluster.layout.spank_plugin, self.head_lib)
        self.dataset = make_dataset(cluster.source_dir, "alpha").name
        cluster.run(["mount", "--bind", str(self.lib), str(self.head_lib)], node="n1")
        settings = cluster.settings
        self.line = (
            f"optional {self.head_lib}/{PLUGIN} hooks={self.head_lib}"
            f" mount_dir={settings['mount_dir']} run_dir={settings['run_dir']}\n"
        )

    def tell_slurm(self, line: str) -> None:
        """Change plugstack.conf and have the node's slurmd see it, as after the node's installation."""
        (self.cluster.directory / "plugstack.conf").write_text(line)
        self.restart_slurmd()

    def restart_slurmd(self) -> None:
        self.cluster.kill_slurmd("n1")
        self.cluster.start_slurmd("n1")

    def put_plugin(self) -> None:
        shutil.copy(self.cluster.layout.spank_plugin, self.lib)

    def put_hooks(self) -> None:
        for hook in ("prolog.d", "epilog.d"):
            shutil.copytree(self.cluster.directory / hook, self.lib / hook)

    def remove(self) -> None:
        shutil.rmtree(self.lib, ignore_errors=True)
        self.lib.mkdir(exist_ok=True)

    def jobs_run(self, *, asking: bool) -> bool:
        """Run a plain job and, where sbatch knows the option, one that asks; tell whether a job's hooks ran."""
        ran = False
        for options in ([], [f"--datasets={self.dataset}"] if asking else []):
            job = self.cluster.sbatch("echo ran", *options)
            info = self.cluster.wait_job(job)
            assert (info.state, info.exit_code, info.restarts) == ("COMPLETED", "0:0", 0)
            assert "ran" in self.cluster.job_output(job).splitlines()
            assert self.cluster.drained() == []
            if (self.view.path("state_dir") / "ledger.sqlite").exists():
                ran = ran or self.view.was_ever_pinned_by(job)
        assert self.view.pins() == set()
        return ran


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with LocalCluster(nodes=1, daemons=False) as cluster:
        yield Site(cluster)


def test_jobs_run_at_each_stage_of_an_installation_and_of_a_removal(site: Site) -> None:
    """The wrong order too: Slurm's line first, the node's files later, and away before the line."""
    site.tell_slurm("")
    assert not site.jobs_run(asking=False)
    site.tell_slurm(site.line)
    assert not site.jobs_run(asking=True), "a node that has nothing of ours"
    site.put_plugin()
    assert not site.jobs_run(asking=True), "the plugin is there, slurmd does not know it runs hooks"
    site.restart_slurmd()
    assert not site.jobs_run(asking=True), "the plugin is there, the hooks are not"
    site.put_hooks()
    assert site.jobs_run(asking=True), "all is there"
    site.remove()
    assert not site.jobs_run(asking=True), "all was taken from under slurmd"
    site.tell_slurm("")
    assert not site.jobs_run(asking=False)


def not_executable(stub: Path) -> None:
    stub.chmod(0o644)


def without_its_shell(stub: Path) -> None:
    stub.write_text("#!/no/such/shell\n")


def failing(stub: Path) -> None:
    stub.write_text("#!/bin/sh\nexit 1\n")


def killed(stub: Path) -> None:
    stub.write_text("#!/bin/sh\nkill -9 $$\n")


@pytest.mark.parametrize("spoil", [not_executable, without_its_shell, failing, killed])
def test_a_stub_that_cannot_do_its_work_fails_no_job(site: Site, spoil: Callable[..., Any]) -> None:
    site.remove()
    site.put_plugin()
    site.put_hooks()
    for hook in ("prolog.d", "epilog.d"):
        spoil(site.lib / hook / STUB)
    site.tell_slurm(site.line)
    assert not site.jobs_run(asking=True)


def hang(cluster: LocalCluster) -> None:
    """In the place of scratch-slurm-hook comes a program that no signal but SIGKILL ends."""
    programs = cluster.directory / "hanging"
    programs.mkdir()
    hook = programs / "scratch-slurm-hook"
    hook.write_text("#!/bin/sh\ntrap '' TERM INT HUP\nexec sleep 1000\n")
    hook.chmod(0o755)
    for stub in cluster.directory.glob(f"*.d/{STUB}"):
        stub.write_text(stub.read_text().replace(str(cluster.layout.bin_dir), str(programs)))


def test_hooks_that_outlive_slurms_limit_drain_no_node_where_the_plugin_runs_them() -> None:
    """22.05 drains it whatever the plugin returns then, so it ends before; 24.11 and later ask for its exit code."""
    with LocalCluster(nodes=1, daemons=False, slurm={"PrologEpilogTimeout": "2"}) as cluster:
        hang(cluster)
        job = cluster.sbatch("true", "--datasets=alpha")
        assert cluster.wait_job(job).state == "COMPLETED"
        assert cluster.drained() == []


def is_over(cluster: LocalCluster, job: int) -> bool:
    return bool(cluster.drained()) or cluster.jobs(job)[0].is_final


def test_hooks_that_outlive_slurms_limit_drain_no_node_where_slurm_runs_them() -> None:
    """Slurm leaves 10 ms, in which a busy machine may not run the stub at all: one job of three shows that it can."""
    with LocalCluster(nodes=1, daemons=False, slurm={"PrologEpilogTimeout": "1"}, slurm_runs_hooks=True) as cluster:
        hang(cluster)
        for _ in range(3):
            job = cluster.sbatch("true", "--datasets=alpha")
            until(
                functools.partial(is_over, cluster, job),
                "the job is over, or the node is",
                30,
            )
            if not cluster.drained():
                return
            cluster.run(["scancel", str(job)])
            cluster.wait_job(job)
            cluster.run(["scontrol", "update", "nodename=n1", "state=resume"], check=False)
        pytest.fail(f"three of three jobs drained the node: {cluster.drained()}")


def test_hooks_that_both_run_pin_once_and_let_go() -> None:
    """A site that changes from one form to the other has both for a while."""
    with LocalCluster(nodes=1, daemons=False, slurm_runs_hooks=True) as cluster:
        site = Site(cluster)
        site.put_plugin()
        site.put_hooks()
        site.tell_slurm(site.line)
        assert site.jobs_run(asking=True)
