"""Datasets that come, go and change while jobs read them: nobody ever meets two versions in one dataset."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratch_slurm.domain.messages import DatasetState
from tests.kit.daemon import RunningDaemon, read_held
from tests.kit.datasets import make_image_file, make_version
from tests.kit.images import backings_below, in_child, opened

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]


@pytest.fixture
def daemon(folder: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(folder) as running:
        yield running


def cache(daemon: RunningDaemon, name: str, job_id: int = 1) -> None:
    daemon.pin(job_id, name)
    daemon.until(lambda: daemon.is_cached(name), f"{name} is cached")


def nothing_cached(daemon: RunningDaemon) -> bool:
    return not daemon.cached_files() and not list((daemon.cache_dir / ".staging").iterdir())


def test_a_new_image_is_mounted_within_one_round(folder: Path) -> None:
    with RunningDaemon(folder, interval="3") as daemon:
        make_version(daemon.source_dir, "first")
        daemon.until(lambda: daemon.is_mounted("first"))
        version = make_version(daemon.source_dir, "coco")
        # One listing more, the mount, and a machine that has other things to do.
        daemon.until(lambda: daemon.is_mounted("coco"), timeout_s=3.3 + 5)
        assert daemon.read("coco") == version.data


def test_a_job_that_asks_for_a_new_image_does_not_wait_for_the_next_round(folder: Path) -> None:
    with RunningDaemon(folder, interval="1h") as daemon:
        version = make_version(daemon.source_dir, "coco")
        daemon.pin(1, "coco")
        daemon.wait("coco")  # as the prolog does: it names what the job asks for
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == version.data


def test_a_removed_dataset_disappears_cache_included_once_nobody_pins_it(daemon: RunningDaemon) -> None:
    version = make_version(daemon.source_dir, "coco")
    make_version(daemon.source_dir, "other")
    cache(daemon, "coco")
    version.image.unlink()
    daemon.until(lambda: "removed from the source" in daemon.dataset("coco").problem)
    assert daemon.is_cached("coco")
    assert daemon.read("coco") == version.data
    daemon.release(1)
    daemon.until(lambda: not daemon.path("coco").parent.exists())
    daemon.until(lambda: nothing_cached(daemon) and not backings_below(daemon.cache_dir))
    daemon.until(lambda: daemon.state("coco") is DatasetState.UNKNOWN)


def test_a_removed_dataset_stays_readable_to_those_who_have_it_open(daemon: RunningDaemon) -> None:
    version = make_version(daemon.source_dir, "coco")
    make_version(daemon.source_dir, "other")
    daemon.until(lambda: daemon.is_mounted("coco"))
    with opened(daemon.path("coco")) as reader:
        version.image.unlink()
        daemon.until(lambda: not daemon.path("coco").parent.exists())
        assert in_child(read_held, reader) == version.data
    daemon.until(lambda: len(backings_below(daemon.folder)) == 1)


def test_the_last_dataset_is_not_taken_for_removed_when_the_source_shows_nothing(daemon: RunningDaemon) -> None:
    version = make_version(daemon.source_dir, "coco")
    cache(daemon, "coco")
    daemon.release(1)
    version.image.unlink()
    other = make_version(daemon.source_dir, "other")  # a source that shows something else is believed
    daemon.until(lambda: daemon.is_mounted("other") and not daemon.path("coco").parent.exists())
    other.image.unlink()
    daemon.until(lambda: len(daemon.logged("unmounted", "coco")) == 1)
    for _ in range(3):
        daemon.wait("other")
    assert daemon.read("other") == other.data


@pytest.mark.parametrize("backing", ["source", "cache"])
def test_replaced_while_pinned__the_holder_reads_on_and_the_next_one_gets_the_new(
    daemon: RunningDaemon, backing: str
) -> None:
    old = make_version(daemon.source_dir, "coco", 1)
    daemon.until(lambda: daemon.is_mounted("coco"))
    if backing == "cache":
        cache(daemon, "coco")
    else:
        # It does not fit, so the job reads the source.
        daemon.stop()
        daemon.start(capacity="10000")
        daemon.pin(1, "coco")
    with opened(daemon.path("coco")) as reader:
        new = make_version(daemon.source_dir, "coco", 2)
        daemon.until(lambda: "newer image" in daemon.dataset("coco").problem)
        status = daemon.dataset("coco")
        assert status.update_waiting
        assert status.holders == ("job:1",)
        assert (status.state is DatasetState.CACHED) == (backing == "cache")
        assert in_child(read_held, reader) == old.data
        assert daemon.read("coco") == old.data
        daemon.pin(2, "coco")  # a second job shares the version of the first
        daemon.release(1)
        assert daemon.dataset("coco").update_waiting
        assert daemon.read("coco") == old.data
        daemon.release(2)
        daemon.until(lambda: daemon.read("coco") == new.data)
        assert in_child(read_held, reader) == old.data
    daemon.until(lambda: len(backings_below(daemon.folder)) == 1)
    daemon.until(lambda: not daemon.dataset("coco").update_waiting)
    if backing == "cache":
        cache(daemon, "coco", 3)
        assert daemon.read("coco") == new.data
        daemon.until(lambda: len(daemon.cached_files()) == 1)


def test_replaced_while_cached_and_unpinned(daemon: RunningDaemon) -> None:
    make_version(daemon.source_dir, "coco", 1)
    cache(daemon, "coco")
    daemon.release(1)
    assert daemon.is_cached("coco")
    new = make_version(daemon.source_dir, "coco", 2)
    daemon.until(lambda: daemon.read("coco") == new.data)
    daemon.until(lambda: [path.stat().st_size for path in daemon.cached_files()] in ([], [new.size_bytes]))
    cache(daemon, "coco", 2)
    assert daemon.read("coco") == new.data


def test_replaced_while_being_copied__no_mixture_is_served(folder: Path) -> None:
    with RunningDaemon(folder, copy={"bandwidth": 4_000_000}) as daemon:
        old = make_version(daemon.source_dir, "coco", 1, file_bytes=8_000_000)
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.dataset("coco").staged_bytes > 0)
        new = make_version(daemon.source_dir, "coco", 2, file_bytes=8_000_000)
        daemon.until(lambda: daemon.dataset("coco").update_waiting)
        daemon.until(lambda: daemon.state("coco") is not DatasetState.STAGING)
        assert daemon.read("coco") == old.data
        daemon.release(1)
        daemon.until(lambda: daemon.read("coco") == new.data)
        daemon.pin(2, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == new.data


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "unpinned"])
def test_rewritten_in_place__a_cached_job_keeps_its_version(daemon: RunningDaemon, pinned: bool) -> None:
    """What curators are told not to do: the source's file has changed under everybody who read it there."""
    old = make_version(daemon.source_dir, "coco", 1)
    cache(daemon, "coco")
    if not pinned:
        daemon.release(1)
    new = make_image_file(daemon.source_dir, "coco", 2, old.file_bytes)
    inode = old.image.stat().st_ino
    with old.image.open("r+b") as file:
        file.write(new.read_bytes())
    assert old.image.stat().st_ino == inode
    new_data = make_version(daemon.folder, "coco", 2).data
    if pinned:
        daemon.until(lambda: daemon.dataset("coco").update_waiting)
        assert daemon.read("coco") == old.data
        daemon.release(1)
    daemon.until(lambda: daemon.read("coco") == new_data)
    cache(daemon, "coco", 2)
    assert daemon.read("coco") == new_data


