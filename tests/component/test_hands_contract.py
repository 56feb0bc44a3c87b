"""What the hands of a node do, real or in memory: one contract, so that what is tried in memory holds on a node."""

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from scratch_slurm.domain.backing import FromCopy, FromSource
from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.errors import (
    DeniedError,
    DeviceError,
    DiskError,
    ImageError,
    NotFoundError,
    PinnedError,
    SourceError,
)
from scratch_slurm.domain.model import CachedImage, Permissions, SourceImage
from scratch_slurm.domain.sight import SeenMount
from scratch_slurm.node.ledger.ledger import Ledger, read_boot_id
from scratch_slurm.node.origins.directory import DirectoryOrigin
from scratch_slurm.service.events import Answers, Event, Gate, Hangs, Progress
from scratch_slurm.service.hands import Hands
from scratch_slurm.service.worker_hands import WorkerHands
from scratch_slurm.service.workers import Workers
from tests.kit import virtual_time
from tests.kit.disks import small_disk
from tests.kit.fake_hands import FakeHands, FakeNode
from tests.kit.images import in_child, make_image

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

SHORT_S = "2"
NOBODYS_UID = 4_000_000


class InMemory:
    """A node in memory."""

    def __init__(self, folder: Path, disk_count: int = 1, **values: str) -> None:
        self.node = FakeNode(disk_count, **values)
        self.cache_dirs = self.node.config.cache_dirs
        self.cache_dir = str(self.node.config.cache_dir)

    def run(self, story: Callable[[Hands], Awaitable[None]]) -> None:
        async def tell() -> None:
            await story(FakeHands(self.node))

        virtual_time.run(tell())

    def publish(self, dataset: str, root_mode: int = 0o755, mode: int = 0o644) -> SourceImage:
        return self.node.publish(dataset, permissions=Permissions(mode=mode), root=Permissions(mode=root_mode))

    def pin(self, dataset: str) -> None:
        self.node.ledger.pin(dataset)

    def make_hanging_copy(self, dataset: str) -> str:
        self.node.hang(dataset)
        asyncio.get_running_loop().call_later(60.0, self.node.heal, dataset)
        return f"{self.cache_dir}/{dataset}"


class OnThisMachine:
    """Real images, devices, mounts and worker processes below a folder."""

    def __init__(self, folder: Path, disk_count: int = 1, **values: str) -> None:
        places = {f"{key}_dir": str(folder / key) for key in ("source", "mount", "state", "run")}
        dirs = [str(folder / f"disk{number}" / "cache") for number in range(disk_count)]
        caches = {"cache_dirs": dirs} if disk_count > 1 else {"cache_dir": str(folder / "cache")}
        self.config = build_config(
            {**places, **caches, **values, "cache_on_any_file_system": True}, origin="test", host_name="n1"
        )
        self.cache_dirs = self.config.cache_dirs
        self.config.source_dir.mkdir()
        for directory in (*map(Path, self.cache_dirs), self.config.mount_dir, self.config.state_dir):
            directory.mkdir(mode=0o700)
        self.cache_dir = str(self.config.cache_dir)
        self.made = 0
        Ledger(self.config.ledger_path, boot_id=read_boot_id(), now=time.time).close()

    def run(self, story: Callable[[Hands], Awaitable[None]]) -> None:
        async def tell() -> None:
            workers = Workers()
            try:
                await story(WorkerHands(self.config, workers))
            finally:
                await workers.close(patience_s=10.0)

        # A thread reads the kernel's files, and with threads a process does not come back from its mount namespace.
        in_child(asyncio.run, tell())

    def publish(self, dataset: str, root_mode: int = 0o755, mode: int = 0o644) -> SourceImage:
        self.made += 1
        new = self.config.state_dir / f"new-{self.made}"
        make_image(new, seed=self.made)
        tree = new.with_suffix(".tree")
        tree.chmod(root_mode)
        new.unlink()
        make_again(tree, new)
        new.chmod(mode)
        path = new.rename(self.config.source_dir / f"{dataset}.squashfs")
        origin = DirectoryOrigin(path.parent, ())
        origin.reach()
        (entry,) = origin.read([path.name], {})
        assert entry is not None and entry.image is not None, entry
        return entry.image

    def pin(self, dataset: str) -> None:
        with Ledger(self.config.ledger_path, boot_id=read_boot_id(), now=time.time) as ledger:
            ledger.pin("job:1", [dataset], uid=1000)

    def make_hanging_copy(self, dataset: str) -> str:
        path = f"{self.cache_dir}/{dataset}"
        os.mkfifo(path)
        return path


