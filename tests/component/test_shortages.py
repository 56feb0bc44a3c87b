"""No processes, no memory, no descriptors for a moment: the daemon says so, and goes on by itself afterwards."""

import contextlib
import functools
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.processes import children_of

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

_PIDS = Path("/sys/fs/cgroup/pids")


def kill_workers(daemon: RunningDaemon) -> None:
    """Let the next request need a new process."""
    for pid in children_of(daemon.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def names(directory: str) -> list[str]:
    return [path.name for path in Path(directory).iterdir()]


def publish(daemon: RunningDaemon, *datasets: str) -> None:
    for name in datasets:
        make_version(daemon.source_dir, name, 1, file_bytes=50_000)


@pytest.fixture
def pids(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A group of processes with a bound; the daemon is moved into it."""
    if not (_PIDS / "tasks").exists():
        pytest.skip("no pids controller of cgroup v1 here")
    group = _PIDS / f"scratch-slurm-test-{os.getpid()}"
    group.mkdir()
    yield group
    deadline = time.monotonic() + 20
    while (group / "cgroup.procs").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    group.rmdir()


def test_no_process_can_be_started_for_a_moment__that_is_told_and_the_source_is_listed_again(
    folder: Path, pids: Path
) -> None:
    with RunningDaemon(folder, interval="0.3") as daemon:
        publish(daemon, "before")
        daemon.until(lambda: daemon.is_mounted("before"))
        (pids / "cgroup.procs").write_text(str(daemon.pid))
        for spare in (0, 1):  # none at all; one, but not what comes with it
            (pids / "pids.max").write_text("max")
            daemon.until(lambda: "process" not in daemon.status().problem)
            bound = len(names(f"/proc/{daemon.pid}/task")) + spare
            (pids / "pids.max").write_text(str(bound))
            kill_workers(daemon)
            if not spare:
                daemon.until(lambda: "no processes" in daemon.status().problem, "it is told")
            (pids / "pids.max").write_text("max")
            publish(daemon, f"after{spare}")
            daemon.until(functools.partial(daemon.is_mounted, f"after{spare}"))
        daemon.until(lambda: daemon.status().problem == "")


def test_no_descriptor_is_left_for_a_moment__that_is_survived(folder: Path) -> None:
    with RunningDaemon(folder, interval="0.3") as daemon:
        publish(daemon, "before")
        daemon.until(lambda: daemon.is_mounted("before"))
        old = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        kill_workers(daemon)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (len(names(f"/proc/{daemon.pid}/fd")) - 2, old[1]))
        daemon.until(lambda: daemon.logged("no file descriptors") or daemon.logged("Too many open files"))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, old)
        publish(daemon, "after")
        daemon.until(lambda: daemon.is_mounted("after"))


@pytest.mark.parametrize("spare_bytes", [0, 1 << 18, 1 << 22])
def test_no_memory_can_be_had_for_a_moment__the_daemon_answers_again_or_ends_and_never_hangs(
    folder: Path, spare_bytes: int
) -> None:
    with RunningDaemon(folder, interval="0.3") as daemon:
        publish(daemon, "before", "pinned")
        daemon.pin(1, "pinned")
        daemon.until(lambda: daemon.is_mounted("before") and daemon.is_cached("pinned"))
        kill_workers(daemon)
        lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        size_bytes = int(next(line for line in lines if line.startswith("VmSize")).split()[1]) * 1024
        old = resource.prlimit(daemon.pid, resource.RLIMIT_AS)
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (size_bytes + spare_bytes, old[1]))
        publish(daemon, "after")
        with contextlib.suppress(Exception):
            daemon.wait("before", timeout_s=0.5)
        time.sleep(1.0)  # what starts meanwhile fails: there is nothing to be seen from here
        if daemon.has_ended():
            daemon.forget()
            daemon.start()  # as systemd does
        else:
            resource.prlimit(daemon.pid, resource.RLIMIT_AS, old)
        daemon.until(lambda: daemon.is_mounted("after"), "it goes on")
        assert daemon.dataset("pinned").holders == ("job:1",)


def test_the_daemon_starts_no_thread_while_it_serves(folder: Path) -> None:
    with RunningDaemon(folder, interval="0.3") as daemon:
        publish(daemon, "coco")
        daemon.until(lambda: daemon.is_mounted("coco"))
        before = set(names(f"/proc/{daemon.pid}/task"))
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        kill_workers(daemon)
        publish(daemon, "more")
        daemon.until(lambda: daemon.is_mounted("more"))
        daemon.release(1)
        assert set(names(f"/proc/{daemon.pid}/task")) <= before
