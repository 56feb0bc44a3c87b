"""The main job on a real Slurm: jobs that ask with --datasets, from submit to epilog."""

import functools
import hashlib
import re
from pathlib import Path

import pytest

from tests.kit.support import MB, Gates, Make, Nodes, digest_of, read_job_environment, until
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.root]

ENDLESS_BYTES = 4000 * MB
INTERACTIVE_STEP = 0xFFFFFFFA  # SLURM_INTERACTIVE_STEP of slurm.h
SHOW = "env | grep ^SCRATCH_; sha256sum $SCRATCH_DATASETS_DIR/$SCRATCH_DATASETS/data"


def test_a_job_reads_the_right_bytes_from_the_cache_and_pins_while_it_runs(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n1, hold = make(), node("n1"), gate()
    job = cluster.sbatch(f"{hold.lines}{SHOW}", f"--datasets={d.name}", "-wn1")
    hold.wait_reached("n1")
    assert n1.pins() == {(d.name, f"job:{job}")}
    status = n1.status(d.name)
    assert (status.use_count, status.holders, status.state) == (1, (f"job:{job}",), "cached")
    assert n1.is_served_from_cache(d.name)
    assert digest_of(n1.cached()[d.name]) == d.image_digest
    hold.open()
    assert cluster.wait_job(job).state == "COMPLETED"
    output = cluster.job_output(job)
    assert read_job_environment(output) == {
        "SCRATCH_DATASETS": d.name,
        "SCRATCH_DATASETS_DIR": cluster.settings["mount_dir"],
        "SCRATCH_DATASETS_JOB": str(job),
        "SCRATCH_DATASETS_STATE": f"{d.name}:cached",
        f"SCRATCH_DATASET_{d.name.upper()}": f"{cluster.settings['mount_dir']}/{d.name}",
    }
    assert d.sha256 in output
    assert "scratch-slurm:" not in output, "a job that got all it asked for is told nothing"
    assert n1.use_count(d.name) == 0
    assert n1.pins() == set()


def test_a_user_gets_the_same(cluster: LocalCluster, make: Make) -> None:
    d = make()
    job = cluster.sbatch(SHOW, f"--datasets={d.name}", "-wn1", user="nobody")
    assert cluster.wait_job(job).state == "COMPLETED"
    assert f"{d.name}:cached" in cluster.job_output(job)
    assert d.sha256 in cluster.job_output(job)


def test_two_jobs_that_share_a_dataset_count_two_then_one_then_none(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n1, holds = make(), node("n1"), (gate(), gate())
    jobs = [cluster.sbatch(hold.lines, f"--datasets={d.name}", "-wn1") for hold in holds]
    counts = []
    for hold in holds:
        hold.wait_reached("n1")
    counts.append(n1.use_count(d.name))
    for hold, job in zip(holds, jobs, strict=True):
        hold.open()
        cluster.wait_job(job)
        counts.append(n1.use_count(d.name))
    assert counts == [2, 1, 0]
    assert n1.copies(d.name) == 1


def test_each_node_of_a_job_has_its_own_copy_and_pin(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, hold, nodes = make(), gate(), [node(name) for name in ("n1", "n2", "n3")]
    job = cluster.sbatch(f"{hold.lines}srun sh -c 'hostname; {SHOW}'", f"--datasets={d.name}", "-N3", "-wn1,n2,n3")
    hold.wait_reached("n1")
    # Without DeferBatch the batch script starts when its own node is ready.
    for each in nodes:
        until(functools.partial(each.is_served_from_cache, d.name), f"{d.name} cached on {each.name}")
    assert [each.pins() for each in nodes] == [{(d.name, f"job:{job}")}] * 3
    assert [each.use_count(d.name) for each in nodes] == [1, 1, 1]
    assert node("n4").pins() == set()
    assert d.name not in node("n4").cached()
    hold.open()
    assert cluster.wait_job(job).state == "COMPLETED"
    output = cluster.job_output(job)
    assert sorted(re.findall(r"^n\d$", output, re.M)) == ["n1", "n2", "n3"]
    assert output.count(d.sha256) == 3
    assert output.count(f"SCRATCH_DATASETS_STATE={d.name}:cached") == 3
    assert [each.pins() for each in nodes] == [set()] * 3
    assert [each.copies(d.name) for each in nodes] == [1, 1, 1]


def test_twenty_tasks_of_an_array_copy_once_on_each_node(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    d = make()
    job = cluster.sbatch(f"hostname; {SHOW}", f"--datasets={d.name}", "--array=1-20")
    tasks = cluster.wait_jobs(job)
    outputs = [Path(task.output).read_text() for task in tasks]
    assert len(tasks) == 20
    assert {task.state for task in tasks} == {"COMPLETED"}
    assert all(d.sha256 in output and f"{d.name}:cached" in output for output in outputs)
    used = {output.split("\n")[0] for output in outputs}
    assert {name: node(name).copies(d.name) for name in used} == dict.fromkeys(used, 1)
    assert all(node(each.name).pins() == set() for each in cluster.nodes)


def test_a_requeued_job_pins_again_and_lets_go_once_and_for_all(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates
) -> None:
    d, n1, hold = make(), node("n1"), gate()
    job = cluster.sbatch(f"{hold.lines}{SHOW}", f"--datasets={d.name}", "-wn1", "--requeue")
    hold.wait_reached("n1")
    cluster.run(["scontrol", "requeue", str(job)])
    cluster.wait_state(job, "PENDING")
    assert n1.pins() == set()
    hold.wait_reached("n1", restarts=1)
    assert n1.pins() == {(d.name, f"job:{job}")}
    assert n1.use_count(d.name) == 1
    hold.open()
    info = cluster.wait_job(job)
    assert (info.state, info.restarts) == ("COMPLETED", 1)
    assert d.sha256 in cluster.job_output(job)
    assert n1.pins() == set()
    assert n1.use_count(d.name) == 0
    assert n1.copies(d.name) == 1


def test_a_job_submitted_by_a_job_asks_for_itself(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    d = make()
    inner = "#!/bin/sh\nenv | grep -E ^S[A-Z]*_.*DATASETS; exit 0\n"
    script = f"sbatch --parsable --wait -wn1 --output=inner-%j <<'END'\n{inner}END"
    job = cluster.sbatch(script, f"--datasets={d.name}", "-wn2")
    assert cluster.wait_job(job).state == "COMPLETED"
    assert re.fullmatch(r"\d+\n", cluster.job_output(job))
    nested = int(cluster.job_output(job))
    assert cluster.wait_job(nested).state == "COMPLETED"
    assert cluster.job_output(nested) == ""
    assert node("n2").was_ever_pinned_by(job)
    assert not node("n1").was_ever_pinned_by(nested)


def test_a_word_of_the_comment_asks_too(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    """For what submits without plugins: slurmrestd of 22.05."""
    d = make()
    job = cluster.sbatch(SHOW, f"--comment=see datasets={d.name} please", "-wn1", user="nobody")
    assert cluster.wait_job(job).state == "COMPLETED"
    output = cluster.job_output(job)
    assert f"SCRATCH_DATASETS_STATE={d.name}:cached" in output
    assert d.sha256 in output
    assert node("n1").was_ever_pinned_by(job)
    assert node("n1").pins() == set()


USERS_OWN = {
    "SCRATCH_DATASET_ROOT": "/scratch/me",
    "SCRATCH_DATASETS_DIR": "/mine",
    "SCRATCH_DATASETS_STATE": "fine",
    "SCRATCH_DATASETS_JOB": "tuesday",
    "SCRATCH_DATASETS": "not/a,list",
}


def test_variables_of_the_users_own_reach_a_job_that_asks_for_nothing(cluster: LocalCluster) -> None:
    job = cluster.sbatch("env; exit 0", env=USERS_OWN)
    cluster.wait_job(job)
    assert read_job_environment(cluster.job_output(job)) == USERS_OWN
    found = cluster.run(["srun", "env"], env=USERS_OWN).stdout
    (job_id,) = re.findall(r"^SLURM_JOB_ID=(\d+)$", found, re.M)
    cluster.wait_jobs(int(job_id))
    assert read_job_environment(found) == USERS_OWN


def test_of_a_job_s_variables_only_those_that_its_datasets_explain_stay_behind(
    cluster: LocalCluster, make: Make
) -> None:
    """A job that asks for datasets sets variables of its own, alike and over one of ours, and submits another."""
    a, b = make(), make()
    inner = "#!/bin/sh\nenv | grep ^SCRATCH_; exit 0\n"
    mine = f"export SCRATCH_DATASET_ROOT=/me SCRATCH_DATASET_{b.name.upper()}=/elsewhere"
    script = f"{mine}\nsbatch --parsable --wait -wn1 --output=inner-%j <<'END'\n{inner}END"
    job = cluster.sbatch(script, f"--datasets={a.name},{b.name}", "-wn2")
    assert cluster.wait_job(job).state == "COMPLETED"
    nested = int(cluster.job_output(job))
    assert read_job_environment(cluster.job_output(nested)) == {
        "SCRATCH_DATASET_ROOT": "/me",
        f"SCRATCH_DATASET_{b.name.upper()}": "/elsewhere",
    }


def test_srun_datasets_within_a_job_says_that_it_comes_too_late(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    d = make()
    job = cluster.sbatch(f"srun --datasets={d.name} echo ran", "-wn1")
    assert cluster.wait_job(job).state == "COMPLETED"
    assert f"--datasets comes too late for a step of job {job}" in cluster.job_output(job)
    assert "ran" in cluster.job_output(job).splitlines()
    assert not node("n1").was_ever_pinned_by(job)


@pytest.mark.parametrize("name", ["../etc", "a b", "-x", "a,,b", "\u00fc"])
def test_a_bad_name_is_refused_at_submit(cluster: LocalCluster, name: str) -> None:
    found = cluster.run(["sbatch", f"--datasets={name}", "--wrap=true"], check=False)
    assert found.returncode != 0
    shown = {"a,,b": "''", "\u00fc": "'??'"}.get(name, f"'{name}'")
    assert f"cannot use --datasets: {shown}" in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize("before", [[], ["salloc"]], ids=["srun", "salloc"])
def test_srun_and_salloc_take_datasets_too(cluster: LocalCluster, make: Make, node: Nodes, before: list[str]) -> None:
    d, n1 = make(), node("n1")
    command = ["srun", "sh", "-c", f"echo pins; {SHOW}; echo $SLURM_JOB_ID"]
    asking = [f"--datasets={d.name}", "-wn1"]
    found = cluster.run([*before, *asking, *command] if before else ["srun", *asking, *command[1:]])
    assert read_job_environment(found.stdout)["SCRATCH_DATASETS_STATE"] == f"{d.name}:cached"
    assert d.sha256 in found.stdout
    job = int(found.stdout.split()[-1])
    assert n1.was_ever_pinned_by(job)
    cluster.wait_job(job)
    assert n1.pins() == set()


@pytest.mark.parametrize("command", ["srun", "salloc"])
@pytest.mark.parametrize(
    ("wait", "image_bytes", "states"),
    [
        pytest.param("0", ENDLESS_BYTES, {"queued", "staging"}, id="0"),
        pytest.param("1s", ENDLESS_BYTES, {"queued", "staging"}, id="1s"),
        pytest.param("all", 20 * MB, {"cached"}, id="all"),
    ],
)
def test_an_interactive_job_waits_as_long_as_it_says(
    cluster: LocalCluster, make: Make, node: Nodes, command: str, wait: str, image_bytes: int, states: set[str]
) -> None:
    """Under a terminal, as people work; salloc's shell is a step of its own on the node."""
    d, n1 = make(image_bytes=image_bytes), node("n1")
    asking = f"--datasets={d.name} --datasets-wait={wait} -wn1"
    typed = f"{SHOW}; echo job=$SLURM_JOB_ID step=$SLURM_STEP_ID.; exit\n"
    conf = cluster.directory / "interactive.conf"
    conf.write_text(f"include {cluster.layout.slurm_conf}\nLaunchParameters=use_interactive_step\n")
    started = f"salloc {asking}" if command == "salloc" else f"srun {asking} --pty sh"
    terminal = ["script", "--quiet", "--return", "--command", started, "/dev/null"]
    found = cluster.run(terminal, stdin=typed, env={"SLURM_CONF": str(conf), "SHELL": "/bin/sh"})
    output = found.stdout.replace("\r", "")
    state = read_job_environment(output)["SCRATCH_DATASETS_STATE"]
    assert state.partition(":")[2] in states
    assert d.sha256 in output
    named = re.search(r"^job=(\d+) step=(-?\d+)\.$", output, re.M)
    assert named is not None, output
    job, step = int(named[1]), int(named[2]) % 2**32  # Slurm 26.05 writes it with a sign
    assert step == (INTERACTIVE_STEP if command == "salloc" else 0)
    cluster.wait_job(job)
    assert n1.was_ever_pinned_by(job)
    assert n1.pins() == set()


def test_a_job_that_asks_for_an_unknown_dataset_runs_and_is_told(cluster: LocalCluster, make: Make) -> None:
    d = make()
    job = cluster.sbatch("echo ran", f"--datasets={d.name},nosuch", "-wn1")
    assert cluster.wait_job(job).state == "COMPLETED"
    output = cluster.job_output(job)
    assert "ran" in output.splitlines()
    assert "scratch-slurm: nosuch: no such dataset on this node" in output
    assert d.name not in output


def test_a_job_that_asks_for_a_bad_image_runs_and_is_told(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    bad = make()
    bad.image.write_bytes(hashlib.sha256(b"").digest() * 4096)
    job = cluster.sbatch("echo ran", f"--datasets={bad.name}", "-wn1")
    assert cluster.wait_job(job).state == "COMPLETED"
    output = cluster.job_output(job)
    assert "ran" in output.splitlines()
    assert re.search(rf"^scratch-slurm: {bad.name}: .*is not a squashfs image", output, re.M)
    assert bad.name not in node("n1").cached()
