"""The job_submit script in a real slurmctld: it may be gone, tells who asked for what, refuses what breaks prologs."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.support import Make, until
from tests.local_cluster import LocalCluster
from tests.local_cluster.configs import job_submit_lua, plugstack_conf
from tests.local_cluster.requirements import has_job_submit_lua

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.root,
    pytest.mark.skipif(not has_job_submit_lua(), reason="needs Slurm's job_submit/lua"),
]


@pytest.fixture(scope="module")
def own() -> Iterator[LocalCluster]:
    """A cluster of one node for these tests alone: its slurmctld is restarted, its node drained."""
    with LocalCluster(nodes=1, daemons=False) as running:
        yield running


@pytest.fixture
def script(own: LocalCluster) -> Iterator[Callable[[str], None]]:
    """Replace job_submit.lua; afterwards it is what sites are told to have."""
    path = own.directory / "job_submit.lua"

    def write(text: str) -> None:
        # Slurm compares seconds.
        later = path.stat().st_mtime + 2
        path.write_text(text)
        os.utime(path, (later, later))

    yield write
    write(job_submit_lua(own.layout))


def slurmctld_log(cluster: LocalCluster) -> str:
    return cluster.layout.log("slurmctld").read_text(errors="replace")


BROKEN = {
    "missing": None,
    "empty": "",
    "half-written": "local M = {} function M.submit(",
    "ends-with-an-error": "error('broken')",
    "a-binary": "\x1bLua\0\0",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_slurmctld_starts_and_takes_jobs_without_a_script_that_can_be_loaded(
    own: LocalCluster, script: Callable[[str], None], text: str | None
) -> None:
    ours = own.directory / "scratch_slurm.lua"
    ours.unlink(missing_ok=True)
    if text is not None:
        ours.write_text(text)
    script(job_submit_lua(own.layout).replace(str(own.layout.job_submit_script), str(ours)))
    said = slurmctld_log(own).count("scratch-slurm: job_submit: left out")
    own.restart_slurmctld()
    job = own.sbatch("true", "--datasets=a", "--hold")
    own.run(["scontrol", "update", f"jobid={job}", "features="])
    own.run(["scontrol", "release", str(job)])
    assert own.wait_job(job).state == "COMPLETED"
    assert slurmctld_log(own).count("scratch-slurm: job_submit: left out") > said


def test_people_are_told_who_asked_for_which_dataset(own: LocalCluster) -> None:
    job = own.sbatch("true", "--datasets=b,a")
    other = own.sbatch("true")
    assert own.wait_job(job).fields["AdminComment"] == "datasets=b,a"
    assert "AdminComment" not in own.wait_job(other).fields
    shown = own.run(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--Format=admin_comment:100"]).stdout
    assert shown.strip() == "datasets=b,a"


def test_a_list_longer_than_slurms_comments_refuses_no_job(own: LocalCluster) -> None:
    job = own.sbatch("true", "--datasets=" + ",".join(f"{n:064d}" for n in range(64)))
    comment = own.wait_job(job).fields["AdminComment"]
    assert comment.startswith(f"datasets={0:064d},") and comment.endswith(",...")


def test_an_administrators_comment_stays(own: LocalCluster) -> None:
    job = own.sbatch("true", "--datasets=a", "--hold")
    own.run(["scontrol", "update", f"jobid={job}", "admincomment=paid"])
    own.run(["scontrol", "update", f"jobid={job}", "features="])
    own.run(["scontrol", "release", str(job)])
    assert own.wait_job(job).fields["AdminComment"] == "paid"


# A user's own plugin: it puts as many variables as the user says into the job's control environment.
PLUGIN = r"""
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
SPANK_PLUGIN(filler, 1);
int slurm_spank_init_post_opt(spank_t spank, int argc, char **argv)
{
	spank_context_t where = spank_context();
	const char *count = getenv("FILL_COUNT"), *bytes = getenv("FILL_BYTES");
	(void)spank; (void)argc; (void)argv;
	if (!count || !bytes || (where != S_CTX_ALLOCATOR && where != S_CTX_LOCAL))
		return 0;
	char *text = calloc(1, (size_t)atoi(bytes) + 1), name[32];
	memset(text, 'x', (size_t)atoi(bytes));
	for (int i = 0; i < atoi(count); i++) {
		snprintf(name, sizeof name, "FILL%d", i);
		spank_job_control_setenv(spank, name, text, 1);
	}
	free(text);
	return 0;
}
"""


@pytest.fixture(scope="module")
def filler(own: LocalCluster) -> dict[str, str]:
    """The environment of a user who has a SPANK plugin of his own."""
    directory = own.directory / "filler"
    directory.mkdir()
    (directory / "filler.c").write_text(PLUGIN)
    words = ["cc", "-shared", "-fPIC", "-o", str(directory / "filler.so"), str(directory / "filler.c")]
    subprocess.run(words, check=True, capture_output=True)
    plugstack, conf = directory / "plugstack.conf", directory / "slurm.conf"
    plugstack.write_text(plugstack_conf(own.layout, plugin_exists=True) + f"required {directory / 'filler.so'}\n")
    lines = own.layout.slurm_conf.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("PlugStackConfig=")]
    conf.write_text("\n".join([*kept, f"PlugStackConfig={plugstack}"]) + "\n")
    return {"SLURM_CONF": str(conf)}


# What execve(2) refuses: one string of 128 KiB, or too many together.
FILLINGS = {"one-string": (1, 131_060), "all-together": (60, 110_000)}


@pytest.mark.parametrize("filling", FILLINGS.values(), ids=FILLINGS)
def test_a_job_that_no_prolog_could_be_started_for_is_refused(
    own: LocalCluster, script: Callable[[str], None], filler: dict[str, str], filling: tuple[int, int]
) -> None:
    env = {**filler, "FILL_COUNT": str(filling[0]), "FILL_BYTES": str(filling[1])}
    found = own.run(["sbatch", "--parsable", "--wrap=true"], env=env, check=False)
    assert found.returncode != 0
    assert "scratch-slurm: refused: no prolog could run" in found.stderr
    assert own.drained() == []
    # Without the script the same job takes the node out of service.
    script(
        "function slurm_job_submit() return slurm.SUCCESS end\nfunction slurm_job_modify() return slurm.SUCCESS end\n"
    )
    job = own.sbatch("true", env=env)
    until(lambda: own.drained() != [], "the node is drained", 30)
    own.run(["scancel", str(job)])
    own.wait_job(job)
    own.run(["scontrol", "update", "nodename=n1", "state=resume"])
    until(lambda: own.drained() == [], "the node is back")


def test_a_job_with_a_full_control_environment_runs(own: LocalCluster, filler: dict[str, str]) -> None:
    job = own.sbatch("true", env={**filler, "FILL_COUNT": "9", "FILL_BYTES": "110000"})
    assert own.wait_job(job).state == "COMPLETED"
    assert own.drained() == []


def test_a_job_of_a_partition_whose_nodes_are_alike_goes_to_its_data(cluster: LocalCluster, make: Make) -> None:
    """No word of the site's: slurm.conf defines the nodes the same."""
    assert "nodes_are_alike" not in Path(cluster.directory / "job_submit.lua").read_text()
    d = make()
    assert cluster.wait_job(cluster.sbatch("true", f"--datasets={d.name}", "-wn3")).state == "COMPLETED"
    until(lambda: f"ds:{d.name}" in cluster.run(["sinfo", "-hNnn3", "-o%b"]).stdout, "n3 tells that it has it")
    assert cluster.wait_job(cluster.sbatch("true", f"--datasets={d.name}")).node_list == "n3"
