"""What lies beside an image, on a node that serves it: manifests, and what is none."""

import functools
import json
import os
import subprocess
import sys

import pytest

from scratch_slurm.domain.messages import DatasetState
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.images import clean_up
from tests.kit.sources import SlowSource

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

STRANGER = 4711


def write_manifest(version, **changed):
    body = {"size_bytes": version.size_bytes, "blake3": version.digest, **changed}
    path = version.image.with_suffix(".json")
    path.write_text(json.dumps(body))
    return path


def test_somebodys_own_json_beside_an_image_keeps_nobody_from_it(folder) -> None:
    with RunningDaemon(folder, interval="0.2") as daemon:
        version = make_version(daemon.source_dir, "coco")
        version.image.with_suffix(".json").write_text('{"images": [], "annotations": []}')
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == version.data
        listings = len(daemon.logged("served file=coco.squashfs"))
        make_version(daemon.source_dir, "next")
        daemon.until(lambda: daemon.is_mounted("next"))
        assert (listings, len(daemon.logged("served file=coco.squashfs"))) == (1, 1), "told once"


def test_a_strangers_manifest_in_a_source_open_to_all_is_not_obeyed(folder) -> None:
    daemon = RunningDaemon(folder)
    daemon.source_dir.chmod(0o1777)
    for name, changed in (("a", {"size_bytes": 1}), ("b", {"blake3": "0" * 64})):
        os.chown(write_manifest(make_version(daemon.source_dir, name), **changed), STRANGER, STRANGER)
    with daemon:
        daemon.pin(1, "a", "b")
        daemon.until(lambda: daemon.is_cached("a", "b"))
        assert len(daemon.logged("served file=a.squashfs", "belongs to user 4711")) == 1


def test_an_image_that_is_not_what_its_manifest_says_is_copied_once(folder) -> None:
    with RunningDaemon(folder, interval="0.2") as daemon:
        version = make_version(daemon.source_dir, "coco")
        manifest = write_manifest(version, blake3="0" * 64)
        daemon.pin(1, "coco")
        daemon.until(lambda: "not tried again before" in daemon.dataset("coco").problem)
        assert daemon.wait("coco").settled, "no job waits for it"
        # As many rounds and listings as another dataset takes from its publication to its copy.
        make_version(daemon.source_dir, "next")
        daemon.pin(2, "next")
        daemon.until(lambda: daemon.is_cached("next"))
        assert len(daemon.logged("staging dataset=coco")) == 1
        assert daemon.state("coco") is DatasetState.SOURCE
        daemon.release(1)
        manifest.unlink()
        daemon.until(lambda: daemon.logged("replaced dataset=coco"), "without its manifest it is another generation")
        daemon.pin(3, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.dataset("coco").problem == ""


def test_a_manifest_of_an_older_version_is_known_before_a_byte_is_copied(folder) -> None:
    with RunningDaemon(folder, interval="0.2") as daemon:
        for number in (1, 2):
            tree = folder / f"tree{number}"
            tree.mkdir()
            (tree / "data").write_bytes(os.urandom(100_000))
            # A process of its own: the digest's threads would stay, and keep this one in its mount namespace.
            code = "from scratch_slurm.cli.main import main; main()"
            build = [sys.executable, "-c", code, "build", "--to", daemon.source_dir, tree]
            subprocess.run([*build, f"v{number}"], check=True, capture_output=True)
        # Both have the same size, to the byte: only what is in them tells.
        sizes = {(daemon.source_dir / f"v{number}.squashfs").stat().st_size for number in (1, 2)}
        assert len(sizes) == 1
        (daemon.source_dir / "v2.squashfs").rename(daemon.source_dir / "v1.squashfs")
        (daemon.source_dir / "v2.json").unlink()
        daemon.until(lambda: "its manifest v1.json is of another image" in daemon.dataset("v1").problem)
        daemon.pin(1, "v1")
        assert daemon.wait("v1").settled
        assert not daemon.logged("staging dataset=v1")


def test_a_manifest_that_comes_later_costs_no_second_copy(folder) -> None:
    with RunningDaemon(folder, interval="0.2") as daemon:
        version = make_version(daemon.source_dir, "coco")
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        copies = daemon.cached_files()
        write_manifest(version)
        make_version(daemon.source_dir, "next")
        daemon.until(lambda: daemon.is_mounted("next"), "a listing has seen the manifest")
        daemon.release(1)
        daemon.wait()
        assert daemon.is_cached("coco") and not daemon.dataset("coco").update_waiting
        assert daemon.cached_files() == copies
        daemon.restart()
        daemon.until(lambda: daemon.is_cached("coco"))
        daemon.wait()
        assert len(daemon.logged("staging dataset=coco")) == 1 and daemon.cached_files() == copies


def test_a_source_that_invents_inode_numbers_keeps_what_has_a_manifest_cached(folder) -> None:
    real = folder / "real"
    real.mkdir()
    version = make_version(real, "coco")
    write_manifest(version)
    try:
        with SlowSource(real, folder / "source") as source, RunningDaemon(folder, interval="0.2") as daemon:
            daemon.pin(1, "coco")
            daemon.until(lambda: daemon.is_cached("coco"))
            daemon.release(1)
            for shift in (1, 2, 3):
                source.set(inode_shift=shift)
                make_version(real, f"next{shift}")
                daemon.until(functools.partial(daemon.is_mounted, f"next{shift}"), "a listing has seen the numbers")
            daemon.pin(2, "coco")
            daemon.until(lambda: daemon.is_cached("coco"))
            assert daemon.read("coco") == version.data
            assert len(daemon.logged("staging dataset=coco")) == 1
            assert not daemon.logged("replaced dataset=coco")
    finally:
        clean_up(folder / "datasets")
