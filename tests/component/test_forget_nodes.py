"""The administrator's commands for many nodes, with a scontrol of ours in the place of Slurm's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.features import NodeFeatures
from scratch_slurm.slurm.cluster import Cluster


@pytest.fixture
def scontrol(tmp_path: Path) -> Callable[..., Any]:
    """Write a scontrol that writes its arguments down, one call a line, and does as it is told."""

    def write(*lines):
        path = tmp_path / "scontrol"
        path.write_text("\n".join(["#!/bin/sh", f'echo "$@" >>{tmp_path}/calls', *lines, ""]))
        path.chmod(0o755)
        return Cluster({"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout_s=20)

    return write


def test_a_list_of_nodes_is_expanded_each_once(scontrol: Callable[..., Any]) -> None:
    assert scontrol("printf 'n1\\nn2\\nn1\\n'").expand("n[1-2],n1") == ("n1", "n2")


@pytest.mark.parametrize("said", ["exit 0", "exit 1", "echo invalid >&2; exit 1"])
def test_what_is_no_list_of_nodes_is_an_error_whatever_slurm_says_of_it(
    scontrol: Callable[..., Any], said: str
) -> None:
    with pytest.raises(SlurmError):
        scontrol(said).expand("n[1")


def test_many_nodes_are_told_in_few_calls_that_no_argument_makes_too_long(
    scontrol: Callable[..., Any], tmp_path: Path
) -> None:
    nodes = tuple(f"a-node-with-a-long-name-{n:05d}" for n in range(600))
    scontrol("exit 0").write_features(nodes, NodeFeatures(("gpu",), (), ""))
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3
    assert [each for call in calls for each in call.split()[1].removeprefix("nodename=").split(",")] == list(nodes)
    assert all(call.endswith(" availablefeatures=gpu activefeatures= extra=") for call in calls)


def test_an_extra_of_the_administrators_is_not_written(scontrol: Callable[..., Any], tmp_path: Path) -> None:
    scontrol("exit 0").write_features(("n1",), NodeFeatures(("gpu",), ("gpu",), None))
    assert (tmp_path / "calls").read_text() == "update nodename=n1 availablefeatures=gpu activefeatures=gpu\n"
