"""Nodes that are powered down, and nodes that Slurm does not know before they come."""

import signal
from pathlib import Path

import pytest

from tests.kit.support import SHORT_S, make_dataset, until
from tests.local_cluster import LocalCluster, programs
from tests.local_cluster.claim import choose_ports
from tests.local_cluster.control import Control
from tests.local_cluster.layout import HEAD

pytestmark = [pytest.mark.cluster, pytest.mark.root]


def features(cluster: LocalCluster, node: str) -> str:
    """The node's active features; sinfo does not tell of all that are powered down."""
    text = cluster.run(["scontrol", "--all", "show", "node", node]).stdout
    return next(line.strip() for line in text.splitlines() if "ActiveFeatures=" in line).removeprefix("ActiveFeatures=")


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def test_a_node_that_is_powered_down_attracts_no_job(tmp_path: Path) -> None:
    """The administrator's SuspendProgram has our line after the one that powers down, as docs/ADMIN.md says."""
    asked, off, forgot, resumed = (tmp_path / name for name in ("asked", "off", "forgot", "resumed"))
    wait = f'echo "$1" >{asked}; while [ ! -e {off} ]; do sleep 0.1; done'
    slurm = {
        "SuspendProgram": script(
            tmp_path / "suspend", wait, f". {tmp_path}/forget >{forgot} 2>&1; touch {forgot}.done"
        ),
        "ResumeProgram": script(tmp_path / "resume", f"touch {resumed}"),
        "SuspendTime": "3600",
        "SuspendTimeout": "4",
    }
    settings = {"slurm": {"reconcile_interval": "1s"}}
    with LocalCluster(nodes=3, settings=settings, slurm=slurm) as own:
        forget = f"{own.layout.bin_dir}/scratch-slurm forget-nodes"
        script(tmp_path / "forget", f'{forget} "$1"')
        make_dataset(own.source_dir, "alpha")
        own.run(["scontrol", "update", "nodename=n3", "availablefeatures=gpu", "activefeatures=gpu"])
        own.run(["scratch-slurm", "preheat", "alpha"], node="n3", env={"SCRATCH_SLURM_CONFIG": str(own.layout.config)})
        until(lambda: features(own, "n3") == "gpu,ds:alpha", "n3 tells that it has alpha", 20)
        own.run(["scontrol", "update", "nodename=n3", "state=power_down"])
        until(asked.exists, "n3 is to be powered down", 60)
        own.stop_daemon("n3")
        own.kill_slurmd("n3")
        off.touch()
        until(Path(f"{forgot}.done").exists, "the line has run", 30)
        assert forgot.read_text() == "n3: features taken back\n"
        assert features(own, "n3") == "gpu", "the administrator's own stays"
        job = own.wait_job(own.sbatch("true", "--datasets=alpha"))
        assert (job.state, job.node_list) in {("COMPLETED", "n1"), ("COMPLETED", "n2")}
        assert not resumed.exists()
        said = own.run([*forget.split(), "n[2-4]"], check=False)
        assert said.returncode != 0 and "n4: Slurm does not tell" in said.stderr
        assert own.run([*forget.split(), "n[1"], check=False).returncode != 0


def test_a_dynamic_node_tells_its_features_soon_after_it_has_come() -> None:
    """Its daemon starts before its slurmd has registered it."""
    settings = {"slurm": {"reconcile_interval": "1h"}}
    slurm = {"MaxNodeCount": "8", "SlurmdPort": str(choose_ports(1)[0])}
    with LocalCluster(nodes=2, settings=settings, slurm=slurm, daemons=False) as own:
        conf = own.layout.slurm_conf
        own.kill_slurmd("n2")
        lines = conf.read_text().splitlines()
        conf.write_text("".join(f"{line}\n" for line in lines if not line.startswith("NodeName=n2")))
        Control(own.layout.control_socket(HEAD)).end("slurmctld", signal.SIGTERM, SHORT_S)
        programs.start_slurmctld(own.layout)
        make_dataset(own.source_dir, "alpha")
        own.start_daemon("n2")
        until(lambda: "no-features node=n2" in own.daemon_log("n2"), "Slurm does not know n2")
        env = {"SCRATCH_SLURM_CONFIG": str(own.layout.config)}
        own.run(["scratch-slurm", "preheat", "alpha"], node="n2", env=env)
        words = ["slurmd", "-D", "-Z", "-N", "n2", "-f", str(conf), "--conf", "CPUs=8 RealMemory=4096"]
        own.spawn("dynamic-slurmd", words, "n2")
        until(lambda: "n2" in own.run(["sinfo", "-hN"], check=False).stdout, "Slurm knows n2", 30)
        until(lambda: features(own, "n2") == "ds:alpha", "n2 tells what it has", 60)
