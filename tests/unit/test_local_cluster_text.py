"""The local cluster's pure parts: what it writes, and what it reads of Slurm's output."""

from pathlib import Path

import pytest

from tests.local_cluster.configs import config_yaml, slurm_conf
from tests.local_cluster.jobs import DrainedNode, parse_drained, parse_job
from tests.local_cluster.layout import Layout, default_settings, format_layout, merge_settings, parse_layout

LAYOUT = Layout(
    directory=Path("/c"),
    node_names=("n1", "n2"),
    controller_port=20000,
    node_ports=(20001, 20002),
    cpus_per_node=8,
    repository=Path("/repository"),
    bin_dir=Path("/venv/bin"),
    settings=default_settings(Path("/c")),
    slurm_options={"KillWait": "9", "SchedulerTimeSlice": "7"},
)

JOB = (
    "JobId=7 JobName=a b UserId=nobody(65534) JobState=RUNNING Reason=Prolog Dependency=(null) Restarts=1 "
    "ExitCode=0:0 NodeList=n[1-2] Command=(null) Comment=x=1 y StdOut=/c/work/slurm-7.out Power="
)


def test_a_layout_survives_its_file() -> None:
    assert parse_layout(format_layout(LAYOUT)) == LAYOUT


def test_options_replace_and_follow_the_generated_lines() -> None:
    lines = slurm_conf(LAYOUT).splitlines()
    assert [line for line in lines if line.startswith("KillWait=")] == ["KillWait=9"]
    assert "SchedulerTimeSlice=7" in lines


def test_settings_merge_section_by_section() -> None:
    merged = merge_settings({"a": 1, "copy": {"datasets": 2, "readers": 4}}, {"copy": {"datasets": 3}, "b": "x"})
    assert merged == {"a": 1, "copy": {"datasets": 3, "readers": 4}, "b": "x"}


def test_config_is_yaml_with_sections() -> None:
    assert config_yaml({"capacity": "1 GB", "copy": {"datasets": 3}}) == 'capacity: "1 GB"\ncopy:\n  datasets: 3\n'


@pytest.mark.parametrize(
    ("common", "own"),
    [
        pytest.param("/c/cache/x@1.image", "/c/nodes/n2/cache/x@1.image", id="below-a-common-path"),
        pytest.param("/c/datasets", "/c/nodes/n2/datasets", id="the-common-path-itself"),
        pytest.param("/c/source/x", "/c/source/x", id="shared-by-all"),
        pytest.param("/c/cache2", "/c/cache2", id="only-begins-alike"),
    ],
)
def test_node_path(common: str, own: str) -> None:
    assert LAYOUT.node_path("n2", common) == Path(own)


def test_parse_job() -> None:
    job = parse_job(JOB)
    assert (job.job_id, job.state, job.restarts, job.node_list) == (7, "RUNNING", 1, "n[1-2]")
    assert job.fields["JobName"] == "a b"
    assert job.output == "/c/work/slurm-7.out"
    assert job.in_prolog
    assert not job.is_final


def test_parse_drained_keeps_bars_in_the_reason() -> None:
    assert parse_drained("n1|drained|a b|c\n") == [DrainedNode("n1", "drained", "a b|c")]