def test_touched_only__the_same_bytes_are_another_generation_and_nobody_notices(daemon: RunningDaemon) -> None:
    version = make_version(daemon.source_dir, "coco")
    cache(daemon, "coco")
    with opened(daemon.path("coco")) as reader:
        os.utime(version.image)
        daemon.until(lambda: daemon.dataset("coco").update_waiting)
        assert daemon.read("coco") == version.data
        daemon.release(1)
        daemon.until(lambda: not daemon.dataset("coco").update_waiting)
        assert daemon.read("coco") == version.data
        assert in_child(read_held, reader) == version.data


def test_two_files_that_claim_one_dataset__the_first_name_serves_and_the_other_takes_over(
    daemon: RunningDaemon,
) -> None:
    first = make_version(daemon.source_dir, "coco", 1)
    first.image.rename(daemon.source_dir / "coco.sqfs")
    second = make_version(daemon.source_dir, "coco", 2)
    daemon.until(lambda: daemon.read("coco") == first.data if daemon.is_mounted("coco") else False)
    daemon.until(lambda: "coco.sqfs holds dataset coco already" in daemon.dataset("coco.squashfs").problem)
    cache(daemon, "coco")
    (daemon.source_dir / "coco.sqfs").unlink()
    daemon.until(lambda: daemon.dataset("coco").update_waiting)
    assert daemon.read("coco") == first.data
    daemon.release(1)
    daemon.until(lambda: daemon.read("coco") == second.data)


