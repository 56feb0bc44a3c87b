"""A source that hangs below a reader, where the site says that it shall fail instead."""

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.node.kernel import fuse, mountinfo
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.images import clean_up, wait_until
from tests.kit.sources import SlowSource

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

MB = 1_000_000


@pytest.fixture
def slow(folder: Path) -> Iterator[SlowSource]:
    pytest.importorskip("mfusepy", reason="mfusepy is not installed")
    (folder / "real").mkdir()
    with SlowSource(folder / "real", folder / "source") as source:
        yield source
        with contextlib.suppress(AssertionError):  # a test has closed it
            source.set(hang=False, hang_all=False)
        clean_up(folder / "datasets")


@pytest.fixture
def reader() -> Iterator[Callable[..., Any]]:
    """Starts children that read a file, and ends them."""
    started = []

    def read(path):
        started.append(subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return started[-1]

    yield read
    for each in started:
        each.kill()
        each.wait(30)


def test_a_reader_of_a_source_that_hangs_gets_an_error_and_the_mount_is_mended_when_the_source_is_back(
    folder: Path, slow: SlowSource, reader: Callable[..., Any]
) -> None:
    version = make_version(folder / "real", "coco", file_bytes=40 * MB)
    slow.set(bytes_per_s=4e6)
    with RunningDaemon(folder, source_abort="2", source_timeout="15") as daemon:
        daemon.until(lambda: daemon.is_mounted("coco"))
        cat = reader(daemon.path("coco"))
        wait_until(lambda: slow.counters()["coco.squashfs"].bytes > 2 * MB)
        slow.set(hang=True)
        assert cat.wait(60) != 0, "its read failed"
        daemon.until(lambda: daemon.logged("aborted source=", "fuse", "no answer for 2 s"))
        slow.close()
        with SlowSource(folder / "real", folder / "source"):
            daemon.until(lambda: daemon.logged("mended dataset=coco") or daemon.logged("replaced dataset=coco"))
            assert daemon.read("coco") == version.data
            daemon.kill_if_running()
            clean_up(folder / "datasets")


def test_without_the_setting_nothing_is_aborted(folder: Path, slow: SlowSource, reader: Callable[..., Any]) -> None:
    make_version(folder / "real", "coco", file_bytes=40 * MB)
    slow.set(bytes_per_s=4e6)
    with RunningDaemon(folder, interval="0.5") as daemon:
        daemon.until(lambda: daemon.is_mounted("coco"))
        cat = reader(daemon.path("coco"))
        wait_until(lambda: slow.counters()["coco.squashfs"].bytes > 2 * MB)
        slow.set(hang=True)
        wait_until(slow.blocked)
        for _ in range(5):
            daemon.wait()
        cat.send_signal(signal.SIGKILL)
        assert not daemon.logged("aborted")
        slow.set(hang=False, bytes_per_s=0)
        cat.wait(60)


def test_a_slow_source_is_not_aborted(folder: Path, slow: SlowSource) -> None:
    version = make_version(folder / "real", "coco", file_bytes=4 * MB)
    slow.set(bytes_per_s=4e5)
    with RunningDaemon(folder, source_abort="5", source_timeout="60") as daemon:
        daemon.until(lambda: daemon.is_mounted("coco"), timeout_s=60)
        assert daemon.read("coco") == version.data
        assert not daemon.logged("aborted")


def test_the_connection_of_a_path_is_found_by_the_list_of_mounts_alone(folder: Path, slow: SlowSource) -> None:
    slow.set(hang_all=True)
    mounts = mountinfo.read_mounts()
    found = mountinfo.find_mount(f"{folder}/source/coco.squashfs", mounts)
    assert found is not None and fuse.is_fuse(found.fs_type) and found.mount_point == f"{folder}/source"
    for other in (f"{folder}/real/coco.squashfs", f"{folder}/source-of-another-name"):
        beside = mountinfo.find_mount(other, mounts)
        assert beside is not None and not fuse.is_fuse(beside.fs_type)
    slow.set(hang_all=False)
    assert found.number == (folder / "source").stat().st_dev
