"""Slurm's node features follow the cache, through all that makes Slurm forget them."""

import json
import re
import sys

import pytest

from tests.kit.support import Dataset, Make, Nodes, NodeView, until
from tests.local_cluster import LocalCluster
from tests.local_cluster.configs import config_yaml
from tests.local_cluster.layout import merge_settings
from tests.local_cluster.requirements import has_job_submit_lua

pytestmark = [pytest.mark.cluster, pytest.mark.root]


def features(cluster: LocalCluster, node: str) -> tuple[list[str], list[str]]:
    """(available, active) as people see them."""
    text = cluster.run(["sinfo", "--noheader", "-N", "-n", node, "-o", "%f|%b"]).stdout.strip()
    available, active = text.replace("(null)", "").split("|")
    return available.split(",") if available else [], active.split(",") if active else []


def has(cluster: LocalCluster, node: str, dataset: Dataset) -> bool:
    return all(f"ds:{dataset.name}" in some for some in features(cluster, node))


def extra(cluster: LocalCluster, node: str) -> str:
    return cluster.run(["sinfo", "--noheader", "-N", "-n", node, "-O", "extra:"]).stdout.strip().replace("(null)", "")


def update(cluster: LocalCluster, node: str, **values: str) -> None:
    words = [f"{name}={value}" for name, value in values.items()]
    cluster.run(["scontrol", "update", f"nodename={node}", *words])


def cache(cluster: LocalCluster, dataset: Dataset, *nodes: str) -> None:
    """Let a job bring a dataset into the cache of nodes, where it stays."""
    job = cluster.sbatch("true", f"--datasets={dataset.name}", f"-N{len(nodes)}", f"-w{','.join(nodes)}")
    assert cluster.wait_job(job).state == "COMPLETED"


def own(some: list[str]) -> list[str]:
    return [name for name in some if not name.startswith("ds:")]


