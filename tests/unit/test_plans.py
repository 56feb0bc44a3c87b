"""A plan as it is told: to those that may be told of a dataset, and to the others."""

from collections.abc import Callable

import pytest
from msgspec import structs

from scratch_slurm.domain.dataset import Card, Disk, Node, Reads
from scratch_slurm.domain.model import Backing
from scratch_slurm.domain.planner import plan_cards
from scratch_slurm.service.plans import answer_plan
from tests.kit.cards import by_name, claims, on_copy, on_source
from tests.kit.sketch import cards_of
from tests.kit.sketch import plan as make_plan
from tests.kit.strategies import HORIZON_S, cached, image, mounted, observation, pin, room

# `secret` is pinned and needs the room of `common`, which nobody reads.
SEEN = observation(
    [image("secret"), image("common")],
    [mounted("secret"), mounted("common", backing=Backing.CACHE)],
    cached=(cached("common"),),
    pins=(pin("secret", 7),),
    space=room(0, used=10),
)


def told(is_told: Callable[[str], object]) -> tuple[list[tuple[str, str, str]], set[str]]:
    answer = answer_plan(cards_of(SEEN)[1], make_plan(SEEN), 600.0, is_told)
    return [(each.kind, each.dataset, each.reason) for each in answer.actions], {each.name for each in answer.verdicts}


def test_an_eviction_names_the_dataset_that_needs_the_room() -> None:
    actions, names = told(lambda name: True)
    assert actions == [("evict", "common", "nobody reads it, its room is needed by secret, pinned by job:7")]
    assert names == {"secret", "common"}


def test_a_dataset_that_is_not_told_is_named_nowhere() -> None:
    actions, names = told(lambda name: name != "secret")
    assert actions == [("evict", "common", "nobody reads it, its room is needed by another dataset")]
    assert names == {"common"}
    assert told(lambda name: name != "common") == ([], {"secret"})


def test_a_plan_tells_what_no_single_disk_has_room_for_and_what_that_costs() -> None:
    """`a`, which is pinned, takes the room of `x`, and the other disk has none for it."""

    def on(disk: str, name: str, size: int) -> Card:
        (copy,) = on_copy(name, size).copies
        reads = Reads(9 * size / HORIZON_S)
        return on_copy(name, size, copies=(structs.replace(copy, disk=disk),), reads=reads)

    cards = by_name([on_source("a", 6, claims=claims(1)), on("/ssd0", "x", 4), on("/ssd1", "y", 5)])
    node = Node([Disk("/ssd0", room(3, used=4)), Disk("/ssd1", room(4, used=5))])
    plan = plan_cards(cards, node)
    answer = answer_plan(node, plan, 600.0, lambda name: True)
    reasons = {each.name: each.reason for each in answer.verdicts}
    assert reasons["x"] == "saves 36 B over 30 min; no single disk has room for it beside the others"
    assert "no single disk" not in reasons["a"] + reasons["y"]
    assert answer.value_bytes == pytest.approx(9 * 5)
    assert answer.gap == pytest.approx(1 - 5 / 9)


def test_a_disk_that_cannot_be_used_is_no_lack_of_room() -> None:
    hot = on_source("a", reads=Reads(1.0))
    node = Node([Disk("/ssd0", room(99), problem="/ssd0: is dead")])
    answer = answer_plan(node, plan_cards(by_name([hot]), node), 600.0, lambda name: True)
    assert [each.reason for each in answer.verdicts] == ["saves 1.8 kB over 30 min, its copy reads 10 B"]