def test_one_file_under_two_names_is_two_datasets(daemon: RunningDaemon) -> None:
    version = make_version(daemon.source_dir, "coco")
    os.link(version.image, daemon.source_dir / "copy.squashfs")
    daemon.pin(1, "coco", "copy")
    daemon.until(lambda: daemon.is_cached("coco", "copy"))
    version.image.unlink()
    daemon.release(1)
    daemon.until(lambda: not daemon.path("coco").parent.exists())
    assert daemon.read("copy") == version.data


def test_moved_to_a_new_name__the_old_dataset_goes_and_the_new_one_comes(daemon: RunningDaemon) -> None:
    version = make_version(daemon.source_dir, "coco")
    cache(daemon, "coco")
    version.image.rename(daemon.source_dir / "coco2.squashfs")
    daemon.until(lambda: daemon.is_mounted("coco2"))
    assert daemon.read("coco") == daemon.read("coco2") == version.data
    daemon.release(1)
    daemon.until(lambda: not daemon.path("coco").parent.exists())
    daemon.until(lambda: not [path for path in daemon.cached_files() if path.name.startswith("coco@")])
    assert daemon.read("coco2") == version.data


STATES = ("cached", "update-waiting", "removed-but-pinned", "staging")


@pytest.mark.parametrize("state", STATES)
def test_taken_over_after_kill_9(folder: Path, state: str) -> None:
    with RunningDaemon(folder, copy={"bandwidth": 3_000_000} if state == "staging" else {}) as daemon:
        file_bytes = 6_000_000 if state == "staging" else 400_000
        version = make_version(daemon.source_dir, "coco", 1, file_bytes=file_bytes)
        make_version(daemon.source_dir, "other", file_bytes=10_000)
        daemon.pin(1, "coco")
        if state == "staging":
            daemon.until(lambda: daemon.dataset("coco").staged_bytes > 0)
        else:
            daemon.until(lambda: daemon.is_cached("coco"))
        daemon.until(lambda: daemon.is_mounted("other"))
        devices = backings_below(daemon.folder)
        with opened(daemon.path("coco")) as reader:
            if state == "update-waiting":
                newer = make_version(daemon.source_dir, "coco", 2)
                daemon.until(lambda: daemon.dataset("coco").update_waiting)
            if state == "removed-but-pinned":
                version.image.unlink()
                daemon.until(lambda: "removed" in daemon.dataset("coco").problem)
            daemon.kill()
            assert daemon.read("coco") == version.data  # the mounts go on serving
            daemon.start(copy={})
            daemon.until(lambda: daemon.is_cached("coco"))
            daemon.until(lambda: daemon.dataset("coco").update_waiting == (state == "update-waiting"))
            assert daemon.dataset("coco").use_count == 1
            assert daemon.read("coco") == in_child(read_held, reader) == version.data
            assert backings_below(daemon.folder).keys() == devices.keys()
        daemon.release(1)
        if state == "update-waiting":
            daemon.until(lambda: daemon.read("coco") == newer.data)
        if state == "removed-but-pinned":
            daemon.until(lambda: not daemon.path("coco").parent.exists() and nothing_cached(daemon))


def test_what_others_put_into_the_cache_or_take_out_of_it(daemon: RunningDaemon) -> None:
    version = make_version(daemon.source_dir, "coco")
    cache(daemon, "coco")
    (cached,) = daemon.cached_files()
    shutil.copy(cached, daemon.cache_dir / "coco@0123456789abcdef.image")
    daemon.until(lambda: daemon.cached_files() == [cached], "an image of no generation goes")
    cached.unlink()
    daemon.until(lambda: len(daemon.cached_files()) == 1 and daemon.is_cached("coco"), "a lost one comes again")
    assert daemon.read("coco") == version.data