def make_again(tree: Path, image: Path) -> None:
    plain = ("-noappend", "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX")
    subprocess.run(["mksquashfs", tree, image, *plain], check=True, capture_output=True)


Place = InMemory | OnThisMachine


@pytest.fixture(params=[InMemory, OnThisMachine], ids=["in-memory", "on-this-machine"])
def kind(request: pytest.FixtureRequest) -> Callable[..., Place]:
    made: Callable[..., Place] = request.param
    return made


@pytest.fixture
def place(kind: Callable[..., Place], folder: Path) -> Place:
    return kind(folder)


class Told(list[Event]):
    """What hands told."""

    def __init__(self, hands: Hands) -> None:
        super().__init__()
        hands.tell = self.append


async def seen(hands: Hands, dataset: str) -> SeenMount | None:
    return (await hands.look_at_kernel()).mounted.get(dataset)


async def device_of(hands: Hands, dataset: str) -> str:
    mount = await seen(hands, dataset)
    assert mount is not None and mount.device is not None
    return mount.device


async def stage(hands: Hands, image: SourceImage, cache_dir: str) -> CachedImage:
    """Copy and publish; returns the copy."""
    await hands.copy(image, cache_dir)
    await hands.publish(image.dataset, image.generation.id, cache_dir)
    (copy,) = [each for each in (await hands.look_at_disks())[0].contents.images if each.dataset == image.dataset]
    return copy


def test_an_empty_node(place: Place) -> None:
    async def story(hands: Hands) -> None:
        kernel, cache = await hands.look_at_kernel(), (await hands.look_at_disks())[0]
        assert (dict(kernel.mounted), dict(kernel.covered), sum(kernel.held_bytes.values())) == ({}, {}, 0)
        assert (cache.problem, cache.unknown, cache.contents.images, cache.contents.partials) == ("", False, (), ())
        assert cache.contents.free_bytes > 0

    place.run(story)


def test_an_image_is_shown_once_and_tells_its_gate_and_its_tag(place: Place) -> None:
    async def story(hands: Hands) -> None:
        coco, told = place.publish("coco"), Told(hands)
        await hands.show(coco, FromSource(coco), replace=False)
        (gate,) = told
        assert isinstance(gate, Gate) and gate.generation_id == coco.generation.id
        mount = await seen(hands, "coco")
        assert mount is not None and (mount.copy_path, mount.disk) == ("", "")
        assert await hands.identify("coco", mount.device or "", mounted=True) == (coco.generation.id, gate.permissions)
        assert await hands.identify("coco", mount.device or "", mounted=False) == (coco.generation.id, None)
        await hands.probe("coco", mount.device or "", "")
        with pytest.raises(DeviceError):
            await hands.show(coco, FromSource(coco), replace=False)
        assert await seen(hands, "coco") == mount

    place.run(story)


def test_an_image_that_lets_in_people_who_may_not_read_its_file_is_not_shown(place: Place) -> None:
    async def story(hands: Hands) -> None:
        coco, told = place.publish("coco", mode=0o640), Told(hands)
        with pytest.raises(DeniedError):
            await hands.show(coco, FromSource(coco), replace=False)
        (gate,) = told
        assert isinstance(gate, Gate) and gate.permissions.mode == 0o755
        assert await seen(hands, "coco") is None

    place.run(story)


def test_another_file_than_was_listed_is_neither_shown_nor_copied(place: Place) -> None:
    async def story(hands: Hands) -> None:
        old = place.publish("coco")
        place.publish("coco")
        with pytest.raises(ImageError):
            await hands.show(old, FromSource(old), replace=False)
        with pytest.raises(ImageError):
            await hands.copy(old, place.cache_dir)
        assert await seen(hands, "coco") is None

    place.run(story)


