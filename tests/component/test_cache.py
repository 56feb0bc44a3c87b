"""The cache directory, on a real file system; crashes are real kills at each step."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.domain.errors import ConfigError, DiskError
from scratch_slurm.node.staging.cache import Cache, PartialImage

GENERATION = "0123456789abcdef"
OTHER = "fedcba9876543210"
BODY = b"whole image" * 1000


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    return cache


def stage(cache: Cache, dataset: str = "coco", generation_id: str = GENERATION, body=BODY) -> Path:
    part = cache.part_path(dataset, generation_id)
    part.write_bytes(body)
    part.with_suffix(".journal").write_text("chunks\n")
    return part


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Preparing.


def test_prepare_makes_private_directories_and_no_parents(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "ssd" / "cache")
    with pytest.raises(ConfigError, match="No such file or directory"):
        cache.prepare()
    assert names(tmp_path) == []
    (tmp_path / "ssd").mkdir()
    cache.prepare()
    assert [path.stat().st_mode & 0o777 for path in (cache.dir, cache.staging)] == [0o700, 0o700]


def test_prepare_twice_keeps_what_is_there(cache: Cache) -> None:
    stage(cache)
    cache.publish("coco", GENERATION)
    stage(cache, "imagenet")
    before = cache.read()
    cache.prepare()
    assert (cache.read().images, cache.read().partials) == (before.images, before.partials)


def test_prepare_closes_a_directory_that_others_may_only_read(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o755)
    Cache(tmp_path / "cache").prepare()
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o720, 0o702], ids=oct)
def test_prepare_refuses_what_others_may_write_in(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="nobody else may write in") as caught:
        Cache(folder).prepare()
    assert "chmod 0700" in (caught.value.hint or "")
    assert folder.stat().st_mode & 0o7777 == mode
    assert names(folder) == []


@pytest.mark.root
def test_prepare_refuses_the_directory_of_another_user(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(ConfigError, match="nobody else may write in"):
        Cache(folder).prepare()


def test_prepare_refuses_a_link_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        Cache(tmp_path / "cache").prepare()
    assert names(tmp_path / "elsewhere") == []


def test_prepare_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match="cannot use as cache_dir: File exists"):
        Cache(tmp_path / "cache").prepare()


# What is there.


def test_an_empty_cache_holds_nothing(cache: Cache) -> None:
    contents = cache.read()
    assert (contents.images, contents.partials) == ((), ())
    assert 0 < contents.free_bytes <= contents.whole_bytes


def test_read_tells_images_from_partials(cache: Cache) -> None:
    stage(cache, "imagenet")
    stage(cache)
    cache.publish("coco", GENERATION)
    contents = cache.read()
    (image,) = contents.images
    assert (image.dataset, image.generation_id) == ("coco", GENERATION)
    assert Path(image.path).read_bytes() == BODY
    assert [(part.dataset, part.generation_id) for part in contents.partials] == [("imagenet", GENERATION)]


def test_only_the_first_level_is_served(cache: Cache) -> None:
    """A whole name in the staging directory proves nothing."""
    (cache.staging / f"coco@{GENERATION}.image").write_bytes(BODY)
    (cache.dir / f"coco@{GENERATION}.part").write_bytes(BODY)
    contents = cache.read()
    assert (contents.images, contents.partials) == ((), ())
    assert contents.used_bytes >= 2 * len(BODY)


@pytest.mark.parametrize(
    "name",
    ["coco.image", "coco@0123.image", f"coco@{OTHER.upper()}.image", f".coco@{OTHER}.image", f"coco@{OTHER}.image~"],
)
def test_files_of_other_names_count_but_are_not_served(cache: Cache, name: str) -> None:
    empty_bytes = cache.read().used_bytes
    (cache.dir / name).write_bytes(BODY)
    contents = cache.read()
    assert contents.images == ()
    assert contents.used_bytes - empty_bytes >= len(BODY)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/hostname")])
def test_what_is_no_regular_file_is_not_served(cache: Cache, make: Callable[..., Any]) -> None:
    make(cache.image_path("coco", GENERATION))
    assert cache.read().images == ()


def test_used_bytes_are_the_larger_of_length_and_blocks(cache: Cache) -> None:
    """An image with holes may fill up; one whose last block is half used takes the whole block."""
    empty_bytes = cache.read().used_bytes
    sparse, dense = cache.image_path("sparse", GENERATION), cache.image_path("dense", GENERATION)
    with sparse.open("wb") as file:
        file.truncate(10**9)
    with dense.open("wb", buffering=0) as file:
        file.write(b"x")
        os.fsync(file.fileno())
    blocks_bytes = dense.stat().st_blocks * 512
    contents = cache.read()
    assert {image.dataset: image.size_bytes for image in contents.images} == {
        "sparse": 10**9,
        "dense": max(1, blocks_bytes),
    }
    assert contents.used_bytes - empty_bytes == 10**9 + max(1, blocks_bytes)


def test_a_partial_counts_the_blocks_it_has(cache: Cache) -> None:
    part = cache.part_path("coco", GENERATION)
    with part.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        file.truncate(1 << 30)
    assert cache.read().partials == (PartialImage("coco", GENERATION, part.stat().st_blocks * 512),)


def test_reading_a_cache_that_is_gone_is_an_error(cache: Cache) -> None:
    cache.staging.rmdir()
    cache.dir.rmdir()
    with pytest.raises(OSError, match="No such file"):
        cache.read()


# Publishing and retiring.


@pytest.mark.parametrize("dataset", ["coco", "my.image", "my.images.v2", "a@b", "x.part", "a" * 64])
def test_a_copy_grows_is_served_and_goes(cache: Cache, dataset: str) -> None:
    part = stage(cache, dataset)
    assert part.parent == cache.staging
    assert [each.dataset for each in cache.read().partials] == [dataset]
    target = cache.publish(dataset, GENERATION)
    assert target == cache.image_path(dataset, GENERATION)
    (image,) = cache.read().images
    assert (image.dataset, image.path, target.read_bytes()) == (dataset, str(target), BODY)
    assert names(cache.staging) == []
    cache.retire(image)
    assert cache.read().images == ()
    assert cache.read().used_bytes >= len(BODY), "bytes on their way out still count"
    cache.discard(image)
    assert names(cache.dir) == [".staging"] and names(cache.staging) == []
    cache.discard(image)


def test_dropping_a_partial_leaves_its_neighbours(cache: Cache) -> None:
    stage(cache, "coco")
    kept = stage(cache, "coco", OTHER)
    cache.drop_partial("coco", GENERATION)
    cache.drop_partial("coco", GENERATION)
    assert names(cache.staging) == [kept.with_suffix(".journal").name, kept.name]


def test_publishing_what_is_not_there_says_so(cache: Cache) -> None:
    with pytest.raises(DiskError, match="cannot publish the copy: No such file"):
        cache.publish("coco", GENERATION)


def test_an_image_that_is_open_outlives_its_retirement(cache: Cache) -> None:
    stage(cache)
    target = cache.publish("coco", GENERATION)
    (image,) = cache.read().images
    with target.open("rb") as file:
        cache.retire(image)
        cache.discard(image)
        assert file.read() == BODY


def test_a_retired_image_is_restored_whole_and_once(cache: Cache) -> None:
    stage(cache)
    target = cache.publish("coco", GENERATION)
    (image,) = cache.read().images
    assert not cache.restore(image)
    cache.retire(image)
    assert cache.restore(image)
    assert target.read_bytes() == BODY
    assert names(cache.staging) == []


def test_a_retired_image_gives_way_to_the_one_that_was_staged_meanwhile(cache: Cache) -> None:
    stage(cache)
    cache.publish("coco", GENERATION)
    (image,) = cache.read().images
    cache.retire(image)
    stage(cache)
    target = cache.publish("coco", GENERATION)
    newer = target.stat().st_ino
    assert cache.restore(image)
    assert target.stat().st_ino == newer
    assert names(cache.staging) == []


def test_retiring_an_image_that_vanished_is_an_error(cache: Cache) -> None:
    stage(cache)
    target = cache.publish("coco", GENERATION)
    (image,) = cache.read().images
    target.unlink()
    with pytest.raises(FileNotFoundError):
        cache.retire(image)


STEPS = ("rename", "fsync", "unlink", "ftruncate", "link")


def killed_at(step: int, function: Callable[..., Any]) -> bool:
    """Run a function in a child that is killed before its `step`-th change of the file system.

    Returns: False if it got through.
    """

    def run() -> None:
        left = step

        def counted(real):
            def call(*arguments, **options):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        function()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def test_a_kill_at_any_step_of_publishing_leaves_a_part_or_a_whole_image(cache: Cache) -> None:
    step, outcomes = 1, []
    while True:
        stage(cache)
        killed = killed_at(step, lambda: cache.publish("coco", GENERATION))
        cache.prepare()
        contents = cache.read()
        assert len(contents.images) + len(contents.partials) == 1
        for image in contents.images:
            assert Path(image.path).read_bytes() == BODY
        outcomes.append(len(contents.images))
        for leftover in (*cache.staging.iterdir(), cache.image_path("coco", GENERATION)):
            leftover.unlink(missing_ok=True)
        if not killed:
            break
        step += 1
    # Killed before the rename, then behind it at each later step, then not at all.
    assert outcomes[0] == 0
    assert outcomes[1:] == [1] * len(outcomes[1:]) and len(outcomes) >= 4


def test_a_kill_at_any_step_of_an_eviction_leaves_a_whole_image_or_none(cache: Cache) -> None:
    step = 1
    while True:
        stage(cache)
        target = cache.publish("coco", GENERATION)
        (image,) = cache.read().images

        def evict(image=image) -> None:
            cache.retire(image)
            cache.discard(image)

        killed = killed_at(step, evict)
        assert target.exists() == (step == 1)
        cache.prepare()
        assert names(cache.staging) == [], "what was on its way out is back, or gone"
        assert target.exists() == killed
        if killed:
            assert target.read_bytes() == BODY
        target.unlink(missing_ok=True)
        if not killed:
            break
        step += 1
    assert step == 3


def test_the_name_is_durable_before_the_journal_goes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power failure could leave a part without its journal, or neither part nor image."""
    done = []

    def recorded(name):
        real = getattr(os, name)

        def call(target, *arguments, **options):
            place = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else str(target)
            done.append((name, Path(place).name))
            return real(target, *arguments, **options)

        return call

    stage(cache)
    for name in STEPS:
        monkeypatch.setattr(os, name, recorded(name))
    cache.publish("coco", GENERATION)
    monkeypatch.undo()
    assert done == [
        ("rename", f"coco@{GENERATION}.part"),
        ("fsync", "cache"),
        ("fsync", ".staging"),
        ("unlink", f"coco@{GENERATION}.journal"),
    ]