def test_features_follow_the_cache(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    d, other, n1 = make(), make(), node("n1")
    cache(cluster, d, "n1")
    cache(cluster, other, "n1", "n2")
    until(lambda: has(cluster, "n1", d) and has(cluster, "n1", other), "n1 has both")
    until(lambda: has(cluster, "n2", other), "n2 has one")
    assert not has(cluster, "n2", d)
    told = json.loads(extra(cluster, "n1"))["scratch_slurm"]["datasets"]
    assert {d.name, other.name} <= set(told)
    shown = cluster.run(["sinfo", "-N", "-o", "%N %b"]).stdout
    assert f"ds:{d.name}" in next(line for line in shown.splitlines() if line.startswith("n1 "))
    job = cluster.sbatch("hostname", f"--constraint=ds:{d.name}")
    assert cluster.wait_job(job).state == "COMPLETED"
    assert cluster.job_output(job) == "n1\n", "a constraint finds the node"
    n1.command("evict", d.name)
    until(lambda: not has(cluster, "n1", d), "evicted, so not told any more")
    assert has(cluster, "n1", other)
    assert d.name not in extra(cluster, "n1")


@pytest.mark.skipif(not has_job_submit_lua(), reason="needs Slurm's job_submit/lua")
def test_a_job_goes_to_the_node_that_told_of_its_dataset(cluster: LocalCluster, make: Make) -> None:
    d = make()
    cache(cluster, d, "n3")
    until(lambda: has(cluster, "n3", d), "told")
    job = cluster.sbatch("true", f"--datasets={d.name}")
    assert cluster.wait_job(job).node_list == "n3", "not the first node, where a job goes that asks for nothing"


def test_what_is_the_administrators_own_stays(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    d = make()
    cache(cluster, d, "n2")
    until(lambda: has(cluster, "n2", d), "told")
    update(cluster, "n2", availablefeatures="zeta,gpu", activefeatures="gpu", extra="rack 7")
    until(lambda: has(cluster, "n2", d), "told again after the administrator's own update replaced it all")
    available, active = features(cluster, "n2")
    assert (own(available), own(active)) == (["zeta", "gpu"], ["gpu"])
    node("n2").command("evict", d.name)
    until(lambda: not has(cluster, "n2", d), "evicted, so not told any more")
    available, active = features(cluster, "n2")
    assert (own(available), own(active)) == (["zeta", "gpu"], ["gpu"])
    assert extra(cluster, "n2") == "rack 7"
    assert "extra-left-alone node=n2" in cluster.daemon_log("n2")
    update(cluster, "n2", availablefeatures="", activefeatures="", extra="")


def test_features_come_back_after_a_reconfigure(cluster: LocalCluster, make: Make) -> None:
    d = make()
    cache(cluster, d, "n1", "n2")
    until(lambda: has(cluster, "n1", d) and has(cluster, "n2", d), "told")
    cluster.run(["scontrol", "reconfigure"])
    until(lambda: has(cluster, "n1", d) and has(cluster, "n2", d), "told again")


def test_a_daemon_that_ends_leaves_its_features_and_unmount_takes_them_back(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    d, other, n3 = make(), make(), node("n3")
    cache(cluster, d, "n3")
    until(lambda: has(cluster, "n3", d), "told")
    update(cluster, "n3", availablefeatures="gpu", activefeatures="gpu")
    until(lambda: has(cluster, "n3", d), "told beside the administrator's")
    silent = config_yaml(merge_settings(cluster.settings, {"slurm": {"features": False}}))
    with n3.daemon_stopped():
        assert has(cluster, "n3", d), "an upgrade changes nothing"
        unmount(n3)
        assert features(cluster, "n3") == (["gpu"], ["gpu"])
        assert extra(cluster, "n3") == ""
    with n3.own_config(silent):
        n3.restart_daemon()
        update(cluster, "n3", availablefeatures="gpu", activefeatures="gpu")
        cache(cluster, other, "n3", "n4")
        until(lambda: has(cluster, "n4", other), "its neighbour tells")
        assert features(cluster, "n3") == (["gpu"], ["gpu"]), "told not to tell"
    n3.restart_daemon()
    until(lambda: has(cluster, "n3", d) and has(cluster, "n3", other), "it tells when it may")
    update(cluster, "n3", availablefeatures="", activefeatures="")


@pytest.mark.parametrize(("state", "stays"), [("running", True), ("maintenance", True), ("stopping", False)])
def test_a_node_that_shuts_down_takes_its_features_back(
    cluster: LocalCluster, make: Make, node: Nodes, state: str, stays: bool
) -> None:
    d = make()
    cache(cluster, d, "n3")
    until(lambda: has(cluster, "n3", d), "told")
    programs = cluster.layout.work_dir / f"systemd-{state}"
    programs.mkdir()
    (programs / "systemctl").write_text(f"#!/bin/sh\necho {state}\nexit 1\n")
    (programs / "systemctl").chmod(0o755)
    env = cluster.layout.daemon_environment()
    with node("n3").daemon_stopped():
        words = [str(cluster.layout.daemon_script), "--leaving"]
        cluster.run(words, node="n3", env={**env, "PATH": f"{programs}:{env['PATH']}"})
        assert has(cluster, "n3", d) == stays
    until(lambda: has(cluster, "n3", d), "told by the next daemon")


def unmount(view: NodeView) -> None:
    env = view.cluster.layout.daemon_environment()
    done = view.cluster.run([str(view.cluster.layout.daemon_script), "--unmount", "--force"], node=view.name, env=env)
    assert f"features of node {view.name}: taken back" in done.stdout


def test_status_says_who_is_asked(node: Nodes) -> None:
    status = json.loads(node("n1").command("status", "--json").stdout)
    assert status["slurm"].startswith(("Slurm's commands 2", "pyslurm 2"))
    assert f"slurm  {status['slurm']}" in node("n1").command("status").stdout


# Runs a program that may open the families of sockets that are named, as systemd would.
RESTRICTED = """
import errno, os, socket, sys
from tests.kit.seccomp import SOCKET, refuse
for name in {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"} - set(sys.argv[1].split()):
    refuse(SOCKET, errno.EAFNOSUPPORT, argument=0, equals=int(getattr(socket, name)))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_the_unit_lets_the_daemons_commands_reach_the_controller(cluster: LocalCluster) -> None:
    repository = cluster.layout.repository
    unit = (repository / "daemon" / "scratch-slurmd.service").read_text()
    families = re.findall(r"^RestrictAddressFamilies=(.*)$", unit, re.MULTILINE)
    words = [sys.executable, "-c", RESTRICTED, " ".join(families), "sinfo", "--noheader", "--format=%N"]
    found = cluster.run(words, env={"PYTHONPATH": str(repository)}, cwd=repository)
    assert found.stdout == "n[1-4]\n"
