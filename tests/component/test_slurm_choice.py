"""Which way to Slurm is chosen, and programs that hang or are not there."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.features import NodeFeatures
from scratch_slurm.domain.jobs import Presence
from scratch_slurm.slurm.choose import choose_slurm, pyslurm_problem
from scratch_slurm.slurm.commands import Commands
from scratch_slurm.slurm.programs import Programs, clean_environment
from scratch_slurm.slurm.pyslurm_classes import PyslurmClasses

# Of pyslurm 25.11 what is used, with its ways: an empty value changes nothing; an error carries Slurm's number.
PYSLURM = """
import json, os, types
print("a library that talks")
STATE = os.environ["LD_LIBRARY_PATH"]
utils = types.SimpleNamespace(nodelist_from_range_str=lambda text: text.split(","))
class RPCError(Exception):
    def __init__(self, errno):
        self.errno = errno
class Job:
    def __init__(self, id, state, nodes):
        self.id, self.state, self.allocated_nodes = id, state, nodes
    @staticmethod
    def load(job_id):
        jobs = {1: Job(1, "RUNNING", "n1,n2"), 2: Job(1, "RUNNING", "n1,n2"), 3: Job(1, "RUNNING", "n1,n2"),
                4: Job(4, "PENDING", None)}
        if job_id == 6:
            raise RPCError(1800)
        if job_id not in jobs:
            raise RPCError(2017)
        return jobs[job_id]
class Jobs:
    @staticmethod
    def load():
        return {1: Job.load(1), 2: Job(2, "COMPLETED", "n1")}
class Node:
    def __init__(self, **values):
        self.values = values
    @staticmethod
    def load(name):
        node = Node()
        with open(STATE) as file:
            node.available_features, node.active_features, node.extra = json.load(file)
        return node
    def modify(self, changes):
        values = [changes.values.get(key) or old for key, old in (
            ("available_features", self.available_features), ("active_features", self.active_features),
            ("extra", self.extra))]
        with open(STATE, "w") as file:
            json.dump(values, file)
"""


@pytest.fixture
def pyslurm(tmp_path: Path) -> tuple[PyslurmClasses, Path]:
    """pyslurm's classes over a package like it; the commands beside it write to a log."""
    (tmp_path / "pyslurm.py").write_text(PYSLURM)
    state = tmp_path / "state.json"
    state.write_text('[["gpu"], [], null]')
    log = tmp_path / "log"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$*" >> {log}\n')
    scontrol.chmod(0o755)
    root = Path(__file__).parents[2]
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "PYTHONPATH": f"{tmp_path}:{root}",
        "LD_LIBRARY_PATH": str(state),
    }
    programs = Programs(environment, timeout_s=20)
    return PyslurmClasses(programs, "25.11.2", Commands(programs, "25.11.2")), log


def test_pyslurm_judges_jobs_by_their_own_record(pyslurm: tuple[PyslurmClasses, Path]) -> None:
    slurm, _ = pyslurm
    found = slurm.job_presence([1, 2, 3, 4, 5, 6], ["n1"])
    gone, live, unknown = Presence.GONE, Presence.LIVE, Presence.UNKNOWN
    assert found == {1: live, 2: gone, 3: gone, 4: live, 5: gone, 6: unknown}
    assert slurm.job_presence([1], ["n3"]) == {1: gone}


def test_pyslurm_reads_and_writes_features_and_leaves_empty_lists_to_the_commands(
    pyslurm: tuple[PyslurmClasses, Path],
) -> None:
    slurm, log = pyslurm
    assert slurm.read_features("n1") == NodeFeatures(("gpu",), (), "")
    slurm.write_features("n1", NodeFeatures(("gpu", "ds:a"), ("ds:a",), "{}"))
    assert slurm.read_features("n1") == NodeFeatures(("gpu", "ds:a"), ("ds:a",), "{}")
    assert not log.exists()
    slurm.write_features("n1", NodeFeatures(("gpu",), (), None))
    assert log.read_text() == "update nodename=n1 availablefeatures=gpu activefeatures=\n"


