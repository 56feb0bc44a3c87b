"""Mounts that remember an I/O error, copies that cannot be read, and a dead SSD: all heal without anybody's hand."""

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.domain.messages import DatasetState
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.disks import small_disk
from tests.kit.images import backings_below, make_image, opened
from tests.kit.sources import SlowSource, why_not

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]


def names_that_fail(directory: Path) -> int:
    """Ask for the inode of each file; those in memory already cannot fail."""
    failed = 0
    for path in directory.iterdir():
        try:
            path.stat()
        except OSError:
            failed += 1
    return failed


def forget(path: Path) -> None:
    """Take what memory holds of a file out of it."""
    with opened(path) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def flush(folder: Path, name: str) -> None:
    """Take what memory holds of a dataset's device out of it."""
    device = next(device for device, path in backings_below(folder).items() if f"/{name}" in path)
    subprocess.run(["blockdev", "--flushbufs", f"/dev/{device}"], check=True)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_squashfs_that_remembers_an_error_is_mounted_anew_though_pinned(folder: Path) -> None:
    (folder / "real").mkdir()
    make_image(folder / "real/many.squashfs", files=4000, file_bytes=10)
    # There is no room to cache it: it is read from the source all along.
    with SlowSource(folder / "real", folder / "source") as source, RunningDaemon(folder, capacity="4 kB") as daemon:
        daemon.until(lambda: daemon.is_mounted("many"))
        daemon.pin(1, "many")
        directory = daemon.mount_dir / "many/d0"

        def mended() -> bool:
            # squashfs forgets an error when it needs the room of that block: then there is nothing to mend.
            # Where a first try to mend it met the error as well, the image may be in memory by now.
            if "is mounted anew" not in daemon.dataset("many").problem:
                flush(folder, "many")
                forget(folder / "source/many.squashfs")
                source.set(fail=True)
                names_that_fail(directory)  # those that memory has do not
                source.set(fail=False)
            return bool(daemon.logged("mended dataset=many"))

        daemon.until(mended, "mounted anew", 40)
        daemon.until(lambda: names_that_fail(directory) == 0, "every name is there")
        assert daemon.dataset("many").holders == ("job:1",)


def test_a_copy_that_cannot_be_read_goes_and_the_source_serves_until_there_is_another(folder: Path) -> None:
    version = make_version(folder, "coco")
    with RunningDaemon(folder) as daemon:
        version.image.rename(daemon.source_dir / "coco.squashfs")
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        (copy,) = daemon.cached_files()
        os.truncate(copy, 4096)

        def well_and_cached() -> bool:
            with contextlib.suppress(OSError):
                return daemon.read("coco") == version.data and daemon.is_cached("coco")
            return False

        with pytest.raises(OSError, match="Input/output error"):
            daemon.read("coco")
        daemon.until(lambda: daemon.logged("evicted dataset=coco"), "the bad copy goes")
        daemon.until(well_and_cached, "a new copy serves")
        assert daemon.logged("replaced dataset=coco", "its copy is bad", "the switch failed")
        assert not daemon.logged("degraded dataset=coco"), "nobody tried the bad copy again"
        assert daemon.dataset("coco").holders == ("job:1",)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda copy: os.truncate(copy, 4096), id="cut-short"),
        pytest.param(lambda copy: copy.write_bytes(bytes(copy.stat().st_size)), id="zeroed"),
    ],
)
def test_a_copy_that_cannot_be_mounted_does_not_keep_its_dataset_away(folder: Path, spoil: Callable[..., Any]) -> None:
    """As after a crash that the SSD did not survive whole: the copy is there, and nothing is mounted."""
    version = make_version(folder, "coco")
    with RunningDaemon(folder) as daemon:
        version.image.rename(daemon.source_dir / "coco.squashfs")
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        daemon.kill()
        subprocess.run(["umount", "-l", daemon.mount_dir / "coco"], check=True)
        (copy,) = daemon.cached_files()
        spoil(copy)
        daemon.start()
        daemon.until(lambda: daemon.logged("evicted dataset=coco"), "the bad copy goes")
        daemon.until(lambda: daemon.is_cached("coco"), "a new one comes")
        assert daemon.read("coco") == version.data


def test_with_a_dead_ssd_everything_is_read_from_the_source(folder: Path) -> None:
    versions = {}
    with small_disk(folder, folder / "cache", 16 << 20):
        daemon = RunningDaemon(folder)
        versions = {name: make_version(daemon.source_dir, name) for name in ("coco", "idle")}
        with daemon:
            daemon.pin(1, "coco")
            daemon.until(lambda: daemon.is_cached("coco") and daemon.is_mounted("idle"))
            os.truncate(folder / "cache.ext4", 0)
            flush(folder, "cache.ext4")

            def served(name: str) -> bool:
                with contextlib.suppress(OSError):
                    return daemon.read(name) == versions[name].data
                return False

            daemon.until(lambda: "everything is read from the source" in daemon.status().problem)
            daemon.until(lambda: daemon.state("coco") is not DatasetState.CACHED, "switched back")
            daemon.until(lambda: served("coco"), "from the source")
            assert served("idle")
            new = make_version(daemon.source_dir, "new")
            daemon.until(lambda: daemon.is_mounted("new"), "new datasets come")
            assert daemon.read("new") == new.data
            daemon.restart()
            daemon.until(lambda: daemon.is_mounted("coco", "idle", "new"))
            assert served("coco")
            answer = daemon.wait("coco", timeout_s=60)
            assert answer.settled  # a job's start does not wait for a dead disk, and is told of it
            assert "everything is read from the source" in answer.datasets[0].problem
