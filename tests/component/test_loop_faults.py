"""The faults of the program that this one replaces, each a test that the real daemon passes."""

import fcntl
import functools
import os
import time
from pathlib import Path

import pytest

from scratch_slurm.domain.messages import DatasetState
from scratch_slurm.domain.names import device_tag
from scratch_slurm.node.kernel import loopdev, mounts
from tests.kit.daemon import RunningDaemon, read_held
from tests.kit.datasets import FILE_BYTES, make_image_file, make_version
from tests.kit.disks import small_disk
from tests.kit.diskuse import DiskWatch, disk_use
from tests.kit.generations import generation_of
from tests.kit.images import clean_up, in_child, opened
from tests.kit.sources import SlowSource, why_not
from tests.kit.tracing import delayed

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]
needs_fuse = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

_LOOP_SET_BLOCK_SIZE = 0x4C09

OVERHEAD_BYTES = 32 * 1024
"""The staging directory and the journals of copies under way count as used, too."""


def holding(daemon: RunningDaemon, name: str):
    """Open a dataset's file as a job does that reads on and on."""
    return opened(daemon.path(name))


def test_sector_size__reads_are_counted_in_bytes_on_a_device_of_4096_byte_sectors(folder: Path) -> None:
    daemon = RunningDaemon(folder, horizon="0.001")  # nothing is worth a copy: all reads are the source's
    version = make_version(daemon.source_dir, "coco", file_bytes=4_000_000)
    tag = device_tag(generation_of(version.image).id)
    daemon.path("coco").parent.mkdir(parents=True)
    with opened(version.image) as fd, loopdev.attach(fd, tag=tag, direct_io=False) as device:
        with opened(Path(device.path)) as device_fd:
            fcntl.ioctl(device_fd, _LOOP_SET_BLOCK_SIZE, 4096)
        mounts.mount_image(device.path, daemon.path("coco").parent, "squashfs")
    assert Path(f"/sys/block/{device.name}/queue/hw_sector_size").read_text().strip() == "4096"
    with daemon:
        daemon.until(lambda: daemon.is_mounted("coco"))
        daemon.until(lambda: daemon.wait("coco").datasets[0].state is DatasetState.SOURCE)
        assert daemon.read("coco") == version.data
        daemon.until(lambda: daemon.dataset("coco").source_read_bytes >= 4_000_000)
        assert daemon.dataset("coco").source_read_bytes < 4_500_000
        assert not daemon.logged("mounted dataset=")  # it was taken over


