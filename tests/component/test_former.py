"""A daemon whose mount_dir or cache_dir is another now: nothing of before is left, and nobody loses what he reads."""

import os
import shutil
import subprocess

import pytest

from scratch_slurm.domain.messages import DatasetState
from tests.kit.daemon import RunningDaemon, read_held
from tests.kit.datasets import make_version
from tests.kit.images import backings_below, opened

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]


@pytest.fixture
def daemon(folder):
    with RunningDaemon(folder, capacity="1 MB") as running:
        for name in ("a", "b"):
            make_version(running.source_dir, name)
        running.pin(1, "a")
        running.until(lambda: running.is_cached("a") and running.is_mounted("b"))
        yield running


def mounts_in(folder):
    return sorted(name.name for name in folder.iterdir() if os.path.ismount(name)) if folder.exists() else []


def move_mounts(daemon, folder):
    daemon.stop()
    daemon.mount_dir = folder
    daemon.start(mount_dir=str(folder))


def test_former_mounts_go_but_for_those_that_a_job_of_before_pins(daemon, folder) -> None:
    version = make_version(daemon.source_dir, "c")
    daemon.until(lambda: daemon.is_mounted("c"))
    move_mounts(daemon, folder / "new")
    daemon.until(lambda: mounts_in(folder / "new") == ["a", "b", "c"])
    daemon.until(lambda: mounts_in(folder / "datasets") == ["a"])
    daemon.pin(2, "a")
    daemon.release(1)
    daemon.until(lambda: mounts_in(folder / "datasets") == [], "a job of now was told the path of now")
    assert mounts_in(folder / "new") == ["a", "b", "c"]
    assert daemon.read("c") == version.data


def test_an_open_file_of_a_former_mount_is_read_on(daemon, folder) -> None:
    with opened(daemon.path("b")) as held:
        before = read_held(held)
        move_mounts(daemon, folder / "new")
        daemon.until(lambda: mounts_in(folder / "datasets") == ["a"])
        assert read_held(held) == before


def test_the_room_of_copies_that_former_mounts_read_comes_back(daemon, folder) -> None:
    """Three images of 400 kB in a cache of 1 MB: the third has room only if the first is really gone."""
    make_version(daemon.source_dir, "c")
    move_mounts(daemon, folder / "new")
    daemon.release(1)
    for job_id, name in enumerate(("b", "c"), 2):
        daemon.pin(job_id, name)
        daemon.until(lambda name=name: daemon.is_cached(name))
    assert daemon.status().used_bytes <= 1_000_000


def test_a_stranger_s_mount_in_a_former_directory_is_left_alone(daemon, folder) -> None:
    daemon.stop()
    other = folder / "datasets" / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", other], check=True)
    daemon.mount_dir = folder / "new"
    daemon.start(mount_dir=str(folder / "new"))
    daemon.release(1)
    daemon.until(lambda: mounts_in(folder / "datasets") == ["other"])


def test_what_a_former_cache_directory_holds_is_left_and_deleted(daemon, folder) -> None:
    daemon.stop()
    old = daemon.cache_dir
    (old / "notes.txt").write_text("somebody's own")
    daemon.start(cache_dir=str(folder / "new-cache"))
    daemon.until(lambda: not backings_below(old))
    daemon.until(lambda: sorted(path.name for path in old.iterdir()) == [".staging", "notes.txt"])
    daemon.until(lambda: daemon.is_cached("a"), "job 1 pins it still: it is copied into the new one")
    assert all(path.startswith(f"{folder}/new-cache/") for path in backings_below(folder).values() if "a@" in path)


def test_a_former_cache_directory_that_is_not_roots_alone_any_more_is_left_alone(daemon, folder) -> None:
    daemon.stop()
    old = daemon.cache_dir
    old.chmod(0o777)
    copies = sorted(path.name for path in old.iterdir())
    daemon.start(cache_dir=str(folder / "new-cache"))
    daemon.until(lambda: daemon.logged("left alone directory="))
    assert sorted(path.name for path in old.iterdir()) == copies


def test_while_the_source_is_away_a_former_copy_is_read_on(daemon, folder) -> None:
    version = make_version(folder, "a")  # the same bytes
    daemon.stop()
    away = daemon.source_dir.rename(folder / "away")
    daemon.start(cache_dir=str(folder / "new-cache"))
    daemon.until(lambda: daemon.logged("source degraded"))
    daemon.wait()
    assert daemon.read("a") == version.data
    away.rename(daemon.source_dir)
    daemon.until(lambda: not backings_below(daemon.cache_dir))
    assert daemon.read("a") == version.data


def test_a_former_directory_that_is_gone_is_forgotten(daemon, folder) -> None:
    daemon.release(1)
    daemon.until(lambda: daemon.state("a") is DatasetState.CACHED)
    daemon.stop()
    for name in mounts_in(folder / "datasets"):
        subprocess.run(["umount", "-l", folder / "datasets" / name], check=True)
    shutil.rmtree(daemon.cache_dir)
    shutil.rmtree(folder / "datasets")
    daemon.mount_dir = folder / "new"
    daemon.start(cache_dir=str(folder / "new-cache"), mount_dir=str(folder / "new"))
    saved = folder / "state" / "directories.json"
    daemon.until(lambda: '/cache"' not in saved.read_text() and '/datasets"' not in saved.read_text())
    assert not daemon.logged("failed task")
