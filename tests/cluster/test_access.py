"""Private datasets and early release on a real Slurm, with two users that every Debian has.

`games` is the only member of its group; `nobody` is in none that matters.
"""

import json
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.domain.errors import DeniedError
from tests.kit.support import Dataset, Gates, Make, Nodes, ask_command, make_dataset, read_job_environment, until
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.root]

MEMBER, STRANGER = pwd.getpwnam("games"), pwd.getpwnam("nobody")


@pytest.fixture
def ask(cluster: LocalCluster) -> str:
    """The head of a shell line that asks the daemon: method, path and body follow."""
    return ask_command(cluster)


@pytest.fixture
def secret(cluster: LocalCluster, numbers: Iterator[int], tmp_path: Path) -> Iterator[Dataset]:
    """A dataset for the group of MEMBER alone, built as curators are told to."""
    name = f"secret{next(numbers)}"
    (tmp_path / "source").mkdir()
    plain = make_dataset(tmp_path / "source", name)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "data").write_bytes(plain.data)
    command = ["build", str(tmp_path / "tree"), name, "--to", str(cluster.source_dir)]
    command += ["--group", str(MEMBER.pw_gid), "--mode", "0640"]
    subprocess.run(
        [sys.executable, "-c", "from scratch_slurm.cli.main import main; main()", *command],
        check=True,
        capture_output=True,
    )
    image = cluster.source_dir / f"{name}.squashfs"
    yield Dataset(name, image, plain.data)
    image.unlink()
    image.with_suffix(".json").unlink()


def answers(output: str) -> list[Any]:
    """What the daemon answered in a job, one after the other."""
    return [json.loads(line.removeprefix("answer:")) for line in output.splitlines() if line.startswith("answer:")]


def test_of_two_users_one_reads_a_private_dataset_and_the_other_sees_only_that_it_exists(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates, secret: Dataset, ask: str
) -> None:
    common, n1, hold = make(), node("n1"), gate()
    path = f"{cluster.settings['mount_dir']}/{secret.name}"
    script = f"env | grep ^SCRATCH_\nsha256sum {path}/data; ls {path}; {ask} GET /v1/status ''\n"
    asked = f"--datasets={secret.name},{common.name}"
    first = cluster.sbatch(hold.lines + script, asked, "-wn1", user=MEMBER.pw_name)
    hold.wait_reached("n1")
    assert n1.pins() == {(name, f"job:{first}") for name in (secret.name, common.name)}
    assert n1.is_served_from_cache(secret.name)

    second = cluster.sbatch(f"{script}echo ran", asked, "-wn1", user=STRANGER.pw_name)
    assert cluster.wait_job(second).state == "COMPLETED"
    output = cluster.job_output(second)
    why = f"user {STRANGER.pw_uid} may not read its image"
    told = f"scratch-slurm: {secret.name}: is private, and not cached for this job: {why}"
    assert told in output.splitlines()
    assert output.splitlines()[-1] == "ran"
    environment = read_job_environment(output)
    assert environment["SCRATCH_DATASETS_STATE"] == f"{secret.name}:private,{common.name}:cached"
    assert output.count("Permission denied") == 2, "neither the file nor the names"
    (status,) = answers(output)
    assert [each for each in status["datasets"] if each["name"] == secret.name] == [
        {"name": secret.name, "state": "private"}
    ]
    events = json.loads(n1.command("events", "--json").stdout)["events"]
    refused = [(each["dataset"], each["holder"]) for each in events if each["event"] == "refused"]
    assert refused == [(secret.name, f"job:{second}")]
    assert n1.pins() == {(name, f"job:{first}") for name in (secret.name, common.name)}

    hold.open()
    assert cluster.wait_job(first).state == "COMPLETED"
    output = cluster.job_output(first)
    assert secret.sha256 in output
    assert "scratch-slurm:" not in output
    (status,) = answers(output)
    (seen,) = [each for each in status["datasets"] if each["name"] == secret.name]
    assert (seen["state"], seen["holders"]) == ("cached", [f"job:{first}"])
    assert n1.use_count(secret.name) == 0


