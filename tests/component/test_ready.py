"""Ready: the service manager is told when what can be mounted is, and jobs hear no more than is known until then."""

import os
import shutil
import socket
import threading

import pytest

from scratch_slurm.domain.messages import DatasetState
from tests.kit.daemon import PATIENCE_S, RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.images import clean_up
from tests.kit.sources import SlowSource

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

LONG_S = 60.0
NAMES = [f"d{number:02}" for number in range(24)]


@pytest.fixture
def systemd(folder, monkeypatch):
    """The service manager's end of its socket."""
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(path))
        end.settimeout(LONG_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield end


@pytest.fixture
def slow(folder):
    """A slow source with images of all names; the daemon's mounts go before it."""
    pytest.importorskip("mfusepy", reason="mfusepy is not installed")
    real = folder / "real"
    real.mkdir()
    first = make_version(real, NAMES[0], file_bytes=40_000)
    for name in NAMES[1:]:
        shutil.copy(first.image, real / f"{name}.squashfs")
    with SlowSource(real, folder / "source") as source:
        yield source
        source.set(hang=False, hang_open=False, hang_all=False)
        clean_up(folder / "datasets")


def until_ready(systemd):
    while b"READY=1" not in systemd.recv(4096):
        pass


def mounted(folder):
    return sorted(name for name in NAMES if os.path.ismount(folder / "datasets" / name))


def test_ready_is_told_when_all_is_mounted(folder, slow, systemd) -> None:
    slow.set(latency_s=0.03)
    with RunningDaemon(folder, interval="1h"):
        until_ready(systemd)
        assert mounted(folder) == NAMES


def test_a_file_that_hangs_does_not_hold_the_others_up_for_longer_than_its_own_limit(folder, slow, systemd) -> None:
    slow.set(hang_open=True, only=("d03.squashfs",))
    with RunningDaemon(folder, interval="1h", source_timeout="5"):
        until_ready(systemd)
        assert mounted(folder) == [name for name in NAMES if name != "d03"]
        slow.set(hang_open=False)


def test_a_source_that_hangs_is_told_of_and_its_datasets_are_not_said_to_be_missing(folder, slow, systemd) -> None:
    daemon = RunningDaemon(folder, interval="1", source_timeout="5")
    slow.set(hang_all=True)
    with daemon:
        early = daemon.wait("d01")
        unlisted = f"not known yet: {folder}/source has not been listed yet"
        assert early.datasets[0].problem.startswith(unlisted)
        # It may come while a job waits, unless the machine is so slow that the source is known to hang by now.
        assert early.settled is ("gives no answer" in early.datasets[0].problem)
        until_ready(systemd)
        late = daemon.wait("d01")
        assert late.datasets[0].state is DatasetState.UNKNOWN
        assert late.datasets[0].problem.startswith(f"{unlisted}: {folder}/source gives no answer since ")
        assert late.settled
        slow.set(hang_all=False)
        daemon.until(lambda: mounted(folder) == NAMES)
        assert daemon.dataset("d01").problem == ""


def test_a_job_that_asks_while_the_source_is_listed_finds_its_dataset(folder, slow, systemd) -> None:
    """Its name is looked for beside the listing, and its mount goes before those of others."""
    slow.set(hang=True, only=("d00.squashfs",))
    daemon = RunningDaemon(folder, interval="1h", source_timeout="60")
    with daemon:
        daemon.pin(1, NAMES[-1])
        daemon.wait(NAMES[-1])
        daemon.until(lambda: daemon.is_mounted(NAMES[-1]), timeout_s=PATIENCE_S)
        assert mounted(folder) == [NAMES[-1]], "the listing is held up by its first file"
        threading.Timer(0, slow.set, kwargs={"hang": False}).start()
        until_ready(systemd)
        assert mounted(folder) == NAMES


def test_a_missing_source_is_told_at_once(folder, systemd) -> None:
    daemon = RunningDaemon(folder, interval="1h")
    daemon.source_dir.rmdir()
    with daemon:
        until_ready(systemd)
        assert "not known yet" in daemon.wait("coco").datasets[0].problem