def test_a_copy_tells_its_progress_and_is_served_when_it_is_published(place: Place) -> None:
    async def story(hands: Hands) -> None:
        coco, told = place.publish("coco"), Told(hands)
        (await hands.look_at_disks())[0]
        await hands.copy(coco, place.cache_dir)
        assert {type(each) for each in told} == {Progress}
        assert max(each.bytes_done for each in told if isinstance(each, Progress)) == coco.size_bytes
        contents = (await hands.look_at_disks())[0].contents
        assert contents.images == ()
        assert [(part.dataset, part.generation_id) for part in contents.partials] == [("coco", coco.generation.id)]
        await hands.publish("coco", coco.generation.id, place.cache_dir)
        contents = (await hands.look_at_disks())[0].contents
        assert [(image.dataset, image.generation_id) for image in contents.images] == [("coco", coco.generation.id)]
        assert contents.partials == () and contents.images[0].size_bytes >= coco.size_bytes

    place.run(story)


def test_each_disk_holds_its_own_and_gives_back_its_own(kind: Callable[..., Place], folder: Path) -> None:
    with small_disk(folder, folder / "disk0", 16 << 20), small_disk(folder, folder / "disk1", 16 << 20):
        place = kind(folder, 2)
        first, second = place.cache_dirs

        async def story(hands: Hands) -> None:
            coco = place.publish("coco")
            await hands.look_at_disks()
            await hands.copy(coco, first)
            one, other = await hands.look_at_disks()
            assert (one.dir, other.dir, one.problem, other.problem) == (first, second, "", "")
            assert len(one.contents.partials) == 1 and other.contents.partials == ()
            await hands.drop("coco", coco.generation.id, first)
            await hands.copy(coco, second)
            await hands.publish("coco", coco.generation.id, second)
            one, other = await hands.look_at_disks()
            assert (one.contents.images, one.contents.partials) == ((), ())
            (copy,) = other.contents.images
            assert copy.disk == second and copy.path.startswith(f"{second}/")
            await hands.show(coco, FromCopy(copy), replace=False)
            await hands.retire(copy)
            await hands.discard(copy)
            held = (await hands.look_at_kernel()).held_bytes
            assert held[first] == 0 and held[second] >= coco.size_bytes // 512 * 512
            await hands.unmount("coco", despite=None)

        place.run(story)


def test_a_part_is_dropped(place: Place) -> None:
    async def story(hands: Hands) -> None:
        coco = place.publish("coco")
        (await hands.look_at_disks())[0]
        await hands.copy(coco, place.cache_dir)
        await hands.drop("coco", coco.generation.id, place.cache_dir)
        contents = (await hands.look_at_disks())[0].contents
        assert (contents.images, contents.partials) == ((), ())

    place.run(story)


def test_a_device_is_switched_to_the_copy_and_back_under_its_readers(place: Place) -> None:
    async def story(hands: Hands) -> None:
        coco = place.publish("coco")
        (await hands.look_at_disks())[0]
        await hands.show(coco, FromSource(coco), replace=False)
        copy, device = await stage(hands, coco, place.cache_dir), await device_of(hands, "coco")
        await hands.switch("coco", device, FromCopy(copy))
        mount = await seen(hands, "coco")
        assert mount is not None and (mount.device, mount.copy_path, mount.disk) == (
            device, copy.path, copy.disk,
        )  # fmt: skip
        await hands.probe("coco", device, copy.path)
        await hands.switch("coco", device, FromSource(coco))
        mount = await seen(hands, "coco")
        assert mount is not None and (mount.device, mount.copy_path, mount.disk) == (device, "", "")
        wrong = replace(coco, generation=replace(coco.generation, id="0" * 16))
        with pytest.raises(ImageError):
            await hands.switch("coco", device, FromSource(wrong))
        with pytest.raises(DiskError):
            await hands.switch("coco", device, FromCopy(structs.replace(copy, path=f"{copy.path}.none")))
        assert await seen(hands, "coco") == mount

    place.run(story)


