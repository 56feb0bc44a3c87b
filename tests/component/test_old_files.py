"""What release 0.1.0 left on a node is adopted: nothing is copied anew, and what was mounted goes on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratch_slurm.domain.messages import DatasetState
from scratch_slurm.node.kernel.loopdev import attach
from scratch_slurm.node.kernel.mountinfo import read_stacks
from scratch_slurm.node.ledger.ledger import read_boot_id
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import Version, make_version
from tests.kit.images import clean_up, opened
from tests.kit.release_01 import CHUNK_BYTES, OldNode, generation_id, write_manifest

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

LARGE_BYTES = CHUNK_BYTES + 3_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    clean_up(tmp_path)


@pytest.fixture
def old(folder: Path) -> OldNode:
    node = OldNode(folder / "source", folder / "cache", folder / "state")
    node.source_dir.mkdir()
    node.prepare()
    return node


def mount_as_before(folder: Path, dataset: str, backing: Path, tag: str) -> None:
    """Mount as 0.1.0 did: read-only on a loop device with its tag."""
    path = folder / "datasets" / dataset
    path.mkdir(parents=True)
    with opened(backing) as descriptor, attach(descriptor, tag=f"scratch-slurm:{tag}", direct_io=False) as device:
        subprocess.run(["mount", "-t", "squashfs", "-o", "ro,nosuid,nodev", device.path, path], check=True)


def spoil_the_source(version: Version) -> None:
    """Change bytes of an image in place, in its first chunk, with its size, mtime and first bytes as they were.

    Whoever copies that chunk from the source gets other bytes.
    """
    status = version.image.stat()
    with version.image.open("r+b") as file:
        file.seek(CHUNK_BYTES // 2)
        file.write(b"other bytes than were published")
    os.utime(version.image, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_copies_mounts_and_pins_go_on(folder: Path, old: OldNode) -> None:
    plain, sealed = make_version(old.source_dir, "plain"), make_version(old.source_dir, "sealed")
    digest = write_manifest(sealed.image)
    copies = [old.cache(plain.image), old.cache(sealed.image, digest)]
    old.list_source({plain.image: None, sealed.image: digest})
    for version, copy in zip((plain, sealed), copies, strict=True):
        mount_as_before(folder, version.dataset, copy, copy.stem.rpartition("@")[2])
    before = read_stacks(folder / "datasets")
    mount = before["plain"][-1]
    old.count_reads(read_boot_id(), "plain", f"{mount.device}@{mount.mount_id}", 4096)
    daemon = RunningDaemon(folder)
    with daemon.ledger() as ledger:
        ledger.pin("job:7", ["plain"], uid=0)
    with daemon:
        daemon.until(lambda: daemon.is_cached("plain", "sealed"))
        assert daemon.wait("plain").settled
        told = daemon.dataset("plain")
        assert told.holders == ("job:7",) and not told.problem and not told.update_waiting
        assert told.cache_read_bytes >= 4096, "the counts go on"
        assert {name: stack[-1] for name, stack in read_stacks(folder / "datasets").items()} == {
            name: stack[-1] for name, stack in before.items()
        }
        assert (daemon.read("plain"), daemon.read("sealed")) == (plain.data, sealed.data)
        assert sorted(daemon.cached_files()) == sorted(copies)
        assert not daemon.logged("staging "), daemon.log()


def test_what_was_mounted_from_the_source_is_switched_to_its_copy(folder: Path, old: OldNode) -> None:
    plain = make_version(old.source_dir, "plain")
    old.cache(plain.image)
    mount_as_before(folder, "plain", plain.image, generation_id(plain.image))
    before = read_stacks(folder / "datasets")["plain"][-1].mount_id
    with RunningDaemon(folder) as daemon:
        daemon.until(lambda: daemon.is_cached("plain"))
        assert read_stacks(folder / "datasets")["plain"][-1].mount_id == before
        assert not daemon.logged("staging ")
        assert not daemon.logged("replaced ")


def test_an_image_that_got_its_manifest_since_keeps_its_copy(folder: Path, old: OldNode) -> None:
    plain = make_version(old.source_dir, "plain")
    copy = old.cache(plain.image)
    write_manifest(plain.image)
    with RunningDaemon(folder) as daemon:
        daemon.until(lambda: daemon.is_cached("plain"))
        assert daemon.cached_files() == [copy]
        assert not daemon.logged("staging ")


def test_a_node_that_boots_before_its_source_serves_what_that_release_had_cached(folder: Path, old: OldNode) -> None:
    plain, sealed = make_version(old.source_dir, "plain"), make_version(old.source_dir, "sealed")
    digest = write_manifest(sealed.image)
    old.cache(plain.image), old.cache(sealed.image, digest)
    old.list_source({plain.image: None, sealed.image: digest})
    shutil.rmtree(old.source_dir)
    old.source_dir.mkdir()
    with RunningDaemon(folder) as daemon:
        daemon.until(lambda: daemon.is_cached("plain", "sealed"))
        assert daemon.read("sealed") == sealed.data


@pytest.mark.parametrize("has_manifest", [False, True], ids=["plain", "sealed"])
def test_an_unfinished_copy_goes_on_where_its_journal_ended(folder: Path, old: OldNode, *, has_manifest: bool) -> None:
    version = make_version(old.source_dir, "large", file_bytes=LARGE_BYTES)
    digest = write_manifest(version.image) if has_manifest else None
    whole = version.image.read_bytes()
    part = old.begin_copy(version.image, digest)
    spoil_the_source(version)
    daemon = RunningDaemon(folder)
    with daemon.ledger() as ledger:
        ledger.pin("job:1", ["large"], uid=0)
    with daemon:
        daemon.until(lambda: daemon.is_cached("large"))
        (copy,) = daemon.cached_files()
        assert copy.read_bytes() == whole, "the first chunk was copied anew"
        assert not part.exists() and not part.with_suffix(".journal").exists()


def test_an_unfinished_copy_that_nobody_wants_goes(folder: Path, old: OldNode) -> None:
    version = make_version(old.source_dir, "large", file_bytes=LARGE_BYTES)
    part = old.begin_copy(version.image)
    with RunningDaemon(folder) as daemon:
        daemon.until(lambda: not part.exists() and not part.with_suffix(".journal").exists())
        daemon.until(lambda: daemon.state("large") is DatasetState.SOURCE)
