"""Heterogeneous jobs: what a component asks for is its own, in its prolog and in its variables."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.kit.support import Gates, Make, Nodes, asked, read_job_environment, until
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.root]

FIRST, SECOND = "n1", "n2"


def by_sbatch(cluster: LocalCluster, first: list[str], second: list[str]) -> None:
    cluster.wait_jobs(cluster.sbatch("true", *first, ":", *second))


def by_lines_of_a_script(cluster: LocalCluster, first: list[str], second: list[str]) -> None:
    lines = [f"#SBATCH {' '.join(first)}", "#SBATCH hetjob", f"#SBATCH {' '.join(second)}", "true"]
    cluster.wait_jobs(cluster.sbatch("\n".join(["#!/bin/sh", *lines])))


def by_srun(cluster: LocalCluster, first: list[str], second: list[str]) -> None:
    found = cluster.run(["srun", *first, "printenv", "SLURM_JOB_ID", ":", *second, "true"])
    assert "scratch-slurm:" not in found.stderr + found.stdout, "nobody is told of anything"
    cluster.wait_jobs(int(found.stdout))


def by_salloc(cluster: LocalCluster, first: list[str], second: list[str]) -> None:
    found = cluster.run(["salloc", *first, ":", *second, "printenv", "SLURM_JOB_ID"])
    cluster.wait_jobs(int(found.stdout))


REQUESTS = [
    pytest.param("--datasets=a", "", {"DATASETS": "a"}, {}, id="first"),
    pytest.param("", "--datasets=b", {}, {"DATASETS": "b"}, id="second"),
    pytest.param(
        "--datasets=a --datasets-wait=7s",
        "--datasets=b",
        {"DATASETS": "a", "DATASETS_WAIT": "7s"},
        {"DATASETS": "b"},
        id="both-and-the-first-waits",
    ),
    pytest.param(
        "--datasets=a,c",
        "--datasets=b --datasets-required",
        {"DATASETS": "a,c"},
        {"DATASETS": "b", "DATASETS_REQUIRED": "1"},
        id="both-and-the-second-requires",
    ),
    pytest.param(
        "--datasets=a --datasets-required --datasets-wait=0",
        "--datasets=a",
        {"DATASETS": "a", "DATASETS_REQUIRED": "1", "DATASETS_WAIT": "0"},
        {"DATASETS": "a"},
        id="the-same-of-which-the-first-requires",
    ),
]


@pytest.mark.parametrize("submit", [by_sbatch, by_lines_of_a_script, by_srun, by_salloc])
@pytest.mark.parametrize(("first", "second", "of_first", "of_second"), REQUESTS)
def test_each_component_asks_for_itself(
    scribes: LocalCluster,
    submit: Callable[..., Any],
    first: str,
    second: str,
    of_first: dict[str, str],
    of_second: dict[str, str],
) -> None:
    submit(scribes, [f"-w{FIRST}", *first.split()], [f"-w{SECOND}", *second.split()])
    assert asked(scribes) == [of_first, of_second]


SHOW = "env | grep ^SCRATCH_; exit 0"


def step(component: int) -> str:
    return f"srun --het-group={component} sh -c '{SHOW}'"


@pytest.mark.parametrize("asking", [0, 1], ids=["first", "second"])
def test_a_component_that_asks_for_nothing_finds_nothing(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates, asking: int
) -> None:
    d, hold = make(), gate()
    components = [["-wn1"], ["-wn2"]]
    components[asking].append(f"--datasets={d.name}")
    shown = "\n".join(f"echo part; {line}" for line in (SHOW.removesuffix("; exit 0"), step(0), step(1)))
    job = cluster.sbatch(f"{shown}\n{hold.lines}", *components[0], ":", *components[1])
    hold.wait_reached("n1")
    ids = {each.node_list: each.job_id for each in cluster.jobs(job)}
    views = [node("n1"), node("n2")]
    until(lambda: views[asking].pins() == {(d.name, f"job:{ids[views[asking].name]}")}, "the asking one pins")
    assert views[1 - asking].pins() == set()
    hold.open()
    cluster.wait_jobs(job)
    output = cluster.job_output(job)
    assert "scratch-slurm:" not in output
    batch, *steps = [read_job_environment(part) for part in output.split("part\n")[1:]]
    assert batch == (steps[0] if asking == 0 else {})
    assert steps[1 - asking] == {}
    assert steps[asking]["SCRATCH_DATASETS"] == d.name
    assert steps[asking]["SCRATCH_DATASETS_JOB"] == str(ids[views[asking].name])
    assert steps[asking][f"SCRATCH_DATASET_{d.name.upper()}"] == f"{cluster.settings['mount_dir']}/{d.name}"


def test_each_component_finds_its_own_and_gives_back_its_own(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    first, second, hold = make(), make(), gate()
    release = f"SCRATCH_SLURM_CONFIG={cluster.layout.config} {cluster.layout.bin_dir}/scratch-slurm release"
    script = f"{step(1)}\nsrun --het-group=1 sh -c '{release} {second.name}'\n{hold.lines}"
    job = cluster.sbatch(script, "-wn1", f"--datasets={first.name}", ":", "-wn2", f"--datasets={second.name}")
    hold.wait_reached("n1")
    assert node("n2").pins() == set()
    assert node("n1").pins() == {(first.name, f"job:{job}")}
    hold.open()
    cluster.wait_jobs(job)
    output = cluster.job_output(job)
    assert f"{second.name}: released" in output
    variables = read_job_environment(output)
    assert variables["SCRATCH_DATASETS"] == second.name
    assert f"SCRATCH_DATASET_{first.name.upper()}" not in variables, "nothing of the leader's"
