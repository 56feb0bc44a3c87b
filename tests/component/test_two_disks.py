"""A node with two disks: what is placed where, and what a disk takes along that fills up, dies or comes back."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import Version, make_version
from tests.kit.disks import small_disk

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

MB = 10**6


@contextlib.contextmanager
def two_disks(folder: Path, **config: Any) -> Iterator[RunningDaemon]:
    with small_disk(folder, folder / "ssd0", 64 << 20), small_disk(folder, folder / "ssd1", 64 << 20):
        dirs = [{"dir": str(folder / name / "cache"), "mount": str(folder / name)} for name in ("ssd0", "ssd1")]
        with RunningDaemon(folder, cache_dirs=dirs, **config) as daemon:
            yield daemon
            daemon.stop()


def publish(daemon: RunningDaemon, *names: str, file_bytes: int = 3 * MB) -> dict[str, Version]:
    return {name: make_version(daemon.source_dir, name, 1, file_bytes=file_bytes) for name in names}


def lies_in(folder: Path, disk: str) -> set[str]:
    return {path.name.partition("@")[0] for path in (folder / disk / "cache").glob("*.image")}


def check_disks(daemon: RunningDaemon) -> None:
    for disk in daemon.status().disks:
        assert disk.used_bytes <= disk.capacity_bytes
        assert disk.free_bytes >= disk.reserve_bytes


def test_images_are_placed_on_the_emptier_disk_each_whole_on_one(folder: Path) -> None:
    with two_disks(folder, capacity="10 MB", reserve="1 MB") as daemon:
        versions = publish(daemon, "a", "b", "c", "d")
        for number, name in enumerate(versions, start=1):
            daemon.pin(number, name)
        daemon.until(lambda: daemon.is_cached(*versions), "more than one disk may hold")
        assert len(lies_in(folder, "ssd0")) == len(lies_in(folder, "ssd1")) == 2
        assert [disk.problem for disk in daemon.status().disks] == ["", ""]
        for name, version in versions.items():
            assert daemon.read(name) == version.data
            (place,) = daemon.dataset(name).disks
            assert Path(place).parent.name == ("ssd0" if name in lies_in(folder, "ssd0") else "ssd1")
        check_disks(daemon)


def test_a_disk_that_others_fill_leaves_its_copies_to_the_other_one(folder: Path) -> None:
    with two_disks(folder, capacity="40 MB", reserve="8 MB") as daemon:
        with (folder / "ssd0" / "others").open("wb") as others:
            others.write(bytes(50 * MB))
        versions = publish(daemon, "a", "b", "c")
        for number, name in enumerate(versions, start=1):
            daemon.pin(number, name)
        daemon.until(lambda: daemon.is_cached(*versions))
        assert lies_in(folder, "ssd1") == set(versions)
        assert lies_in(folder, "ssd0") == set()
        assert daemon.status().disks[1].free_bytes >= 8 * MB


def test_a_disk_that_others_fill_afterwards_gives_up_what_nobody_pins_and_the_other_one_nothing(folder: Path) -> None:
    with two_disks(folder, capacity="40 MB", reserve="8 MB") as daemon:
        versions = publish(daemon, "a", "b", "c", "d")
        for number, name in enumerate(versions, start=1):
            daemon.pin(number, name)
        daemon.until(lambda: daemon.is_cached(*versions))
        filled, other = sorted(lies_in(folder, "ssd0")), lies_in(folder, "ssd1")
        pinned, free = filled
        daemon.release(list(versions).index(free) + 1)
        for name in other:
            daemon.release(list(versions).index(name) + 1)
        with (folder / "ssd0" / "others").open("wb") as others:
            others.write(bytes(daemon.status().disks[0].free_bytes - 7 * MB))
        daemon.until(lambda: daemon.logged(f"evicted dataset={free}", "others fill the disk"), "what nobody pins goes")
        daemon.until(lambda: daemon.status().disks[0].free_bytes >= 8 * MB, "and that suffices")
        with (folder / "ssd0" / "more").open("wb") as others:
            others.write(bytes(4 * MB))
        before = len(daemon.logged("evicted dataset="))
        daemon.wait()
        daemon.until(lambda: daemon.status().disks[0].free_bytes < 8 * MB)
        daemon.wait()
        assert lies_in(folder, "ssd0") == {pinned}, "pinned means pinned"
        assert lies_in(folder, "ssd1") == other and len(daemon.logged("evicted dataset=")) == before
        for name, version in versions.items():
            assert daemon.read(name) == version.data
        daemon.release(list(versions).index(pinned) + 1)
        daemon.until(lambda: lies_in(folder, "ssd0") == set(), "nobody pins it any more")


def test_a_disk_that_dies_under_readers_takes_only_its_own_copies_and_is_used_when_it_is_back(folder: Path) -> None:
    with two_disks(folder, capacity="10 MB", reserve="1 MB") as daemon:
        versions = publish(daemon, "a", "b", "c", "d")
        for number, name in enumerate(versions, start=1):
            daemon.pin(number, name)
        daemon.until(lambda: daemon.is_cached(*versions))
        lost, kept = lies_in(folder, "ssd1"), lies_in(folder, "ssd0")
        readers = {name: daemon.path(name, "data").open("rb", buffering=0) for name in versions}
        device = find_device(folder / "ssd1.ext4")
        subprocess.run(["umount", "-l", folder / "ssd1"], check=True)
        try:
            daemon.until(lambda: "nothing is mounted" in daemon.status().disks[1].problem, "it is told")
            daemon.until(lambda: not any(daemon.is_cached(name) for name in lost), "the source serves them")
            assert daemon.is_cached(*kept), "the other disk's copies stay"
            assert daemon.status().disks[0].problem == ""
            for name, reader in readers.items():
                assert reader.read() == versions[name].data
                reader.close()
        finally:
            subprocess.run(["mount", device, folder / "ssd1"], check=True)
        daemon.until(lambda: daemon.is_cached(*versions), "it is used again")
        assert daemon.status().disks[1].problem == ""
        check_disks(daemon)


def find_device(image: Path) -> str:
    told = subprocess.run(
        ["losetup", "--noheadings", "-O", "NAME", "-j", image], check=True, capture_output=True, text=True
    )
    return told.stdout.strip()


def test_a_disk_is_added_and_taken_out_by_a_reload_while_jobs_read(folder: Path) -> None:
    with two_disks(folder, capacity="10 MB", reserve="1 MB") as daemon:
        both = daemon.config
        first, second = both["cache_dirs"]
        daemon.reload({**both, "cache_dirs": [first]})
        daemon.until(lambda: len(daemon.status().disks) == 1)
        versions = publish(daemon, "a", "b")
        for number, name in enumerate(versions, start=1):
            daemon.pin(number, name)
        daemon.until(lambda: daemon.is_cached(*versions))
        readers = {name: daemon.path(name, "data").open("rb", buffering=0) for name in versions}

        daemon.reload(both)
        daemon.until(lambda: len(daemon.status().disks) == 2)
        versions |= publish(daemon, "c")
        daemon.pin(3, "c")
        daemon.until(lambda: daemon.is_cached(*versions))
        assert (lies_in(folder, "ssd0"), lies_in(folder, "ssd1")) == ({"a", "b"}, {"c"})

        daemon.reload({**both, "cache_dirs": [second]})
        daemon.until(lambda: len(daemon.status().disks) == 1 and daemon.is_cached(*versions), "copied to what is left")
        daemon.until(lambda: lies_in(folder, "ssd0") == set(), "what was on the other is deleted")
        for name, reader in readers.items():
            assert reader.read() == versions[name].data
        subprocess.run(["umount", folder / "ssd0"], check=True)  # nothing has a file of it open
        for name, reader in readers.items():
            reader.close()
            assert daemon.read(name) == versions[name].data
        check_disks(daemon)


def test_two_directories_on_one_disk_are_no_two_disks(folder: Path) -> None:
    with small_disk(folder, folder / "ssd0", 64 << 20):
        dirs = [str(folder / "ssd0" / name) for name in ("one", "two")]
        with RunningDaemon(folder, cache_dirs=dirs) as daemon:
            daemon.until(lambda: bool(daemon.status().disks))
            one, two = daemon.status().disks
            assert one.problem == ""
            assert two.problem == f"{dirs[1]}: is on the same file system as {dirs[0]}, and cannot be a disk of its own"
            daemon.stop()