def test_a_job_gives_its_datasets_back_before_its_end(
    cluster: LocalCluster, make: Make, node: Nodes, gate: Gates, ask: str
) -> None:
    one, two, n1, hold = make(), make(), node("n1"), gate()
    release = f"""{ask} POST /v1/release '{{"job_id": $SLURM_JOB_ID, "datasets": ["{one.name}"]}}'\n"""
    read = f"sha256sum $SCRATCH_DATASET_{one.name.upper()}/data"
    asked = f"--datasets={one.name},{two.name}"
    job = cluster.sbatch(f"{release}{release}{hold.lines}{read}", asked, "-wn1", user=STRANGER.pw_name)
    hold.wait_reached("n1")
    assert n1.pins() == {(two.name, f"job:{job}")}
    assert (n1.use_count(one.name), n1.use_count(two.name)) == (0, 1)
    other = f"""{ask} POST /v1/release '{{"job_id": {job}}}'"""
    stolen = cluster.run(["sh", "-c", other], node="n1", user=MEMBER.pw_name)
    assert answers(stolen.stdout)[0]["error"] == DeniedError.__name__
    assert n1.pins() == {(two.name, f"job:{job}")}
    hold.open()
    assert cluster.wait_job(job).state == "COMPLETED"
    output = cluster.job_output(job)
    assert answers(output) == [{"released": [one.name]}, {"released": []}]
    assert one.sha256 in output, "what was given back can be read as before"
    assert n1.pins() == set()


def test_a_job_says_scratch_slurm_release(cluster: LocalCluster, make: Make, node: Nodes, gate: Gates) -> None:
    one, two, n1, hold = make(), make(), node("n1"), gate()
    release = f"{cluster.layout.bin_dir}/scratch-slurm release"
    script = f"export SCRATCH_SLURM_CONFIG={cluster.layout.config}\nsrun {release} {two.name}\n{hold.lines}{release}"
    job = cluster.sbatch(script, f"--datasets={one.name},{two.name}", "-wn1")
    hold.wait_reached("n1")
    assert n1.pins() == {(one.name, f"job:{job}")}
    hold.open()
    assert cluster.wait_job(job).state == "COMPLETED"
    assert cluster.job_output(job).splitlines() == [f"{two.name}: released", f"{one.name}: released"]


def test_wait_all_starts_the_job_when_its_datasets_are_there(cluster: LocalCluster, make: Make, node: Nodes) -> None:
    d = make(image_bytes=60_000_000)
    job = cluster.sbatch("env | grep ^SCRATCH_", f"--datasets={d.name}", "--datasets-wait=all", "-wn1")
    assert cluster.wait_job(job).state == "COMPLETED"
    assert read_job_environment(cluster.job_output(job))["SCRATCH_DATASETS_STATE"] == f"{d.name}:cached"


def test_salloc_has_the_variables_and_the_pin_for_as_long_as_it_lasts(
    cluster: LocalCluster, make: Make, node: Nodes
) -> None:
    d = make()
    inside = "srun sh -c 'env | grep ^SCRATCH_'; scontrol show job $SLURM_JOB_ID -o"
    found = cluster.run(["salloc", f"--datasets={d.name}", "--datasets-wait=0", "-wn1", "sh", "-c", inside])
    environment = read_job_environment(found.stdout)
    assert environment[f"SCRATCH_DATASET_{d.name.upper()}"] == f"{cluster.settings['mount_dir']}/{d.name}"
    assert environment["SCRATCH_DATASETS"] == d.name
    named = re.search(r"JobId=(\d+)", found.stdout)
    assert named is not None
    cluster.wait_job(int(named[1]))
    assert node("n1").was_ever_pinned_by(int(named[1]))
    until(lambda: node("n1").pins() == set(), "the pin goes with the job")


def test_a_job_within_a_job_does_not_inherit_its_variables(cluster: LocalCluster, make: Make) -> None:
    d, e = make(), make()
    inner = "#!/bin/sh\nenv | grep ^SCRATCH_\n"
    script = f"sbatch --parsable --wait -wn1 --datasets={e.name} --output=inner-%j <<'END'\n{inner}END"
    job = cluster.sbatch(script, f"--datasets={d.name}", "-wn2", user=STRANGER.pw_name)
    assert cluster.wait_job(job).state == "COMPLETED"
    nested = int(cluster.job_output(job).split()[0])
    assert cluster.wait_job(nested).state == "COMPLETED"
    environment = read_job_environment(cluster.job_output(nested))
    assert environment["SCRATCH_DATASETS"] == e.name
    paths = [name for name in environment if name.startswith("SCRATCH_DATASET_")]
    assert paths == [f"SCRATCH_DATASET_{e.name.upper()}"]
