"""Several disks: tables of where copies go, and what holds for any disks, copies and wishes."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from scratch_slurm.domain.actions import ActionKind, DropStaged, Evict, Retarget, Stage, StagedImage
from scratch_slurm.domain.backing import FromCopy, FromSource
from scratch_slurm.domain.claims import Claim, Job, Standing
from scratch_slurm.domain.dataset import Card, Disk, Failure, Node, Reads
from scratch_slurm.domain.model import CachedImage, MountedImage, Space
from scratch_slurm.domain.plan.placing import Held, Need, Placed, Room, place
from scratch_slurm.domain.planner import Plan, plan_cards
from tests.kit.strategies import HORIZON_S, PLENTY, generation, image

ONE, TWO = "/ssd0", "/ssd1"

PLACES = [
    pytest.param([Room(ONE, 9, 9), Room(TWO, 5, 5)], "", "a4", {"a": ONE}, id="the-emptiest"),
    pytest.param([Room(ONE, 9, 9), Room(TWO, 8, 8)], "", "a4 b6", {"b": ONE, "a": TWO}, id="the-largest-first"),
    pytest.param([Room(ONE, 0, 9), Room(TWO, 5, 5)], "", "a4", {"a": TWO}, id="at-once-goes-before-later"),
    pytest.param([Room(ONE, 0, 9), Room(TWO, 5, 5)], "", "a6", {"a": ONE}, id="later-is-better-than-never"),
    pytest.param([Room(ONE, 5, 5), Room(TWO, 5, 5)], "", "a6", {}, id="no-image-lies-on-two-disks"),
    pytest.param([Room(ONE, 5, 5), Room(TWO, 4, 4)], "a4", "b5", {"a": ONE}, id="pinned-before-chosen"),
    pytest.param([Room(ONE, 6, 6)], "a4 b5", "", {"a": ONE}, id="pinned-in-the-order-of-asking"),
    pytest.param([], "a1", "b1", {}, id="no-disk"),
    pytest.param([Room(ONE, 9, 9, True), Room(TWO, 0, 5)], "", "a4", {"a": TWO}, id="one-that-fails-copies-last"),
    pytest.param([Room(ONE, 9, 9, True), Room(TWO, 3, 3)], "", "a4", {"a": ONE}, id="but-rather-than-nowhere"),
]


def needs(text: str) -> list[Need]:
    return [Need(word[0], int(word[1:])) for word in text.split()]


@pytest.mark.parametrize(("rooms", "pinned", "chosen", "expected"), PLACES)
def test_where_a_copy_is_made(rooms: list[Room], pinned: str, chosen: str, expected: dict[str, str]) -> None:
    assert place(rooms, needs(pinned), needs(chosen), []) == Placed(expected, ())


def test_what_was_begun_goes_on_where_it_lies() -> None:
    placed = place([Room(ONE, 9, 9), Room(TWO, 0, 5)], [], [Need("a", 4, TWO)], [])
    assert placed.disks == {"a": TWO}


def test_what_was_begun_on_a_disk_that_fails_copies_is_begun_anew_elsewhere() -> None:
    placed = place([Room(ONE, 9, 9), Room(TWO, 9, 9, True)], [Need("a", 4, TWO)], [], [])
    assert placed.disks == {"a": ONE}


def test_a_pinned_copy_takes_the_room_of_what_is_held_for_its_throughput_where_that_costs_the_least() -> None:
    held = [Held("x", 5, ONE), Held("y", 3, TWO)]
    placed = place([Room(ONE, 0, 0), Room(TWO, 2, 2)], needs("a5"), [], held)
    assert placed == Placed({"a": TWO}, ("y",))


def test_a_disk_that_others_fill_gives_up_what_is_held_on_it_the_least_valuable_first() -> None:
    held = [Held("x", 5, TWO), Held("y", 3, ONE), Held("z", 3, ONE)]
    assert place([Room(ONE, -2, -2), Room(TWO, 0, 0)], [], [], held).displaced == ("y",)


# Plans over several disks.


def copy_of(name: str, size: int, disk: str) -> CachedImage:
    generation_id = generation(size).id
    return CachedImage(name, generation_id, f"{disk}/{name}@{generation_id}.image", size, disk)


def card(name: str, size: int, *, on: Sequence[str] = (), pinned: int = 0, read: float = 0.0) -> Card:
    """A mounted dataset with copies on these disks, the first of which it reads.

    Args:
        pinned: its place in the order of asking; 0: nobody pins it.
        read: bytes over the horizon.
    """
    copies = tuple(copy_of(name, size, disk) for disk in on)
    reads = (copies[0].path, copies[0].disk) if copies else ("", "")
    return Card(
        name,
        image=image(name, size),
        mounted=MountedImage(name, f"loop-{name}", generation(size).id, *reads),
        copies=copies,
        claims=(Claim(Job(pinned), 7, pinned, Standing.COUNTS),) if pinned else (),
        reads=Reads(read / HORIZON_S, last_at=1.0),
    )


def plan_of(cards: Sequence[Card], *disks: Disk) -> Plan:
    return plan_cards({each.name: each for each in cards}, Node(disks))


def disk(
    name: str, room_bytes: int, cards: Sequence[Card] = (), *, problem: str = "", is_unknown: bool = False
) -> Disk:
    """A disk with so much room beside the copies of these cards."""
    used = sum(copy.size_bytes for card in cards for copy in card.copies if copy.disk == name)
    return Disk(name, Space(used + room_bytes, 0, used, PLENTY), problem=problem, is_unknown=is_unknown)


def words(plan: Plan) -> list[str]:
    found = []
    for action in plan.actions:
        where = action.disk if isinstance(action, Stage) else action.image.disk if isinstance(action, Evict) else ""
        found.append(f"{action.kind} {action.dataset} {where}".rstrip())
    return found


def test_pinned_copies_go_to_the_emptiest_disk_each() -> None:
    cards = [card("a", 6, pinned=1), card("b", 5, pinned=2)]
    assert words(plan_of(cards, disk(ONE, 8), disk(TWO, 7))) == [f"stage a {ONE}", f"stage b {TWO}"]


def test_room_is_made_on_one_disk_and_the_other_is_left_alone() -> None:
    cards = [card("a", 6, pinned=1), card("x", 6, on=[ONE]), card("y", 3, on=[TWO])]
    assert words(plan_of(cards, disk(ONE, 0, cards), disk(TWO, 1, cards))) == [f"evict x {ONE}"]


def test_a_pinned_copy_that_no_disk_has_room_for_takes_that_of_a_chosen_one() -> None:
    cards = [card("a", 6, pinned=1), card("x", 4, on=[ONE], read=900), card("y", 5, on=[TWO], read=900)]
    plan = plan_of(cards, disk(ONE, 3, cards), disk(TWO, 4, cards))
    assert words(plan) == [f"evict x {ONE}"]
    assert plan.unplaced == {"x"}
    assert 0 < plan.gap < 1


def test_a_disk_that_others_fill_gives_up_what_is_read_there_although_the_other_has_room() -> None:
    cards = [card("x", 4, on=[ONE], read=900), card("y", 5, on=[TWO], read=900)]
    assert words(plan_of(cards, disk(ONE, -1, cards), disk(TWO, 9, cards))) == [f"evict x {ONE}"]


def test_a_pinned_copy_on_a_disk_that_others_fill_stays() -> None:
    cards = [card("x", 4, on=[ONE], pinned=1)]
    assert words(plan_of(cards, disk(ONE, -1, cards), disk(TWO, 9, cards))) == []


def test_nothing_is_made_on_a_disk_that_fails_and_its_datasets_are_copied_to_another() -> None:
    lost = structs.replace(card("a", 6, on=[ONE], pinned=1), copies=())
    plan = plan_of([lost], disk(ONE, 99, problem="EIO"), disk(TWO, 9))
    (switch,) = plan.actions
    assert isinstance(switch, Retarget)
    assert isinstance(switch.backing, FromSource)
    back = structs.replace(lost, mounted=card("a", 6).mounted)
    assert words(plan_of([back], disk(ONE, 99, problem="EIO"), disk(TWO, 9))) == [f"stage a {TWO}"]


def test_what_is_read_from_a_disk_that_gives_no_answer_is_left_as_it_is() -> None:
    lost = structs.replace(card("a", 6, on=[ONE]), copies=(), is_copy_unseen=True)
    assert words(plan_of([lost], disk(ONE, 0, problem="hangs", is_unknown=True), disk(TWO, 9))) == []


def test_without_any_disk_it_is_said_why_nothing_is_cached() -> None:
    plan = plan_of([card("a", 6, pinned=1)], disk(ONE, 0, problem="one is dead"), disk(TWO, 0, problem="two, too"))
    assert plan.problems["a"].text == "one is dead; two, too"


def test_of_two_copies_the_one_that_is_read_stays() -> None:
    cards = [card("a", 6, on=[TWO, ONE], pinned=1)]
    assert words(plan_of(cards, disk(ONE, 9, cards), disk(TWO, 9, cards))) == [f"evict a {ONE}"]


def test_with_nothing_read_a_copy_is_switched_to_before_the_other_goes() -> None:
    cards = [structs.replace(card("a", 6, on=[ONE, TWO]), mounted=card("a", 6).mounted)]
    plan = plan_of(cards, disk(ONE, 9, cards), disk(TWO, 9, cards))
    assert words(plan) == [f"evict a {TWO}"]
    after = [structs.replace(cards[0], copies=cards[0].copies[:1])]
    (switch,) = plan_of(after, disk(ONE, 9, after), disk(TWO, 9, after)).actions
    assert isinstance(switch, Retarget)
    assert switch.backing == FromCopy(after[0].copies[0])


def part_of(name: str, size: int, disk: str) -> StagedImage:
    return StagedImage(name, generation(size).id, size, False, disk=disk)


def test_a_part_that_cannot_be_deleted_does_not_keep_its_copy_from_another_disk() -> None:
    begun = structs.replace(card("a", 6, pinned=1), parts=(part_of("a", 6, ONE),))
    one, two = replace(disk(ONE, 0), shunned_until=1.0), disk(TWO, 9)
    assert words(plan_of([begun], one, two)) == ["drop a"]
    kept = structs.replace(begun, failures={ActionKind.DROP: Failure("read-only", 1, math.inf)})
    assert words(plan_of([kept], one, two)) == [f"stage a {TWO}"]


def test_a_part_goes_when_another_disk_has_a_whole_copy() -> None:
    both = structs.replace(card("a", 6, on=[TWO], pinned=1), parts=(part_of("a", 6, ONE),))
    (drop,) = plan_of([both], disk(ONE, 9), disk(TWO, 9, [both])).actions
    assert isinstance(drop, DropStaged)


NAMES = ("a", "b", "c", "d", "e")
CARDS = st.tuples(
    st.sampled_from((3, 5, 8)),
    st.sampled_from(((), (), (ONE,), (TWO,))),
    st.integers(0, 1),
    st.sampled_from((0.0, 4.0, 90.0, 900.0)),
)


@given(st.lists(CARDS, min_size=5, max_size=5), st.sampled_from((-3, 0, 4, 9)), st.sampled_from((-3, 0, 4, 9)))
def test_capacity_holds_on_each_disk_and_what_is_pinned_stays(
    drawn: list[tuple[int, tuple[str, ...], int, float]], room_one: int, room_two: int
) -> None:
    cards = [
        card(name, size, on=on, pinned=number * pinned, read=read)
        for number, (name, (size, on, pinned, read)) in enumerate(zip(NAMES, drawn, strict=True), 1)
    ]
    disks = (disk(ONE, room_one, cards), disk(TWO, room_two, cards))
    plan = plan_of(cards, *disks)
    pinned = {each.name for each in cards if each.claims}
    rooms = {each.dir: each.space.room_bytes for each in disks}
    for action in plan.actions:
        assert not isinstance(action, DropStaged)
        if isinstance(action, Evict):
            assert action.dataset not in pinned
        if isinstance(action, Stage):
            assert rooms[action.disk] >= action.image.size_bytes
            rooms[action.disk] -= action.image.size_bytes
    assert plan.gap >= 0
    assert plan.value_bytes <= plan.wishes.knapsack.value_bytes


@given(st.lists(CARDS, min_size=5, max_size=5), st.sampled_from((0, 4, 9)), st.sampled_from((0, 4, 9)))
def test_several_disks_come_to_rest_with_nothing_over_and_no_pinned_one_left_out_that_fits(
    drawn: list[tuple[int, tuple[str, ...], int, float]], room_one: int, room_two: int
) -> None:
    """What the plan says is done at once, round after round."""
    cards = {
        name: card(name, size, on=on, pinned=number * pinned, read=read)
        for number, (name, (size, on, pinned, read)) in enumerate(zip(NAMES, drawn, strict=True), 1)
    }
    capacities = {
        each.dir: each.space.capacity_bytes
        for each in (disk(ONE, room_one, list(cards.values())), disk(TWO, room_two, list(cards.values())))
    }

    def used(name: str) -> int:
        return sum(copy.size_bytes for each in cards.values() for copy in each.copies if copy.disk == name)

    for _ in range(20):
        disks = [Disk(name, Space(capacity, 0, used(name), PLENTY)) for name, capacity in capacities.items()]
        plan = plan_of(list(cards.values()), *disks)
        if not plan.actions:
            break
        for action in plan.actions:
            name, size = action.dataset, cards[action.dataset].image.size_bytes  # type: ignore[union-attr]
            here = cards[name]
            if isinstance(action, Evict):
                fresh = card(name, size)
                cards[name] = structs.replace(here, copies=(), mounted=fresh.mounted)
            elif isinstance(action, Stage):
                cards[name] = structs.replace(here, copies=(copy_of(name, size, action.disk),))
            elif isinstance(action, Retarget):
                cards[name] = structs.replace(here, mounted=card(name, size, on=[here.copies[0].disk]).mounted)
        assert all(used(name) <= capacity for name, capacity in capacities.items())
    else:
        raise AssertionError("never at rest")
    for each in cards.values():
        if each.claims and not each.copies and each.image:
            # Only what is pinned keeps the room from it.
            size = each.image.size_bytes
            for name, capacity in capacities.items():
                held = sum(
                    copy.size_bytes for other in cards.values() if other.claims for copy in other.copies
                    if copy.disk == name
                )  # fmt: skip
                assert capacity - held < size, f"{each.name} would fit on {name}"