def test_a_newer_image_takes_the_place_of_the_old_one_unless_that_is_pinned(place: Place) -> None:
    async def story(hands: Hands) -> None:
        old = place.publish("coco")
        await hands.show(old, FromSource(old), replace=False)
        new = place.publish("coco")
        await hands.show(new, FromSource(new), replace=True, despite=frozenset())
        assert (await hands.identify("coco", await device_of(hands, "coco"), mounted=True))[0] == new.generation.id
        assert (await hands.look_at_kernel()).covered == {}
        place.pin("coco")
        newest = place.publish("coco")
        with pytest.raises(PinnedError):
            await hands.show(newest, FromSource(newest), replace=True, despite=frozenset())
        assert (await hands.identify("coco", await device_of(hands, "coco"), mounted=True))[0] == new.generation.id
        await hands.show(newest, FromSource(newest), replace=True)
        assert (await hands.identify("coco", await device_of(hands, "coco"), mounted=True))[0] == newest.generation.id

    place.run(story)


def test_a_dataset_is_unmounted_unless_it_is_pinned(place: Place) -> None:
    async def story(hands: Hands) -> None:
        coco = place.publish("coco")
        await hands.show(coco, FromSource(coco), replace=False)
        place.pin("coco")
        with pytest.raises(PinnedError):
            await hands.unmount("coco", despite=frozenset())
        assert await seen(hands, "coco") is not None
        await hands.unmount("coco", despite=frozenset({"job:1"}))
        assert await seen(hands, "coco") is None

    place.run(story)


def test_a_copy_is_retired_restored_and_discarded_and_held_by_who_reads_it(place: Place) -> None:
    async def story(hands: Hands) -> None:
        coco = place.publish("coco")
        (await hands.look_at_disks())[0]
        copy = await stage(hands, coco, place.cache_dir)
        await hands.show(coco, FromCopy(copy), replace=False)
        await hands.retire(copy)
        assert (await hands.look_at_disks())[0].contents.images == ()
        mount = await seen(hands, "coco")
        assert mount is not None and mount.disk == copy.disk
        await hands.restore(copy)
        await hands.restore(copy)
        assert [each.path for each in (await hands.look_at_disks())[0].contents.images] == [copy.path]
        await hands.retire(copy)
        await hands.discard(copy)
        assert (await hands.look_at_disks())[0].contents.images == ()
        assert sum((await hands.look_at_kernel()).held_bytes.values()) >= coco.size_bytes // 512 * 512
        await hands.unmount("coco", despite=None)
        assert sum((await hands.look_at_kernel()).held_bytes.values()) == 0

    place.run(story)


def test_what_gives_no_answer_is_told_and_then_fails(kind: Callable[..., Place], folder: Path) -> None:
    place = kind(folder, source_timeout=SHORT_S)

    async def story(hands: Hands) -> None:
        told, path = Told(hands), place.make_hanging_copy("coco")
        with pytest.raises(SourceError, match="no sign of life for 2 s"):
            await hands.switch("coco", "loop-none", FromCopy(CachedImage("coco", "", path, 0)))
        assert [type(each) for each in told] == [Hangs, Answers]

    place.run(story)


def test_the_name_service_knows_users_or_not(place: Place) -> None:
    async def story(hands: Hands) -> None:
        assert 0 in await hands.groups_of(0)
        with pytest.raises(NotFoundError):
            await hands.groups_of(NOBODYS_UID)

    place.run(story)


def test_a_verb_that_is_cancelled_leaves_a_whole_thing_or_nothing_and_can_be_done_again(place: Place) -> None:
    async def story(hands: Hands) -> None:
        coco = place.publish("coco")
        (await hands.look_at_disks())[0]
        copying = asyncio.create_task(hands.copy(coco, place.cache_dir))
        await asyncio.sleep(0.001)
        copying.cancel()
        await asyncio.wait([copying])
        assert (await hands.look_at_disks())[0].contents.images == ()
        copy = await stage(hands, coco, place.cache_dir)
        await hands.show(coco, FromCopy(copy), replace=False)
        assert (await hands.identify("coco", await device_of(hands, "coco"), mounted=True))[0] == coco.generation.id

    place.run(story)
