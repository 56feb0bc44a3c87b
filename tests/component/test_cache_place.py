"""The cache lies where it belongs, or nowhere: a disk that is not mounted does not fill the one below it."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratch_slurm.node.placement import read_place
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.disks import small_disk

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]


@contextlib.contextmanager
def mounted(mount_point, fs_type="tmpfs") -> Iterator[None]:
    subprocess.run(["mount", "-t", fs_type, "-o", "mode=0755,size=64m", "none", mount_point], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", mount_point], check=True)


def test_a_place_is_told_by_what_is_mounted_there_and_what_should_be(folder: Path) -> None:
    disk, fstab, units = folder / "a disk", folder / "fstab", folder / "units"
    (disk / "cache").mkdir(parents=True)
    units.mkdir()

    def look():
        return read_place(disk / "cache", fstab=fstab, unit_dirs=[units, folder / "none"])

    assert look().missing == {}
    fstab.write_text(f"/dev/sdb {str(disk).replace(' ', chr(92) + '040')} ext4 nofail 0 2\n")
    assert look().missing == {str(disk): str(fstab)}
    with mounted(disk):
        place = read_place(disk / "not-yet", fstab=fstab, unit_dirs=[])
        assert (place.fs_type, place.on_root, place.missing) == ("tmpfs", False, {})
    fstab.unlink()
    name = str(disk).strip("/").replace("-", r"\x2d").replace("/", "-").replace(" ", r"\x20")
    (units / f"{name}.mount").touch()
    assert look().missing == {str(disk): "a mount unit of systemd"}
    (units / f"{name}.mount").unlink()
    (units / f"{name}.mount").symlink_to("/dev/null")  # masked
    assert look().missing == {}
    assert read_place(disk / "cache", str(disk / "cache"), fstab=fstab, unit_dirs=[]).missing == {
        str(disk / "cache"): "cache_mount"
    }


def test_a_place_below_what_is_not_there_is_none(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_place(folder / "ssd" / "cache", fstab=folder / "none", unit_dirs=[])


def test_a_disk_that_is_mounted_later_is_used_without_a_restart_and_left_when_it_goes(folder: Path) -> None:
    ssd = folder / "ssd"
    ssd.mkdir()
    daemon = RunningDaemon(folder, cache_dir=str(ssd / "cache"), cache_mount=str(ssd))
    with daemon:
        version = make_version(daemon.source_dir, "coco", 1, file_bytes=50_000)
        daemon.until(lambda: daemon.is_mounted("coco"))
        daemon.until(lambda: f"nothing is mounted on {ssd}" in daemon.status().problem)
        daemon.pin(1, "coco")
        daemon.until(lambda: f"nothing is mounted on {ssd}" in daemon.dataset("coco").problem, "the job is told why")
        assert daemon.wait("coco", timeout_s=60).settled, "and does not wait"
        assert list(ssd.iterdir()) == []
        (folder / "disk").mkdir()
        with small_disk(folder, folder / "disk" / "under", 64 << 20):
            subprocess.run(["mount", "--move", folder / "disk" / "under", ssd], check=True)
            try:
                daemon.until(lambda: daemon.is_cached("coco"), "it is mounted now")
                assert daemon.status().problem == ""
            finally:
                subprocess.run(["umount", "-l", ssd], check=True)
            daemon.until(lambda: f"nothing is mounted on {ssd}" in daemon.status().problem)
            daemon.until(lambda: not daemon.is_cached("coco"), "the source is read")
            assert daemon.read("coco") == version.data
            assert list(ssd.iterdir()) == []
            daemon.stop()
            subprocess.run(["mount", "-t", "tmpfs", "none", folder / "disk" / "under"], check=True)  # for its clean-up


def test_memory_is_no_disk_unless_the_site_says_so(folder: Path) -> None:
    (folder / "ssd").mkdir()
    with mounted(folder / "ssd"):
        daemon = RunningDaemon(folder, cache_dir=str(folder / "ssd" / "cache"), cache_on_any_file_system=False)
        with daemon:
            make_version(daemon.source_dir, "coco", 1, file_bytes=50_000)
            daemon.pin(1, "coco")
            daemon.until(lambda: "of type tmpfs" in daemon.dataset("coco").problem)
            assert list((folder / "ssd").iterdir()) == []
            daemon.reload(daemon.config | {"cache_on_any_file_system": True})
            daemon.until(lambda: daemon.is_cached("coco"))
            daemon.stop()


def test_what_a_cleaner_removes_is_there_again_in_the_next_round(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        make_version(daemon.source_dir, "coco", 1, file_bytes=50_000)
        make_version(daemon.source_dir, "other", 1, file_bytes=50_000)
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        (daemon.cache_dir / ".staging").rmdir()
        daemon.pin(2, "other")
        daemon.until(lambda: daemon.is_cached("coco", "other"))
        assert not daemon.logged("cannot read it")
        for path in sorted(daemon.cache_dir.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        daemon.cache_dir.rmdir()
        daemon.until(lambda: daemon.is_cached("coco", "other"), "all of it")
        assert daemon.status().problem == ""
