"""Nothing blocks: a source that hangs or fails delays its own datasets only, and heals by itself."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from scratch_slurm.domain.messages import DatasetState
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import Version, make_version
from tests.kit.processes import children_of
from tests.kit.sources import SlowSource, why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.usefixtures("own_mounts"),
]

BOUND_S = 15.0
"""Far above what it takes, and far below what a hang takes."""
TIMEOUT_S = 3.0


@pytest.fixture
def folder(folder: Path) -> Path:
    (folder / "real").mkdir()
    return folder


@contextlib.contextmanager
def slow_node(folder: Path, **config):
    """A daemon over a source on FUSE that hangs and fails on demand; the daemon is not started."""
    with SlowSource(folder / "real", folder / "source") as source:
        daemon = RunningDaemon(folder, source_timeout=str(TIMEOUT_S), **config)
        with contextlib.ExitStack() as stack:
            stack.push(daemon)
            yield source, daemon


def publish(folder: Path, *names: str, number=1, file_bytes: int = 400_000) -> dict[str, Version]:
    return {name: make_version(folder / "real", name, number, file_bytes=file_bytes) for name in names}


def live_on(daemon: RunningDaemon, folder: Path, versions: dict[str, Version], *, job_id: int) -> None:
    """Do everything that a daemon does, with datasets that do not hang, in bounded time."""
    began = time.monotonic()
    daemon.pin(job_id, "good")
    daemon.until(lambda: daemon.is_cached("good"), "staged and retargeted", BOUND_S)
    assert daemon.read("good") == versions["good"].data
    assert daemon.dataset("good").use_count == 1
    daemon.release(job_id)
    assert daemon.dataset("good").use_count == 0
    assert daemon.read("read") == versions["read"].data
    daemon.until(lambda: daemon.is_cached("read"), "cached for its reads", BOUND_S)
    new = f"new{job_id}"
    version = publish(folder, new)[new]
    daemon.until(lambda: daemon.is_mounted(new), "a new one is mounted", BOUND_S)
    assert daemon.read(new) == version.data
    version.image.unlink()
    daemon.until(lambda: not daemon.path(new).parent.exists(), "a removed one goes", BOUND_S)
    assert time.monotonic() - began < 3 * BOUND_S


def test_reads_of_one_image_hang_while_it_is_copied__all_others_are_served(folder: Path) -> None:
    versions = publish(folder, "bad", "good", "read")
    with slow_node(folder) as (source, daemon):
        daemon.start()
        daemon.until(lambda: daemon.is_mounted(*versions))
        source.set(hang=True, only=("bad.squashfs",))
        daemon.pin(1, "bad")
        daemon.until(lambda: "gives no answer since" in daemon.dataset("bad").problem)
        live_on(daemon, folder, versions, job_id=2)
        assert daemon.dataset("bad").holders == ("job:1",)
        assert daemon.state("bad") in (DatasetState.STAGING, DatasetState.QUEUED)
        source.set(hang=False)
        daemon.until(lambda: daemon.is_cached("bad"), "it heals by itself")
        assert daemon.read("bad") == versions["bad"].data
        daemon.until(lambda: daemon.dataset("bad").problem == "")


def test_a_new_image_hangs_when_it_is_opened__all_others_are_served(folder: Path) -> None:
    versions = publish(folder, "good", "read")
    with slow_node(folder) as (source, daemon):
        daemon.start()
        daemon.until(lambda: daemon.is_mounted(*versions))
        source.set(hang_open=True, only=("bad.squashfs",))
        bad = publish(folder, "bad")["bad"]
        daemon.until(lambda: "gives no answer since" in daemon.dataset("bad").problem)
        live_on(daemon, folder, versions, job_id=2)
        assert daemon.state("bad") is DatasetState.UNMOUNTED
        source.set(hang_open=False)
        daemon.until(lambda: daemon.is_mounted("bad"), "it heals by itself")
        assert daemon.read("bad") == bad.data


def test_a_mounted_image_hangs_when_it_is_opened__all_others_are_served(folder: Path) -> None:
    """The switch back of an eviction opens it; the scan does not, as it has not changed."""
    versions = publish(folder, "bad", "good")
    with slow_node(folder, capacity="600 kB") as (source, daemon):
        daemon.start()
        daemon.pin(1, "bad")
        daemon.until(lambda: daemon.is_cached("bad") and daemon.is_mounted("good"))
        source.set(hang_open=True, only=("bad.squashfs",))
        daemon.release(1)
        daemon.pin(2, "good")  # needs the room
        daemon.until(lambda: "gives no answer since" in daemon.dataset("bad").problem)
        assert daemon.read("bad") == versions["bad"].data  # from the cache, as before
        assert daemon.read("good") == versions["good"].data
        small = publish(folder, "small", file_bytes=10_000)["small"]
        daemon.pin(3, "small")
        daemon.until(lambda: daemon.is_cached("small"), "there is room for this one", BOUND_S)
        assert daemon.read("small") == small.data
        source.set(hang_open=False)
        daemon.until(lambda: daemon.is_cached("good"), "it heals by itself")
        assert daemon.read("bad") == versions["bad"].data


def test_the_whole_source_hangs__what_is_cached_is_served_and_pinned_and_reported(folder: Path) -> None:
    versions = publish(folder, "cached", "read", "bad")
    with slow_node(folder) as (source, daemon):
        daemon.start()
        daemon.pin(1, "cached", "read")
        daemon.until(lambda: daemon.is_cached("cached", "read") and daemon.is_mounted("bad"))
        source.set(hang=True, hang_all=True)
        daemon.until(lambda: "gives no answer since" in daemon.status().problem)
        began = time.monotonic()
        daemon.pin(2, "cached", "bad")
        daemon.release(1)
        assert daemon.dataset("cached").holders == ("job:2",)
        assert daemon.dataset("bad").holders == ("job:2",)
        assert daemon.read("cached") == versions["cached"].data
        assert daemon.is_cached("cached", "read")
        assert "gives no answer since" in daemon.wait("unheard-of").datasets[0].problem
        assert daemon.plan().capacity_bytes == 1_000_000_000
        daemon.release(2)
        assert time.monotonic() - began < BOUND_S + 5  # looking for an unheard-of dataset takes 5 s by itself
        source.set(hang=False, hang_all=False)
        daemon.until(lambda: daemon.status().problem == "", "it heals by itself")
        new = publish(folder, "new")["new"]
        daemon.until(lambda: daemon.is_mounted("new"))
        assert daemon.read("new") == new.data
        assert daemon.read("bad") == versions["bad"].data


def test_stopped_and_started_while_the_source_hangs__jobs_go_on_and_nothing_is_lost(folder: Path) -> None:
    versions = publish(folder, "cached", "bad")
    with slow_node(folder) as (source, daemon):
        daemon.start()
        daemon.pin(1, "cached")
        daemon.until(lambda: daemon.is_cached("cached") and daemon.is_mounted("bad"))
        source.set(hang=True, hang_all=True)
        daemon.pin(2, "bad")
        daemon.until(lambda: daemon.status().problem != "")
        began = time.monotonic()
        daemon.stop()
        daemon.start()
        daemon.kill()
        daemon.start()
        assert time.monotonic() - began < 3 * BOUND_S
        daemon.until(lambda: daemon.is_cached("cached"))
        assert daemon.read("cached") == versions["cached"].data
        assert daemon.dataset("cached").holders == ("job:1",)
        daemon.until(lambda: "gives no answer" in daemon.status().problem)
        source.set(hang=False, hang_all=False)
        daemon.until(lambda: daemon.is_cached("bad", "cached"), "it heals by itself")
        assert daemon.read("bad") == versions["bad"].data
        daemon.until(lambda: len(children_of(daemon.pid)) <= 3, "the workers that hung are gone")


def test_a_failing_source__its_dataset_is_degraded_and_heals(folder: Path) -> None:
    versions = publish(folder, "bad", "good", "read")
    with slow_node(folder) as (source, daemon):
        daemon.start()
        daemon.until(lambda: daemon.is_mounted(*versions))
        source.set(fail=True, only=("bad.squashfs",))
        daemon.pin(1, "bad")
        daemon.until(lambda: "stage failed" in daemon.dataset("bad").problem)
        assert "next try in" in daemon.dataset("bad").problem
        assert daemon.logged("degraded dataset=bad", "Input/output error")
        answer = daemon.wait("bad", timeout_s=60)
        assert answer.settled  # a job's start does not wait for what is broken
        live_on(daemon, folder, versions, job_id=2)
        source.set(fail=False)
        daemon.until(lambda: daemon.is_cached("bad"), "it heals by itself")
        assert daemon.read("bad") == versions["bad"].data


def test_squashfs_that_remembers_an_error_is_mounted_anew(folder: Path) -> None:
    """After an I/O error squashfs goes on failing although the source is well again; the dataset must not."""
    versions = publish(folder, "bad", "good")
    with slow_node(folder, horizon="0.001") as (source, daemon):
        daemon.start()
        daemon.until(lambda: daemon.is_mounted(*versions))
        source.set(fail=True, only=("bad.squashfs",))
        with pytest.raises(OSError, match="Input/output error"):
            daemon.read("bad")
        source.set(fail=False)
        daemon.pin(1, "bad")
        daemon.until(lambda: daemon.is_cached("bad"))

        def is_well():
            with contextlib.suppress(OSError):
                return daemon.read("bad") == versions["bad"].data
            return False

        daemon.until(is_well, "the dataset is readable again")


def test_a_source_that_answers_with_enotconn_is_survived(folder: Path) -> None:
    """The file server dies: its mount answers with errors until somebody mounts it again."""
    versions = publish(folder, "cached", "bad")
    with slow_node(folder) as (source, daemon):
        daemon.start()
        daemon.pin(1, "cached")
        daemon.until(lambda: daemon.is_cached("cached") and daemon.is_mounted("bad"))
        os.kill(source.pid, 9)
        daemon.until(lambda: daemon.status().problem != "")
        assert daemon.read("cached") == versions["cached"].data
        source.close()
        with SlowSource(folder / "real", folder / "source"):
            daemon.until(lambda: daemon.status().problem == "")
            daemon.pin(2, "bad")
            daemon.until(lambda: daemon.is_cached("bad"), "served again")

            def is_well():
                with contextlib.suppress(OSError):
                    return daemon.read("bad") == versions["bad"].data
                return False

            daemon.until(is_well, "readable again")


def test_a_removed_image_whose_storage_answers_for_it_no_more_is_unmounted_by_the_next_daemon(folder: Path) -> None:
    """The kernel asks the storage when it is asked for a device's tag: the mount must not pass for a stranger's."""
    versions = publish(folder, "coco", "other")
    with slow_node(folder) as (_, daemon):
        daemon.start()
        daemon.until(lambda: daemon.is_mounted(*versions))
        daemon.kill()
        versions["coco"].image.unlink()
        daemon.start()
        daemon.until(lambda: not daemon.path("coco").parent.exists())
