"""A node that boots before its source is there: what it serves, and what it tells of the rest."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.domain.config import Config, build_config
from scratch_slurm.domain.messages import DatasetState
from scratch_slurm.service.recall import Recall
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import Version, make_version
from tests.kit.images import clean_up
from tests.kit.strategies import image

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]


def config(folder: Path, **values: list[str] | str) -> Config:
    said = {"source_dir": "/source", "cache_dir": "/cache", "state_dir": str(folder), **values}
    return build_config(said, origin="test", host_name="node")


IMAGES = {"a": image("a"), "b": image("b", 20, 2)}


def test_what_is_kept_is_recalled(tmp_path: Path) -> None:
    Recall(config(tmp_path)).save(IMAGES)
    assert Recall(config(tmp_path)).load() == IMAGES
    assert (tmp_path / "catalog.json").stat().st_mode & 0o777 == 0o600


def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    recall = Recall(config(tmp_path))
    recall.save(IMAGES)
    inode = (tmp_path / "catalog.json").stat().st_ino
    recall.save(dict(IMAGES))
    assert (tmp_path / "catalog.json").stat().st_ino == inode
    recall.save({"a": image("a")})
    assert list(Recall(config(tmp_path)).load()) == ["a"]


@pytest.mark.parametrize("other", [{"source_dir": "/elsewhere"}, {"source_owners": ["curator"]}], ids=["dir", "owners"])
def test_another_source_is_not_recalled(tmp_path: Path, other: dict[str, list[str] | str]) -> None:
    Recall(config(tmp_path)).save(IMAGES)
    assert Recall(config(tmp_path, **other)).load() == {}


def spoil(change):
    def do(path) -> None:
        body = json.loads(path.read_text())
        change(body["images"])
        path.write_text(json.dumps(body))

    return do


@pytest.mark.parametrize(
    ("change", "left"),
    [
        pytest.param(lambda path: path.write_bytes(b""), [], id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-9]), [], id="torn"),
        pytest.param(lambda path: path.write_text("[" * 100_000), [], id="nested-beyond-the-stack"),
        pytest.param(lambda path: path.chmod(0o666), [], id="others-may-write"),
        pytest.param(lambda path: os.chown(path, 4711, 0), [], id="a-strangers"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), [], id="a-directory"),
        pytest.param(lambda path: (path.unlink(), subprocess.run(["mkfifo", path], check=True)), [], id="a-fifo"),
        pytest.param(lambda path: os.truncate(path, 40 << 20), [], id="too-large"),
        pytest.param(spoil(lambda images: images["b"]["at"].update(origin="/etc")), ["a"], id="in-another-origin"),
        pytest.param(spoil(lambda images: images["b"]["at"].update(key="../b.squashfs")), ["a"], id="key-above"),
        pytest.param(spoil(lambda images: images["b"].update(dataset="a")), ["a"], id="another-name"),
        pytest.param(spoil(lambda images: images["b"].update(fs_type="ext4")), ["a"], id="another-file-system"),
        pytest.param(
            spoil(lambda images: images["b"]["generation"].update(content_id="../../x")), ["a"], id="no-digest"
        ),
        pytest.param(spoil(lambda images: images["b"]["generation"].update(id="../../x")), ["a"], id="no-id"),
    ],
)
def test_what_is_no_good_is_not_recalled(tmp_path: Path, change: Callable[..., Any], left: list[str]) -> None:
    Recall(config(tmp_path)).save(IMAGES)
    change(tmp_path / "catalog.json")
    assert list(Recall(config(tmp_path)).load()) == left


def test_a_listing_of_the_time_of_paths_is_recalled(tmp_path: Path) -> None:
    Recall(config(tmp_path)).save(IMAGES)
    path = tmp_path / "catalog.json"
    body = json.loads(path.read_text())
    for each in body["images"].values():
        each["path"] = "/".join(each.pop("at").values())
    path.write_text(json.dumps(body))
    assert Recall(config(tmp_path)).load() == IMAGES
    body["images"]["b"]["path"] = "/source/../b.squashfs"
    path.write_text(json.dumps(body))
    assert list(Recall(config(tmp_path)).load()) == ["a"]


def test_a_listing_that_cannot_be_kept_harms_nobody(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    Recall(config(tmp_path)).save(IMAGES)
    assert Recall(config(tmp_path)).load() == {}


# On a node.


def boot(daemon: RunningDaemon) -> None:
    """As after a reboot: no mounts, no devices."""
    daemon.stop()
    clean_up(daemon.folder)


def cached(daemon: RunningDaemon, *names: str) -> list[Version]:
    versions = [make_version(daemon.source_dir, name) for name in names]
    daemon.pin(1, *names)
    daemon.until(lambda: daemon.is_cached(*names))
    daemon.release(1)
    return versions


def test_copies_are_served_before_the_source_is_there_and_the_rest_has_a_reason(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        (version,) = cached(daemon, "coco")
        make_version(daemon.source_dir, "other")
        daemon.until(lambda: daemon.is_mounted("other"))
        boot(daemon)
        away = daemon.source_dir.rename(folder / "away")
        daemon.start()
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == version.data
        other = daemon.wait("other").datasets[0]
        assert other.state is DatasetState.UNKNOWN
        assert other.problem.startswith(f"not known yet: {daemon.source_dir} has not been listed yet: ")
        away.rename(daemon.source_dir)
        daemon.until(lambda: daemon.is_mounted("other"))
        assert daemon.is_cached("coco") and daemon.read("coco") == version.data
        assert len(daemon.logged("staging dataset=coco")) == 1


def test_an_empty_mount_point_in_the_sources_place_is_no_proof_that_a_copy_is_not_wanted(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        (version,) = cached(daemon, "coco")
        boot(daemon)
        daemon.source_dir.rename(folder / "away")
        daemon.source_dir.mkdir()
        daemon.start()
        daemon.until(lambda: daemon.is_cached("coco"))
        assert daemon.read("coco") == version.data


def test_what_changed_in_the_source_meanwhile_counts_as_soon_as_it_is_there(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        cached(daemon, "newer", "removed", "closed", "kept")
        boot(daemon)
        away = daemon.source_dir.rename(folder / "away")
        newer = make_version(away, "newer", 2)
        (away / "removed.squashfs").unlink()
        (away / "closed.squashfs").chmod(0o600)
        daemon.start()
        daemon.until(lambda: daemon.is_cached("newer", "removed", "closed", "kept"))
        away.rename(daemon.source_dir)
        daemon.until(lambda: not daemon.path("removed").parent.exists())
        daemon.until(lambda: not daemon.path("closed").parent.exists(), "its permissions were revoked")
        daemon.until(lambda: daemon.read("newer") == newer.data)
        assert daemon.is_cached("kept")


def test_a_source_that_answers_is_asked_before_anything_is_recalled(folder: Path) -> None:
    """Else a job could pin the old image in the moment before the listing."""
    with RunningDaemon(folder) as daemon:
        cached(daemon, "coco")
        boot(daemon)
        newer = make_version(daemon.source_dir, "coco", 2)
        daemon.start()
        daemon.until(lambda: daemon.is_mounted("coco"))
        assert daemon.read("coco") == newer.data
        assert not daemon.logged("mounted dataset=coco", "an earlier listing")


def test_a_copy_whose_image_was_for_few_is_for_as_few_without_the_source(folder: Path) -> None:
    with RunningDaemon(folder) as daemon:
        cached(daemon, "coco")
        boot(daemon)
        # The copy's own root directory is open to all: what the listing said of the image's file is the gate.
        saved = json.loads((folder / "state" / "catalog.json").read_text())
        saved["images"]["coco"]["permissions"] = {"uid": 0, "gid": 0, "mode": 0o600}
        (folder / "state" / "catalog.json").write_text(json.dumps(saved))
        daemon.source_dir.rename(folder / "away")
        daemon.start()
        daemon.until(lambda: daemon.logged("refused dataset=coco"))
        for _ in range(3):
            daemon.wait()
        assert len(daemon.logged("refused dataset=coco")) == 1, "not tried again as it is"
        assert not os.path.ismount(daemon.path("coco").parent)
