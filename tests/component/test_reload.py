"""SIGHUP: another configuration without another process, or, when it is wrong, nothing at all."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.processes import children_of

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]


def times_served(daemon: RunningDaemon) -> int:
    return len(daemon.logged("serving socket="))


def test_a_reload_puts_the_new_values_in_force_in_the_same_process_and_mounts_and_pins_go_on(folder: Path) -> None:
    with RunningDaemon(folder, capacity="1 GB") as daemon:
        coco = make_version(daemon.source_dir, "coco", 1, file_bytes=300_000)
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        pid, descriptor = daemon.pid, os.open(daemon.path("coco"), os.O_RDONLY)
        try:
            before = os.pread(descriptor, 1000, 0)
            device = os.fstat(descriptor).st_dev
            daemon.reload(daemon.config | {"capacity": "2 GB"})
            daemon.until(lambda: times_served(daemon) == 2 and daemon.status().capacity_bytes == 2_000_000_000)
            assert daemon.status().pid == pid == daemon.pid
            assert os.pread(descriptor, 1000, 1000) + before == coco.data[1000:2000] + coco.data[:1000]
        finally:
            os.close(descriptor)
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.path("coco").stat().st_dev == device, "the mount is the same"
        assert daemon.dataset("coco").holders == ("job:1",)
        daemon.until(lambda: len(children_of(daemon.pid)) <= 3, "no worker of before is left")
        daemon.reload(daemon.config | {"capacity": "1 GB"})
        daemon.until(lambda: times_served(daemon) == 3 and daemon.status().capacity_bytes == 1_000_000_000)
        daemon.stop()


WRONG = [
    pytest.param({"capacity": "a lot"}, "a lot", id="a-value"),
    pytest.param({"capactiy": "1 GB"}, "unknown key", id="a-key"),
    pytest.param({"run_dir": "/proc/none"}, "cannot make the directory", id="a-directory-that-cannot-be"),
    pytest.param({"mount_dir": "SOURCE/below"}, "lies in source_dir", id="a-directory-in-another"),
]


@pytest.mark.parametrize(("config", "words"), WRONG)
def test_a_wrong_configuration_is_refused_whole_and_told_and_everything_goes_on(
    folder: Path, config: dict[str, str], words: str
) -> None:
    with RunningDaemon(folder, capacity="1 GB") as daemon:
        make_version(daemon.source_dir, "coco", 1)
        daemon.until(lambda: daemon.is_mounted("coco"))
        started_at = daemon.status().started_at
        right = daemon.config
        wrong = {key: value.replace("SOURCE", str(daemon.source_dir)) for key, value in config.items()}
        daemon.reload(right | {"period": "7"} | wrong)
        daemon.until(lambda: daemon.logged("reload refused", words))
        assert daemon.status().started_at == started_at
        assert daemon.plan().period_s == 5
        make_version(daemon.source_dir, "new", 1)
        daemon.until(lambda: daemon.is_mounted("new"))
        daemon.reload(right | {"period": "7"})
        daemon.until(lambda: daemon.plan().period_s == 7, "a right one is taken afterwards")


def test_a_copy_under_way_is_resumed_by_the_reloaded_daemon(folder: Path) -> None:
    with RunningDaemon(folder, copy={"bandwidth": "25 MB"}) as daemon:
        big = make_version(daemon.source_dir, "big", 1, file_bytes=140_000_000)
        daemon.pin(1, "big")
        daemon.until(lambda: daemon.dataset("big").staged_bytes > 70_000_000, timeout_s=60)
        daemon.reload(daemon.config | {"copy": {"bandwidth": "0"}})
        daemon.until(lambda: daemon.is_cached("big"), timeout_s=60)
        (staged,) = daemon.logged("staged dataset=big")
        assert daemon.read("big") == big.data
        assert len(daemon.logged("staging dataset=big")) == 2
        assert staged


def test_hangups_at_every_moment_end_nothing(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        make_version(daemon.source_dir, "coco", 1)
        daemon.until(lambda: daemon.is_mounted("coco"))
        for _ in range(40):
            os.kill(daemon.pid, signal.SIGHUP)
            time.sleep(0.05)
        daemon.until(lambda: daemon.is_mounted("coco") and times_served(daemon) >= 2)
        daemon.stop()


def test_the_service_manager_is_told_that_it_begins_anew_and_never_that_it_ends(folder: Path) -> None:
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(path))
        end.settimeout(30)

        def told():
            return end.recv(1000).decode()

        with RunningDaemon(folder, environment={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}) as daemon:
            words = [told()]
            while words[-1] != "READY=1":
                words.append(told())
            assert told() == "WATCHDOG=1"
            daemon.reload(daemon.config | {"period": "7"})
            words = [told()]
            while words[-1] != "READY=1":
                words.append(told())
            rest = [word for word in words[:-1] if word != "WATCHDOG=1" and not word.startswith("STATUS=")]
            assert [word.partition("\n")[0] for word in rest] == ["RELOADING=1"]
            daemon.stop()
            while words[-1] != "STOPPING=1":
                words.append(told())
