"""An image that has a manifest since: what was made of it before is still its copy and its mount."""

from dataclasses import replace

from scratch_slurm.domain.model import Backing, Catalog, Generation, Permissions, SourceImage
from scratch_slurm.node.staging.cache import CacheContents
from scratch_slurm.service.join import find_ours, former_ids, take_over
from scratch_slurm.service.memory import Memory
from scratch_slurm.service.observe import DiskReading, Reading, SeenMount
from tests.kit.strategies import cached, image

BEFORE = image("coco", 10).generation
AFTER = Generation("f" * 16, BEFORE.size_bytes, "0" * 64, ("e" * 16, BEFORE.id))


def catalog(generation):
    named = SourceImage("coco", "/source/coco.squashfs", generation, "squashfs")
    return Catalog({"coco": named, "other": image("other")}, {})


def reading() -> Reading:
    mounted = {"coco": SeenMount("coco", 7, "loop0", Backing.SOURCE, "/source/coco.squashfs", 0)}
    contents = CacheContents((cached("coco", 10), cached("other")), (), 0, 0, 0)
    return Reading(mounted, (DiskReading("/cache", contents),), {}, ())


def test_a_copy_counts_for_the_image_with_its_manifest() -> None:
    images = take_over(reading(), former_ids(catalog(AFTER))).images
    assert [(each.dataset, each.generation_id) for each in images] == [
        ("coco", AFTER.id),
        ("other", image("other").generation.id),
    ]
    assert images[0].path == cached("coco", 10).path, "it keeps its name on the disk"


def test_without_a_manifest_nothing_is_renamed() -> None:
    seen = reading()
    assert take_over(seen, former_ids(catalog(BEFORE))) is seen


def test_a_mount_counts_for_the_image_with_its_manifest_and_its_gate_is_known() -> None:
    memory, gate = Memory(), Permissions(0, 7, 0o750)
    memory.generations["coco", 7, "loop0"] = BEFORE.id
    memory.roots[BEFORE.id] = gate
    ours = find_ours(reading(), memory, former_ids(catalog(AFTER)))
    assert ours["coco"].generation_id == AFTER.id
    assert memory.roots[AFTER.id] == gate


def test_a_copy_of_another_time_is_none_of_its() -> None:
    other = Generation("f" * 16, BEFORE.size_bytes, "0" * 64, ("e" * 16,))
    seen = replace(reading())
    assert take_over(seen, former_ids(catalog(other))) is seen
