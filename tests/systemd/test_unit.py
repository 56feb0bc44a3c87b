"""The unit in the hands of a real systemd, installed as docs/ADMIN.md says, beside munge and Slurm. In this order."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.machine import CONFIG, REPOSITORY, Machine, booted, until

pytestmark = [pytest.mark.systemd, pytest.mark.root]

TREE = Path(os.environ.get("SCRATCH_SLURM_SYSTEMD_ROOT", REPOSITORY / "build" / "systemd-bookworm"))
DATA = os.urandom(3_000_000)
NAME = "alpha"
PATH = f"/datasets/{NAME}/data"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if not TREE.exists():
        pytest.fail(f"{TREE} is missing: `make test-systemd` makes it", pytrace=False)
    work = tmp_path_factory.mktemp("machine")
    source, content = work / "shared" / "datasets", work / "content"
    source.mkdir(parents=True)
    content.mkdir()
    (content / "data").write_bytes(DATA)
    words = ["mksquashfs", str(content), str(source / f"{NAME}.squashfs"), "-quiet", "-no-progress", "-noD"]
    subprocess.run(words, check=True, capture_output=True)
    with booted(TREE, work) as running:
        yield running


def configure(machine: Machine, text: str) -> None:
    machine.run("sh", "-c", f"cat >/etc/scratch-slurm/config.yaml <<'END'\n{text}\nEND")


def features(machine: Machine) -> str:
    return machine.run("sinfo", "--noheader", "--format=%b", check=False)


def mount(machine: Machine) -> str:
    """The id of the dataset's mount: another mount has another."""
    lines = machine.run("cat", "/proc/1/mountinfo").splitlines()
    return next((line.split()[0] for line in lines if f" /datasets/{NAME} " in line), "")


def run_job(machine: Machine, *options: str) -> str:
    words = ["sbatch", "--parsable", "--wait", "--output=/tmp/job-%j", *options]
    script = f"echo state=$SCRATCH_DATASETS_STATE; sha256sum <{PATH}; id -un"
    job = machine.run(*words, f"--wrap={script}")
    return machine.run("cat", f"/tmp/job-{job}")


def is_serving(machine: Machine) -> bool:
    return machine.run("scratch-slurm", "status", check=False).count(NAME) > 0


def test_the_system_boots_with_every_unit_running(machine: Machine) -> None:
    for unit in ("munge", "slurmctld", "slurmd", "scratch-slurmd"):
        assert machine.unit("ActiveState", unit) == "active", machine.journal(unit)
    until(lambda: machine.run("sinfo", "-hNo%t", check=False) == "idle", "the node is idle")


def test_the_daemon_was_ready_before_slurmd_began(machine: Machine) -> None:
    ready = int(machine.unit("ActiveEnterTimestampMonotonic"))
    began = int(machine.unit("InactiveExitTimestampMonotonic", "slurmd"))
    assert 0 < ready <= began


def test_a_job_gets_its_dataset_and_the_node_tells_that_it_has_it(machine: Machine) -> None:
    said = run_job(machine, f"--datasets={NAME}", "--datasets-wait=all")
    assert f"state={NAME}:cached" in said
    until(lambda: features(machine) == f"gpu,ds:{NAME}", "the node tells")
    assert "drain" not in machine.run("sinfo", "-hNo%T")


def test_a_reload_takes_the_new_configuration_and_a_reader_notices_nothing(machine: Machine) -> None:
    before, pid = mount(machine), machine.unit("MainPID")
    with machine.popen("sh", "-c", f"exec 3<{PATH}; echo open; read line; cat <&3 | wc -c") as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "open\n"
        configure(machine, CONFIG.replace("200 MB", "300 MB"))
        machine.run("systemctl", "reload", "scratch-slurmd")
        until(lambda: "capacity=300.0 MB" in machine.journal(), "the new capacity is in force")
        until(lambda: is_serving(machine), "it serves")
        out, _ = reader.communicate("go on\n", timeout=60)
    assert (mount(machine), machine.unit("MainPID"), machine.unit("NRestarts")) == (before, pid, "0")
    assert int(out) == len(DATA)


def test_a_reload_of_a_wrong_configuration_changes_nothing(machine: Machine) -> None:
    before, pid = mount(machine), machine.unit("MainPID")
    configure(machine, CONFIG.replace("capacity", "capazity"))
    machine.run("systemctl", "reload", "scratch-slurmd", check=False)
    until(lambda: "capazity" in machine.journal(), "the mistake is told")
    configure(machine, CONFIG)  # the commands read it too
    assert is_serving(machine)
    assert (mount(machine), machine.unit("MainPID"), machine.unit("ActiveState")) == (before, pid, "active")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_daemon_that_dies_or_hangs_is_started_again_and_the_mounts_stay(machine: Machine, number: int) -> None:
    before, pid, restarts = mount(machine), machine.unit("MainPID"), int(machine.unit("NRestarts"))
    machine.run("sh", "-c", f"kill -{number:d} {pid}")
    until(lambda: int(machine.unit("NRestarts")) > restarts, "systemd starts it again", 60)
    until(lambda: machine.unit("ActiveState") == "active" and is_serving(machine), "it serves", 60)
    assert machine.unit("MainPID") != pid
    assert mount(machine) == before
    assert features(machine) == f"gpu,ds:{NAME}", "a restart is no reason to take features back"


def test_a_daemon_that_is_stopped_leaves_mounts_and_features_and_the_next_takes_them_over(machine: Machine) -> None:
    before = mount(machine)
    machine.run("systemctl", "stop", "scratch-slurmd")
    assert "state=" in run_job(machine), "a job that asks for nothing reads it too"
    assert (mount(machine), features(machine)) == (before, f"gpu,ds:{NAME}")
    machine.run("systemctl", "start", "scratch-slurmd")
    assert (mount(machine), is_serving(machine)) == (before, True)


def test_slurmd_starts_beside_a_wrong_configuration_which_heals_when_it_is_mended(machine: Machine) -> None:
    machine.run("systemctl", "stop", "slurmd", "scratch-slurmd")
    configure(machine, "source_dir: [")
    machine.run("systemctl", "start", "slurmd", "scratch-slurmd", check=False)
    until(lambda: machine.unit("ActiveState", "slurmd") == "active", "slurmd runs")
    until(lambda: int(machine.unit("NRestarts")) >= 3, "it is tried again and again", 60)
    assert "state=" in run_job(machine)
    configure(machine, CONFIG)
    until(lambda: machine.unit("ActiveState") == "active", "it has started by itself", 60)
    assert is_serving(machine)


def test_a_node_that_shuts_down_takes_its_features_back(machine: Machine) -> None:
    until(lambda: features(machine) == f"gpu,ds:{NAME}", "the node tells")
    machine.power_off()
    words = ["journalctl", "--no-pager", "--output=cat", "--unit=scratch-slurmd", "--directory"]
    told = subprocess.run([*words, str(machine.path("/var/log/journal"))], capture_output=True, text=True, check=True)
    assert "features of node node1: taken back" in told.stdout.splitlines()[-6:]