def test_a_pyslurm_that_does_not_load_knows_nothing(tmp_path: Path) -> None:
    (tmp_path / "pyslurm.py").write_text("import os; os._exit(3)")
    root = Path(__file__).parents[2]
    programs = Programs({"PATH": "", "PYTHONPATH": f"{tmp_path}:{root}"}, timeout_s=20)
    slurm = PyslurmClasses(programs, "25.11.2", Commands(programs, "25.11.2"))
    assert slurm.job_presence([1], ["n1"]) == {1: Presence.UNKNOWN}
    with pytest.raises(SlurmError):
        slurm.read_features("n1")


@pytest.mark.parametrize(
    ("release", "version", "serves"),
    [
        ("25.11.2", "25.11.0", True),
        ("23.2.2", "23.02.7", True),
        ("25.11.2", "22.05.8", False),
        ("22.5.3", "22.05.8", False),
        ("25.11.2", "", False),
        ("odd", "odd", False),
    ],
)
def test_pyslurm_serves_for_its_own_release_only(release: str, version: str, serves: bool) -> None:
    assert (pyslurm_problem(release, version) == "") is serves


def make_commands(folder: Path, version: str = "slurm-wlm 22.05.8", code: int = 0) -> dict[str, str]:
    for name in ("scontrol", "sinfo", "squeue"):
        (folder / name).write_text(f"#!/bin/sh\necho '{version}'\nexit {code}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_without_commands_there_is_no_slurm(tmp_path: Path) -> None:
    assert choose_slurm({"PATH": str(tmp_path)}) is None
    assert choose_slurm({}) is None
    make_commands(tmp_path)
    (tmp_path / "squeue").unlink()
    assert choose_slurm({"PATH": str(tmp_path)}) is None


def test_with_commands_they_serve(tmp_path: Path) -> None:
    slurm = choose_slurm(make_commands(tmp_path))
    assert slurm is not None
    assert slurm.name.endswith(" 22.05.8")


def test_commands_that_have_no_configuration_yet_serve_when_they_have(tmp_path: Path) -> None:
    environ = make_commands(tmp_path, code=1)
    slurm = choose_slurm(environ)
    assert slurm is not None
    assert slurm.name == "Slurm's commands of an unknown release"
    with pytest.raises(SlurmError):
        slurm.read_features("n1")
    make_commands(tmp_path, version="n1|gpu|gpu|")
    assert slurm.read_features("n1") == NodeFeatures(("gpu",), ("gpu",), "")


def test_only_what_says_where_slurm_is_reaches_the_commands() -> None:
    environ = {"PATH": "/bin", "SLURM_CONF": "/x", "SQUEUE_FORMAT": "%i", "SLURM_CLUSTERS": "other", "LANG": "de_DE"}
    assert clean_environment(environ) == {"PATH": "/bin", "SLURM_CONF": "/x", "LANG": "C", "LC_ALL": "C"}


def test_a_program_that_hangs_ends_with_its_children(tmp_path: Path) -> None:
    programs = Programs({"PATH": os.environ["PATH"]}, timeout_s=0.3)
    with pytest.raises(SlurmError, match="no answer within"):
        programs.run(["sh", "-c", f"sleep 987 & echo $! > {tmp_path}/child; wait"])
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_close_ends_the_program_under_way() -> None:
    programs = Programs({"PATH": os.environ["PATH"]}, timeout_s=30)
    began = time.monotonic()
    threading.Timer(0.3, programs.close).start()
    with pytest.raises(SlurmError):
        programs.run([sys.executable, "-c", "import time; time.sleep(30)"])
    assert time.monotonic() - began < 10
    with pytest.raises(SlurmError, match="not started any more"):
        programs.run(["true"])


@pytest.mark.parametrize("argv", [["no-such-program-at-all"], ["false"]])
def test_a_program_that_fails_is_an_error(argv: list[str]) -> None:
    with pytest.raises(SlurmError, match=argv[0]):
        Programs({"PATH": "/usr/bin:/bin"}, timeout_s=5).run(argv)


@pytest.mark.parametrize("said", ["n2|a|a|", "n1|a", "rubbish"])
def test_an_answer_that_is_none_is_no_features(tmp_path: Path, said: str) -> None:
    environ = make_commands(tmp_path, version=said)
    with pytest.raises(SlurmError):
        Commands(Programs(environ, timeout_s=5), "1").read_features("n1")
