"""SBATCH_DATASETS and its like: as Slurm's own options have them. And scrontab, which sends nothing of plugins."""

import shutil

import pytest

from tests.kit.support import asked
from tests.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.root]

# Slurm's form of an option that a nested command would take for its own.
TRACES = "env | grep ^SLURM_SPANK__SLURM_SPANK_OPTION; exit 0"


def submit(cluster: LocalCluster, command: str, lines: list[str], env: dict[str, str], options: list[str]) -> str:
    """Run a job to its end; returns all that anybody was told, but for the word that these prologs do not leave."""
    if command == "sbatch":
        script = "\n".join(["#!/bin/sh", *lines, TRACES])
        found = cluster.run(["sbatch", "--parsable", "--wait", "-oout", *options], env=env, stdin=script)
        cluster.wait_jobs(int(found.stdout))
        return told(found.stderr + (cluster.layout.work_dir / "out").read_text())
    found = cluster.run([command, *options, "sh", "-c", f"echo $SLURM_JOB_ID; {TRACES}"], env=env)
    job, _, rest = found.stdout.partition("\n")
    cluster.wait_jobs(int(job))
    return told(rest + found.stderr)


def told(output: str) -> str:
    """Slurm's own words and the known ones left out."""
    ours = [line for line in output.splitlines() if "scratch-slurm" in line or "SPANK" in line]
    return "\n".join(line for line in ours if "the prolog left no word" not in line)


CASES = [
    pytest.param("sbatch", [], {"SBATCH_DATASETS": "a"}, [], {"DATASETS": "a"}, id="sbatch"),
    pytest.param("srun", [], {"SRUN_DATASETS": "a"}, [], {"DATASETS": "a"}, id="srun"),
    pytest.param("salloc", [], {"SALLOC_DATASETS": "a"}, [], {"DATASETS": "a"}, id="salloc"),
    pytest.param(
        "sbatch",
        [],
        {"SBATCH_DATASETS": "a,c", "SBATCH_DATASETS_WAIT": "5s"},
        [],
        {"DATASETS": "a,c", "DATASETS_WAIT": "5s"},
        id="the-wait-too",
    ),
    pytest.param(
        "sbatch", ["#SBATCH --datasets=b"], {"SBATCH_DATASETS": "a"}, [], {"DATASETS": "a"}, id="before-a-line"
    ),
    pytest.param(
        "sbatch",
        ["#SBATCH --datasets=b"],
        {"SBATCH_DATASETS_WAIT": "5s"},
        [],
        {"DATASETS": "b", "DATASETS_WAIT": "5s"},
        id="beside-a-line",
    ),
    pytest.param(
        "sbatch", [], {"SBATCH_DATASETS": "a"}, ["--datasets=b"], {"DATASETS": "b"}, id="after-the-command-line"
    ),
    pytest.param("srun", [], {"SRUN_DATASETS": "a"}, ["--datasets=b"], {"DATASETS": "b"}, id="srun-command-line"),
    pytest.param("sbatch", [], {"SBATCH_DATASETS_WAIT": "5s"}, [], {}, id="a-wait-alone-says-nothing"),
    pytest.param("sbatch", [], {"SBATCH_DATASETS": ""}, [], {}, id="empty"),
    pytest.param("sbatch", [], {"SRUN_DATASETS": "a", "SALLOC_DATASETS": "a"}, [], {}, id="of-others"),
    pytest.param("srun", [], {"SBATCH_DATASETS": "a", "SALLOC_DATASETS": "a"}, [], {}, id="of-others-srun"),
    pytest.param("salloc", [], {"SBATCH_DATASETS": "a", "SRUN_DATASETS": "a"}, [], {}, id="of-others-salloc"),
]


@pytest.mark.parametrize(("command", "lines", "env", "options", "wanted"), CASES)
def test_a_variable_counts_for_its_command_before_the_script_s_lines_and_after_the_command_line(
    scribes: LocalCluster,
    command: str,
    lines: list[str],
    env: dict[str, str],
    options: list[str],
    wanted: dict[str, str],
) -> None:
    said = submit(scribes, command, lines, env, ["-wn1", *options])
    assert asked(scribes) == [wanted, {}]
    assert said == ""


@pytest.mark.parametrize(
    ("second", "of_second"),
    [
        pytest.param([], {"DATASETS": "a", "DATASETS_WAIT": "5s"}, id="as-the-first"),
        pytest.param(["--datasets=b"], {"DATASETS": "b", "DATASETS_WAIT": "5s"}, id="other-datasets"),
        pytest.param(["--datasets-wait=7s"], {"DATASETS": "a", "DATASETS_WAIT": "7s"}, id="another-wait"),
    ],
)
@pytest.mark.parametrize("command", ["sbatch", "salloc"])
def test_a_variable_counts_for_all_components_of_a_heterogeneous_job(
    scribes: LocalCluster, command: str, second: list[str], of_second: dict[str, str]
) -> None:
    env = {f"{command.upper()}_DATASETS": "a", f"{command.upper()}_DATASETS_WAIT": "5s"}
    assert submit(scribes, command, [], env, ["-wn1", ":", "-wn2", *second]) == ""
    assert asked(scribes) == [{"DATASETS": "a", "DATASETS_WAIT": "5s"}, of_second]


def test_a_variable_for_jobs_says_nothing_to_a_step(scribes: LocalCluster) -> None:
    script = "export SRUN_DATASETS=a\nsrun echo ran\n"
    job = scribes.sbatch(script, "-wn1")
    scribes.wait_job(job)
    assert scribes.job_output(job) == "ran\n"
    assert asked(scribes) == [{}, {}]


@pytest.mark.parametrize(("name", "value"), [("SBATCH_DATASETS", "a,../b"), ("SBATCH_DATASETS_WAIT", "soon")])
def test_a_bad_variable_is_refused_as_the_option_is(scribes: LocalCluster, name: str, value: str) -> None:
    found = scribes.run(["sbatch", "--wrap=true"], env={name: value}, check=False)
    assert found.returncode != 0
    option = name.removeprefix("SBATCH_").lower().replace("_", "-")
    assert f"scratch-slurm: options: cannot use --{option}: '{value.rpartition(',')[2]}'" in found.stderr


# Debian's Slurm 22.05 comes without it.
if shutil.which("scrontab", path="/usr/bin"):

    @pytest.mark.parametrize("option", ["datasets=a", "datasets-wait=5s", "datasets-required"])
    def test_scrontab_refuses_what_it_would_forget(scribes: LocalCluster, option: str) -> None:
        table = f"#SCRON --{option}\n* * * * * true\n"
        found = scribes.run(["scrontab", "-"], stdin=table, env={"SBATCH_DATASETS": "b"}, check=False)
        name = option.partition("=")[0]
        assert found.returncode != 0
        assert f"cannot use --{name}: scrontab does not pass it on; let the command submit a job" in found.stderr

    def test_scrontab_takes_a_table_that_asks_for_nothing(scribes: LocalCluster) -> None:
        scribes.run(["scrontab", "-"], stdin="0 0 1 1 * true\n", env={"SBATCH_DATASETS": "b"})
        scribes.run(["scrontab", "-r"])
