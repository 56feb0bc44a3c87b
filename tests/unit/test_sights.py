"""What a round saw, by dataset."""

import dataclasses

from scratch_slurm.domain.actions import StagedImage
from scratch_slurm.domain.model import Catalog, Pin, SkippedImage
from scratch_slurm.domain.sight import Seen, SeenMount
from scratch_slurm.node.staging.cache import CacheContents, PartialImage
from scratch_slurm.service.observe import DiskReading, Reading
from scratch_slurm.service.sights import find_sights
from tests.kit.strategies import cached, image, pin

ONE, TWO = "/ssd0", "/ssd1"
MOUNT = SeenMount("a", (7, "loop0"))
COPY = SeenMount("c", (8, "loop1"), f"{TWO}/c@1.image", TWO)
NOTHING = CacheContents((), (), 0, 0, 0)
EMPTY = DiskReading(TWO, NOTHING)


def reading(
    *mounts: SeenMount,
    beneath: tuple[SeenMount, ...] = (),
    contents: CacheContents = NOTHING,
    second: DiskReading = EMPTY,
    pins: tuple[Pin, ...] = (),
    pins_problem: str = "",
) -> Reading:
    tops, below = ({each.dataset: each for each in some} for some in (mounts, beneath))
    return Reading(tops, (DiskReading(ONE, contents), second), {}, pins, pins_problem, below)


CATALOG = Catalog({"a": image("a"), "b": image("b")}, {})


def test_an_image_and_its_mount() -> None:
    assert find_sights(reading(MOUNT), CATALOG) == {"a": Seen(image("a"), top=MOUNT), "b": Seen(image("b"))}


def test_a_mount_without_an_image() -> None:
    assert find_sights(reading(MOUNT), Catalog({}, {}, False)) == {"a": Seen(is_listed=False, top=MOUNT)}


def test_copies_and_parts_are_told_with_their_disk() -> None:
    part = PartialImage("a", "9", 5)
    sights = find_sights(reading(contents=CacheContents((cached("b"),), (part,), 0, 0, 0)), CATALOG)
    assert sights["b"] == Seen(image("b"), copies=(cached("b"),))
    assert sights["a"] == Seen(image("a"), leftovers=(StagedImage("a", "9", 5, False, disk=ONE),))


def test_a_silent_disk_hides_its_copies_and_says_that_there_are_some() -> None:
    silent = DiskReading(TWO, CacheContents((cached("c"), cached("d")), (), 0, 0, 0), "no answer", True)
    sights = find_sights(reading(COPY, MOUNT, second=silent), CATALOG)
    assert sights["c"] == Seen(top=COPY, has_unseen_copies=True, is_copy_unseen=True)
    assert sights["d"] == Seen(has_unseen_copies=True)
    assert not sights["a"].is_copy_unseen, "it reads the source"
    assert not find_sights(reading(COPY), CATALOG)["c"].is_copy_unseen


def test_what_only_the_catalog_knows_more_of() -> None:
    bad = SkippedImage("x.squashfs", "is cut short")
    known = dataclasses.replace(CATALOG, skipped={"x": bad}, recalled={"y": image("y")})
    sights = find_sights(reading(MOUNT, beneath=(MOUNT,)), known)
    assert (sights["x"], sights["y"]) == (Seen(skipped=bad), Seen(recalled=image("y")))
    assert sights["a"] == Seen(image("a"), top=MOUNT, beneath=MOUNT)


def test_what_is_asked_for_and_what_is_under_way_is_told_though_nothing_is_there() -> None:
    sights = find_sights(reading(pins=(pin("n"), pin("a"))), CATALOG, ["m", "b"])
    assert (sights["n"], sights["m"]) == (Seen(), Seen())
    assert sights.keys() == {"a", "b", "n", "m"}


def test_pins_that_cannot_be_read_are_not_known_of_anything() -> None:
    sights = find_sights(reading(MOUNT, pins_problem="no ledger"), CATALOG, ["m"])
    assert {each.are_claims_known for each in sights.values()} == {False}
