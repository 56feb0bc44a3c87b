"""What this node is called in Slurm is learnt, and by a name that nobody confirmed nothing is judged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.service.nodename import NodeName
from tests.kit.fake_slurm import FakeSlurm

HOST = "ip-10-0-0-17.example.org"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Callable[..., Any]:
    def make(host=HOST, **slurm):
        values = {"source_dir": "/source", "cache_dir": "/cache", "state_dir": str(tmp_path), "slurm": slurm}
        return NodeName(build_config(values, origin="test", host_name=host), monotonic=clock)

    return make


@pytest.fixture
def slurm() -> FakeSlurm:
    return FakeSlurm("n1", "n2", "ip-10-0-0-17")


def test_the_configurations_word_counts_whatever_a_hook_says(make: Callable[..., Any], slurm: FakeSlurm) -> None:
    name = make(node_name="n2")
    assert not name.hear("n1")
    assert (name.name, name.confirm(slurm), name.problem) == ("n2", ("n2",), "")


def test_a_hooks_word_goes_before_the_host_name(make: Callable[..., Any], slurm: FakeSlurm) -> None:
    name = make()
    assert name.hear("n1")
    assert not name.hear("n1")
    assert (name.name, name.confirm(slurm), name.problem) == ("n1", ("n1",), "")


def test_it_is_kept_for_the_next_daemon_on_this_host_and_no_other(make: Callable[..., Any], slurm: FakeSlurm) -> None:
    make().hear("n1")
    assert make().confirm(slurm) == ("n1",)
    assert make(host="n2").confirm(slurm) == ("n2",), "the disk was copied to another machine"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"host": 7}', f'{{"host": "{HOST}", "names": 7}}', "\xff"])
def test_what_was_kept_and_is_nonsense_is_not_used(
    make: Callable[..., Any], slurm: FakeSlurm, tmp_path: Path, text: str
) -> None:
    (tmp_path / "node.json").write_text(text)
    slurm.hosts = {"n1": "ip-10-0-0-17"}
    assert make().confirm(slurm) == ("n1",)


def test_several_slurmd_on_one_host_have_a_name_each(
    make: Callable[..., Any], slurm: FakeSlurm, tmp_path: Path
) -> None:
    name = make()
    name.hear("n1")
    name.hear("n2")
    assert name.confirm(slurm) == ("n1", "n2")
    assert json.loads((tmp_path / "node.json").read_text())["names"] == ["n1", "n2"]


@pytest.mark.parametrize("word", ["", "n1,n2", "../n1", "n1 n2", "n[1-2]", "n" * 65, "n1\n"])
def test_a_word_that_is_no_name_is_no_word(make: Callable[..., Any], word: str) -> None:
    assert not make().hear(word)


def test_no_end_of_names_is_remembered(make: Callable[..., Any]) -> None:
    name = make()
    assert sum(name.hear(f"n{number}") for number in range(1000)) == 16


HOSTS = [
    pytest.param({"n1": "ip-10-0-0-17"}, ("n1",), id="up-to-the-first-dot"),
    pytest.param({"n1": HOST, "n2": "other"}, ("n1",), id="in-full"),
    pytest.param({"ip-10-0-0-17": "ip-10-0-0-17", "n2": HOST}, ("ip-10-0-0-17",), id="the-guess-is-right"),
    pytest.param({"ip-10-0-0-17": "elsewhere", "n2": HOST}, ("n2",), id="the-guess-is-another-machine"),
    pytest.param({"ip-10-0-0-17": "elsewhere"}, (), id="another-machine-is-called-so-and-nobody-is-here"),
    pytest.param({"n2": HOST, "n1": HOST}, ("n1", "n2"), id="several-here"),
    pytest.param({"n1": "n1"}, (), id="nobody"),
    pytest.param({}, (), id="no-nodes-at-all"),
]


@pytest.mark.parametrize(("hosts", "expected"), HOSTS)
def test_slurm_is_asked_which_node_has_this_host(
    make: Callable[..., Any], slurm: FakeSlurm, hosts: dict[str, str], expected: tuple[str, ...]
) -> None:
    slurm.hosts = hosts
    name = make()
    assert name.problem == "", "nobody asked yet"
    assert name.confirm(slurm) == expected
    assert bool(name.problem) == (not expected)


def test_all_nodes_are_asked_for_ever_more_seldom(make: Callable[..., Any], slurm: FakeSlurm, clock: Clock) -> None:
    slurm.hosts = {"n1": "n1"}
    name = make()
    for _ in range(10_000):
        name.confirm(slurm)
        clock.now += 60
    assert 5 < slurm.calls.count("all hosts") < 20
    slurm.hosts["n1"] = HOST
    clock.now += 24 * 3600
    assert name.confirm(slurm) == ("n1",)


def test_once_it_is_known_nobody_is_asked_until_somebody_doubts(make: Callable[..., Any], slurm: FakeSlurm) -> None:
    name = make()
    name.hear("n1")
    name.confirm(slurm)
    slurm.hosts = {}
    assert name.confirm(slurm) == ("n1",)
    name.doubt()
    assert name.confirm(slurm) == ()
    assert "jobs are not judged by their nodes" in name.problem


@pytest.mark.parametrize("kind", ["given", "heard"])
def test_a_name_that_slurm_does_not_know_is_no_name(make: Callable[..., Any], slurm: FakeSlurm, kind: str) -> None:
    name = make(node_name="x7") if kind == "given" else make()
    name.hear("x7")
    assert name.confirm(slurm) == ()
    assert "'x7'" in name.problem


def test_a_silent_slurm_is_no_answer(make: Callable[..., Any], slurm: FakeSlurm) -> None:
    slurm.down = True
    name = make()
    with pytest.raises(SlurmError):
        name.confirm(slurm)
    assert name.problem == ""