def test_a_set_over_capacity_by_rounding__one_byte_too_few_keeps_one_of_two_out(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    versions = [make_version(daemon.source_dir, name, extra_bytes=512) for name in ("coco", "imagenet")]
    assert all(version.size_bytes % 4096 for version in versions)
    capacity_bytes = sum(version.size_bytes for version in versions) - 1
    with daemon.started(capacity=str(capacity_bytes)), DiskWatch(daemon.cache_dir) as watch:
        daemon.until(lambda: daemon.is_mounted("coco", "imagenet"))
        daemon.pin(1, "coco")
        daemon.pin(2, "imagenet")
        daemon.until(lambda: daemon.is_cached("coco"))
        daemon.wait("imagenet")
        assert daemon.state("imagenet") is DatasetState.QUEUED
        assert "room" in daemon.dataset("imagenet").problem
    assert versions[0].size_bytes <= watch.most_bytes <= capacity_bytes


def test_a_set_over_capacity_by_rounding__blocks_count_not_lengths(folder: Path) -> None:
    """Eight images of 512 bytes more than whole blocks take eight blocks more on the disk than their lengths say."""
    daemon = RunningDaemon(folder)
    names = [f"set{number}" for number in range(8)]
    versions = [make_version(daemon.source_dir, name, file_bytes=100_000, extra_bytes=512) for name in names]
    # The lengths fit with all that counts beside them; the blocks do not.
    capacity_bytes = sum(version.size_bytes for version in versions) + 8 * 1024 + 4096
    with daemon.started(capacity=str(capacity_bytes)), DiskWatch(daemon.cache_dir) as watch:
        daemon.until(lambda: daemon.is_mounted(*names))
        daemon.pin(1, *names)
        daemon.until(lambda: sum(daemon.is_cached(name) for name in names) >= 6)
        for _ in range(3):
            daemon.wait(*names, timeout_s=1)
        assert not daemon.logged("evicted")  # nothing comes and goes
    assert watch.most_bytes <= capacity_bytes


def test_drops_and_copies_at_once_exceeding_the_capacity__never_while_sets_are_swapped(folder: Path) -> None:
    daemon = RunningDaemon(folder, copy={"datasets": 4})
    sets = [["a1", "a2", "a3"], ["b1", "b2"], ["c1", "c2", "c3"]]
    versions = {}
    for names in sets:
        for name in names:
            file_bytes = 900_000 if len(names) == 3 else 1_350_000
            versions[name] = make_version(daemon.source_dir, name, file_bytes=file_bytes)
    capacity_bytes = max(sum(versions[name].size_bytes for name in names) for names in sets) + OVERHEAD_BYTES
    with daemon.started(capacity=str(capacity_bytes)), DiskWatch(daemon.cache_dir) as watch:
        daemon.until(lambda: daemon.is_mounted(*versions))
        for job_id, names in enumerate([*sets, *sets]):
            daemon.pin(job_id, *names)
            daemon.release(job_id - 1)
            daemon.until(functools.partial(daemon.is_cached, *names), f"{names} are cached")
            assert all(daemon.read(name) == versions[name].data for name in names)
    assert 2_700_000 < watch.most_bytes <= capacity_bytes
    assert watch.samples > 50


def test_space_believed_free_that_a_reader_still_holds__counts_as_used(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    old = make_version(daemon.source_dir, "coco", 1, file_bytes=1_000_000)
    other = make_version(daemon.source_dir, "imagenet", file_bytes=1_000_000)
    capacity_bytes = old.size_bytes + other.size_bytes // 2
    with daemon.started(capacity=str(capacity_bytes)), DiskWatch(daemon.cache_dir) as watch:
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        with holding(daemon, "coco") as reader:
            new = make_version(daemon.source_dir, "coco", 2, file_bytes=1_000_000)
            daemon.until(lambda: daemon.dataset("coco").update_waiting)
            daemon.release(1)
            daemon.until(lambda: daemon.read("coco") == new.data and not daemon.cached_files())
            assert disk_use(daemon.cache_dir) >= old.size_bytes
            daemon.pin(2, "imagenet")
            daemon.wait("imagenet")
            assert daemon.status().used_bytes >= old.size_bytes
            assert daemon.state("imagenet") is DatasetState.QUEUED
            assert "room" in daemon.dataset("imagenet").problem
            assert in_child(read_held, reader) == old.data
        daemon.until(lambda: daemon.is_cached("imagenet"))
        assert daemon.status().used_bytes < old.size_bytes + other.size_bytes
    assert watch.most_bytes <= capacity_bytes


def test_space_counted_twice__a_copy_counts_once_when_it_is_published_and_not_yet_recorded(folder: Path) -> None:
    daemon = RunningDaemon(folder, copy={"bandwidth": 1_000_000})
    version = make_version(daemon.source_dir, "coco", file_bytes=1_000_000)
    with daemon:
        daemon.until(lambda: daemon.is_mounted("coco"))
        # The directories are fsynced after the rename, the copy itself before, perhaps by the same process.
        with delayed(daemon.pid, "fsync", when="2+"):
            daemon.pin(1, "coco")
            daemon.until(daemon.cached_files)
            daemon.wait("coco")
            status = daemon.status()
            assert daemon.dataset("coco").staged_bytes, "it is not recorded yet"
        assert version.size_bytes <= status.used_bytes < version.size_bytes + OVERHEAD_BYTES
        daemon.until(lambda: daemon.is_cached("coco"))


def test_an_error_that_blacklists_for_ever__a_bad_image_that_is_mended_is_served(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    image = make_image_file(daemon.source_dir, "coco", 1, FILE_BYTES)
    bad = daemon.source_dir / "coco.squashfs"
    bad.write_bytes(image.read_bytes()[:100_000])
    with daemon:
        daemon.pin(1, "coco")
        daemon.until(lambda: "cut short" in daemon.dataset("coco").problem)
        bad.write_bytes(b"garbage")
        daemon.until(lambda: "not a squashfs image" in daemon.dataset("coco").problem)
        mended = make_version(daemon.source_dir, "coco", 2)
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == mended.data
        assert daemon.dataset("coco").problem == ""


def test_an_error_that_blacklists_for_ever__an_image_that_only_the_kernel_refuses_is_mended(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    image = make_image_file(daemon.source_dir, "coco", 1, FILE_BYTES)
    data = bytearray(image.read_bytes())
    data[12:16] = b"\xff\xff\xff\xff"  # the block size: its head passes our own look, the kernel's not
    (daemon.source_dir / "coco.squashfs").write_bytes(data)
    with daemon:
        daemon.until(lambda: "cannot mount" in daemon.dataset("coco").problem)
        mended = make_version(daemon.source_dir, "coco", 2)
        daemon.until(lambda: daemon.is_mounted("coco"))
        assert daemon.read("coco") == mended.data
        daemon.until(lambda: daemon.dataset("coco").problem == "")


@needs_fuse
def test_an_error_that_blacklists_for_ever__a_failed_copy_is_tried_again(folder: Path) -> None:
    (folder / "real").mkdir()
    version = make_version(folder / "real", "coco", file_bytes=2_000_000)
    with SlowSource(folder / "real", folder / "source") as source, RunningDaemon(folder) as daemon:
        daemon.until(lambda: daemon.is_mounted("coco"))
        source.set(fail=True, fail_from=1_000_000)
        daemon.pin(1, "coco")
        daemon.until(lambda: "stage failed" in daemon.dataset("coco").problem)
        assert daemon.state("coco") is DatasetState.QUEUED
        source.set(fail=False)
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == version.data
        assert daemon.dataset("coco").problem == ""


def test_the_loop_stopped_by_a_copy__all_others_are_served_meanwhile(folder: Path) -> None:
    # A range of a copy at its widest takes longer than a source may be silent: the limit is no hang.
    daemon = RunningDaemon(folder, copy={"bandwidth": 1_000_000}, source_timeout="3.5")
    make_version(daemon.source_dir, "huge", file_bytes=60_000_000)
    read = make_version(daemon.source_dir, "read")
    pinned = make_version(daemon.source_dir, "pinned")
    removed = make_version(daemon.source_dir, "removed")
    with daemon:
        daemon.until(lambda: daemon.is_mounted("huge", "read", "pinned", "removed"))
        daemon.pin(1, "huge")
        daemon.until(lambda: daemon.state("huge") is DatasetState.STAGING)
        began = time.monotonic()
        new = make_version(daemon.source_dir, "new")
        removed.image.unlink()
        daemon.pin(2, "pinned")
        daemon.until(lambda: daemon.is_cached("pinned"), "a pin is staged and retargeted")
        assert daemon.read("pinned") == pinned.data
        daemon.until(lambda: daemon.is_mounted("new"), "a new image is mounted")
        assert daemon.read("new") == new.data
        daemon.until(lambda: not daemon.path("removed").parent.exists(), "a removed image is unmounted")
        assert daemon.read("read") == read.data
        daemon.release(2)
        assert daemon.dataset("pinned").use_count == 0
        assert daemon.state("huge") is DatasetState.STAGING
        daemon.until(lambda: daemon.dataset("huge").staged_bytes > 4_500_000)
        assert time.monotonic() - began < 30
        daemon.release(1)
        daemon.until(lambda: daemon.state("huge") is DatasetState.SOURCE, "a copy that nobody wants is stopped")
        daemon.until(lambda: not list((daemon.cache_dir / ".staging").iterdir()), "and leaves nothing behind")


def test_a_stale_copy_after_a_crash__is_never_served_for_the_new_image(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    old = make_version(daemon.source_dir, "coco", 1)
    with daemon:
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        daemon.kill()
        new = make_version(daemon.source_dir, "coco", 2)
        assert (new.size_bytes, new.data == old.data) == (old.size_bytes, False)
        daemon.start()
        daemon.until(lambda: daemon.dataset("coco").update_waiting)
        assert daemon.read("coco") == old.data  # the job goes on with what it began with
        daemon.release(1)
        daemon.until(lambda: daemon.read("coco") == new.data)
        daemon.pin(2, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == new.data
        daemon.until(lambda: len(daemon.cached_files()) == 1)


def test_a_stale_copy_after_a_crash__of_the_whole_node(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    make_version(daemon.source_dir, "coco", 1)
    with daemon:
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        daemon.kill()
        clean_up(folder)
        new = make_version(daemon.source_dir, "coco", 2)
        daemon.start()
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == new.data
        daemon.until(lambda: len(daemon.cached_files()) == 1)


def test_a_stale_copy_after_a_crash__in_the_middle_of_it(folder: Path) -> None:
    daemon = RunningDaemon(folder, copy={"bandwidth": 2_000_000})
    make_version(daemon.source_dir, "coco", 1, file_bytes=6_000_000)
    with daemon:
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.dataset("coco").staged_bytes > 0)
        daemon.kill()
        new = make_version(daemon.source_dir, "coco", 2, file_bytes=6_000_000)
        daemon.release(1)
        daemon.start(copy={})
        daemon.until(lambda: daemon.read("coco") == new.data)
        daemon.pin(2, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == new.data
        assert [path.stat().st_size for path in daemon.cached_files()] == [new.size_bytes]
        daemon.until(lambda: not list((daemon.cache_dir / ".staging").iterdir()))


def test_cached_files_leaving_no_room_to_others__the_cache_shrinks_by_itself_but_for_pins(folder: Path) -> None:
    daemon = RunningDaemon(folder)
    names = ("pinned", "read1", "read2")
    versions = {name: make_version(daemon.source_dir, name, file_bytes=8_000_000) for name in names}
    with small_disk(folder, daemon.cache_dir, 64 << 20), daemon.started(capacity="100%", reserve="20 MB"):
        daemon.pin(1, "pinned")
        daemon.until(lambda: daemon.is_mounted(*names))
        assert all(daemon.read(name) == versions[name].data for name in names)
        daemon.until(lambda: daemon.is_cached(*names))
        free_bytes = daemon.status().free_bytes
        assert free_bytes > 20_000_000
        filler = daemon.cache_dir / "lost+found" / "another-program"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free_bytes - 8_000_000)
        daemon.until(lambda: len(daemon.cached_files()) == 1, "all go but the pinned one")
        assert daemon.is_cached("pinned")
        daemon.until(lambda: daemon.status().free_bytes >= 20_000_000)
        assert any("others fill the disk" in line for line in daemon.logged("evicted"))
        assert all(daemon.read(name) == versions[name].data for name in names)
        filler.unlink()
        daemon.until(lambda: daemon.read("read1") == versions["read1"].data and daemon.is_cached("read1"))
        daemon.kill()
        clean_up(folder / "datasets")


def test_a_look_that_began_before_a_copy_ended_and_ended_after_it_starts_no_second_copy(folder: Path) -> None:
    daemon = RunningDaemon(folder, copy={"bandwidth": 500_000})
    make_version(daemon.source_dir, "coco", file_bytes=1_000_000)
    with daemon:
        daemon.until(lambda: daemon.is_mounted("coco"))
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.dataset("coco").staged_bytes)
        with delayed(daemon.pid, "statfs"), daemon.ledger() as ledger:  # the last call of a look at the cache
            daemon.until(lambda: ledger.events(1)[0].event == "staged")
        daemon.until(lambda: daemon.is_cached("coco"))
        daemon.wait("coco")
        assert len(daemon.logged("staging dataset=coco")) == 1
        assert len(daemon.cached_files()) == 1
