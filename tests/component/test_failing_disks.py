"""A disk that hangs, or a ledger that cannot be used, costs what lies on it, and nothing else."""

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.domain.messages import DatasetState
from scratch_slurm.domain.model import job_holder
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import Version, make_version
from tests.kit.disks import small_disk
from tests.kit.sources import SlowSource, why_not

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]


def publish(daemon: RunningDaemon, *names: str, number=1) -> dict[str, Version]:
    return {name: make_version(daemon.source_dir, name, number, file_bytes=50_000) for name in names}


@contextlib.contextmanager
def frozen(mount_point) -> Iterator[None]:
    """Nobody can write there; who tries is held by the kernel until it is over."""
    subprocess.run(["fsfreeze", "-f", str(mount_point)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", str(mount_point)], check=True)


def test_a_cache_that_hangs_on_writes_holds_up_neither_pins_nor_releases_nor_mounts(folder: Path) -> None:
    with small_disk(folder, folder / "cache", 64 << 20), RunningDaemon(folder, source_timeout="2") as daemon:
        versions = publish(daemon, "going", "other")
        daemon.pin(1, "going", "other")
        daemon.until(lambda: daemon.is_cached("going", "other"))
        daemon.release(1)
        with frozen(folder / "cache"):
            with pytest.raises(ScratchError):
                daemon.evict("going", timeout_s=1)
            daemon.until(lambda: "gives no answer since" in daemon.dataset("going").problem, "it hangs")
            daemon.pin(2, "other")
            assert daemon.dataset("other").holders == ("job:2",)
            daemon.release(2)
            assert daemon.dataset("other").holders == ()
            versions |= publish(daemon, "new", "wanted")
            daemon.until(lambda: daemon.is_mounted("new", "wanted"))
            daemon.pin(3, "wanted")  # its copy hangs as well
            daemon.until(lambda: "gives no answer since" in daemon.dataset("wanted").problem)
            assert daemon.read("wanted") == versions["wanted"].data
            with daemon.ledger() as ledger:
                ledger.pin(job_holder(4), ["going"], uid=0)
        daemon.until(lambda: daemon.is_cached("wanted", "going"), "all goes on")
        for name, version in versions.items():
            assert daemon.read(name) == version.data
        assert daemon.cached_files()


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_cache_that_gives_no_answer_is_told_and_everything_else_goes_on(folder: Path) -> None:
    real = folder / "disk"
    daemon = RunningDaemon(folder, cache_dir=str(real), source_timeout="3")
    with daemon:
        versions = publish(daemon, "coco", "other")
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco") and daemon.is_mounted("other"))
        daemon.stop()
        with SlowSource(real, folder / "ssd") as disk:
            daemon.start(cache_dir=str(folder / "ssd"))
            daemon.until(lambda: daemon.is_cached("coco"))
            capacity_bytes = daemon.status().capacity_bytes
            disk.set(hang_all=True)
            daemon.until(lambda: "gives no answer since" in daemon.status().problem)
            assert daemon.status().capacity_bytes == capacity_bytes
            assert daemon.dataset("coco").state is DatasetState.CACHED, "nothing says that it is not there"
            daemon.pin(2, "other")
            daemon.until(lambda: "gives no answer since" in daemon.dataset("other").problem, "the job is told")
            assert daemon.wait("other", timeout_s=60).settled, "and does not wait for it"
            daemon.release(2)
            versions |= publish(daemon, "new")
            daemon.until(lambda: daemon.is_mounted("new"))
            assert daemon.read("new") == versions["new"].data
            with pytest.raises(ScratchError, match="gives no answer since"):
                daemon.evict("coco")
            daemon.stop()
            daemon.start()
            daemon.until(lambda: "gives no answer since" in daemon.status().problem, "a new daemon starts without it")
            publish(daemon, "newer")
            daemon.until(lambda: daemon.is_mounted("newer"))
            disk.set(hang_all=False)
            daemon.until(lambda: daemon.status().problem == "", "it heals by itself")
            daemon.until(lambda: daemon.is_cached("coco"))
            daemon.stop()


def full(folder: Path):
    """Nothing can be written beside the ledger."""
    disk = small_disk(folder, folder / "state", 2 << 20)
    disk.__enter__()
    with contextlib.suppress(OSError), (folder / "state" / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return disk


def lose_table(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE pins")


def newer_release(path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")


def of_this_release(path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 1")


def unreadable(path) -> None:
    for file in path.parent.glob("ledger*"):
        file.rename(file.with_name(f"kept-{file.name}"))
    os.mkfifo(path)


def readable(path) -> None:
    path.unlink()
    for file in path.parent.glob("kept-*"):
        file.rename(file.with_name(file.name.removeprefix("kept-")))


BROKEN = [
    pytest.param(newer_release, of_this_release, id="a-newer-release"),
    pytest.param(unreadable, readable, id="unreadable"),
]


@pytest.mark.parametrize(("break_it", "mend_it"), BROKEN)
def test_a_ledger_that_cannot_be_used__what_may_be_pinned_stays_and_what_is_new_is_mounted(
    folder: Path, break_it: Callable[..., Any], mend_it: Callable[..., Any]
) -> None:
    path = folder / "state" / "ledger.sqlite"
    with RunningDaemon(folder, capacity="200 kB") as daemon:
        versions = publish(daemon, "pinned", "removed", "changed")
        daemon.pin(1, "pinned", "removed", "changed")
        daemon.until(lambda: daemon.is_cached("pinned", "removed", "changed"))
        break_it(path)
        daemon.until(lambda: "who pins what is not known" in daemon.status().problem, "it is told")
        versions["removed"].image.unlink()
        make_version(daemon.source_dir, "changed", 2, file_bytes=50_000)
        publish(daemon, "new")
        daemon.until(lambda: daemon.is_mounted("new"))
        daemon.until(lambda: daemon.dataset("changed").update_waiting)
        with pytest.raises(ScratchError, match="not known"):
            daemon.evict("pinned")
        daemon.restart()
        daemon.until(lambda: daemon.is_mounted("new") and daemon.dataset("changed").update_waiting)
        assert "who pins what is not known" in daemon.status().problem
        for name in ("pinned", "removed", "changed"):
            assert daemon.read(name) == versions[name].data, f"{name} stays as its job found it"
        assert len(daemon.cached_files()) == 3
        mend_it(path)
        daemon.until(lambda: daemon.status().problem == "", "it is used again")
        assert daemon.dataset("pinned").holders == ("job:1",)
        daemon.release(1)
        daemon.until(lambda: not daemon.is_mounted("removed") and not daemon.dataset("changed").update_waiting)


def test_a_full_disk_under_the_ledger__the_daemon_starts_and_mounts(folder: Path) -> None:
    disk = full(folder)
    try:
        with RunningDaemon(folder) as daemon:
            versions = publish(daemon, "coco")
            daemon.until(lambda: daemon.is_mounted("coco"))
            assert daemon.read("coco") == versions["coco"].data
            assert "who pins what is not known" in daemon.status().problem
            assert "no space left" in daemon.status().problem
            (folder / "state" / "fill").unlink()
            daemon.until(lambda: daemon.status().problem == "")
            daemon.pin(1, "coco")
            daemon.until(lambda: daemon.is_cached("coco"))
            daemon.stop()
    finally:
        disk.__exit__(None, None, None)


def test_a_table_that_somebody_drops_while_the_daemon_runs_is_there_again(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        publish(daemon, "coco")
        daemon.until(lambda: daemon.is_mounted("coco"))
        lose_table(folder / "state" / "ledger.sqlite")
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.status().problem == ""
