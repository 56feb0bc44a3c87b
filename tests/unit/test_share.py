"""How datasets share a disk: tables whose ids are the specification. What is about several disks is in test_placing."""

from typing import Any

import pytest
from msgspec import structs

from scratch_slurm.domain.actions import Action, ActionKind, BackTo, Evict, StagedImage
from scratch_slurm.domain.claims import Administrator, Claim, Standing
from scratch_slurm.domain.dataset import Card, Node, Reads, UnderWay
from scratch_slurm.domain.model import Space
from scratch_slurm.domain.plan.moves import decide_all
from scratch_slurm.domain.plan.room import Shared, pins_in_order, share
from tests.kit.cards import BUSY, SKIPPED, by_name, claims, failed, node, on_copy, on_source
from tests.kit.strategies import HORIZON_S, PLENTY, cached, image, mounted, room, staged

GB = 10**9
STAGE, EVICT, DROP = ActionKind.STAGE, ActionKind.EVICT, ActionKind.DROP
FIRST, SECOND = claims(1), claims(2)
ANY_ROOM = node(room(PLENTY))


def full(room_bytes: int = 0, used: int = 0, **facts: Any) -> Node:
    """A node with room for so many bytes."""
    return node(room(room_bytes, used=used), **facts)


def leaving(name: str = "b", size: int = 10) -> Card:
    """A dataset whose eviction is under way."""
    return on_copy(name, size, under_way=UnderWay(Evict(cached(name, size), None, "")))


def read(times_its_size: float, last_at: float = 0.0) -> Reads:
    """Reads of a dataset of 10 bytes over the horizon."""
    return Reads(times_its_size * 10 / HORIZON_S, last_at=last_at)


def part(name: str = "a", version: int = 1, *, under_way: bool = False, reserved: int = 10) -> tuple[StagedImage, ...]:
    return (staged(name, version=version, reserved=reserved, under_way=under_way),)


def plan(cards: list[Card], on: Node) -> Shared:
    named = by_name(cards)
    return share(named, on, decide_all(named, on.now, {}))


def words(shared: Shared) -> str:
    """What is to be done, as `evict b, stage a`."""
    actions: list[Action] = [*shared.drops, *shared.evictions, *shared.stages]
    return ", ".join(f"{action.kind} {action.dataset}" for action in actions)


SHARES = [
    # Copies that are not whole.
    pytest.param([on_source(parts=part())], ANY_ROOM, "drop a", id="a-left-over-that-nobody-wants-goes"),
    pytest.param(
        [on_source(parts=part(under_way=True), under_way=BUSY)],
        ANY_ROOM,
        "drop a",
        id="a-copy-under-way-is-stopped-when-its-last-pin-goes",
    ),
    pytest.param(
        [on_source(parts=part(under_way=True), under_way=BUSY, claims=FIRST)], ANY_ROOM, "", id="a-wanted-one-goes-on"
    ),
    pytest.param([on_source(parts=part(), under_way=BUSY)], ANY_ROOM, "", id="a-left-over-of-a-busy-dataset-waits"),
    pytest.param([on_source(parts=part(), failures=failed(DROP))], ANY_ROOM, "", id="a-failed-drop-waits"),
    pytest.param([on_source(parts=part(), is_listed=False)], ANY_ROOM, "", id="a-left-over-waits-for-the-listing"),
    pytest.param(
        [on_source(parts=part(), claims=claims(1, standing=Standing.WAITS))], ANY_ROOM, "", id="and-for-who-may-want-it"
    ),
    pytest.param([on_source(parts=part(), are_claims_known=False)], ANY_ROOM, "", id="and-for-the-ledger"),
    pytest.param(
        [on_source(image=None, skipped=SKIPPED, parts=part(), claims=FIRST)],
        ANY_ROOM,
        "",
        id="a-left-over-is-kept-while-its-image-cannot-be-read",
    ),
    pytest.param(
        [on_source(parts=part(), claims=FIRST)], full(used=10), "stage a", id="a-left-over-goes-on-in-its-own-room"
    ),
    pytest.param(
        [on_source(parts=part(version=2) + part(), claims=FIRST)],
        full(used=20),
        "drop a, stage a",
        id="one-of-another-generation-goes",
    ),
    pytest.param(
        [on_source(parts=part() + part(version=2), claims=FIRST)],
        full(used=20),
        "drop a, stage a",
        id="in-any-order",
    ),
    pytest.param(
        [on_source(parts=part(version=2), claims=FIRST, is_listed=False)], full(used=10), "", id="and-lends-no-room"
    ),
    pytest.param(
        [on_source(parts=part(), reads=read(9), failures=failed(STAGE))],
        full(used=10),
        "",
        id="what-a-failed-copy-has-is-kept-for-its-retry",
    ),
    pytest.param(
        [on_source(parts=part(), failures=failed(STAGE))], full(used=10), "drop a", id="but-not-when-nobody-reads-it"
    ),
    pytest.param(
        [on_source(parts=part(), claims=FIRST, revoked="was open", failures=failed(ActionKind.UNMOUNT))],
        full(used=10),
        "drop a, stage a",
        id="what-is-revoked-goes",
    ),
    # Staging.
    pytest.param([on_source()], ANY_ROOM, "", id="nobody-asks-nothing-is-staged"),
    pytest.param([on_source(claims=FIRST)], full(10), "stage a", id="an-exact-fit-is-staged"),
    pytest.param([on_source(claims=FIRST)], full(9), "", id="a-byte-less-is-no-fit"),
    pytest.param([on_source(claims=claims(1, 2))], full(10), "stage a", id="two-jobs-share-one-copy"),
    pytest.param(
        [on_source(claims=claims(1, standing=Standing.REFUSED))], ANY_ROOM, "", id="a-refused-pin-brings-nothing"
    ),
    pytest.param([on_source(claims=SECOND), on_source("b", claims=FIRST)], full(10), "stage b", id="first-asked-first"),
    pytest.param([on_source(claims=FIRST, failures=failed(STAGE))], ANY_ROOM, "", id="a-failed-copy-waits"),
    pytest.param(
        [on_source(claims=FIRST, failures=failed(STAGE)), on_source("b", claims=SECOND)],
        full(10),
        "",
        id="a-failed-copy-keeps-its-room-for-the-retry",
    ),
    pytest.param([Card("x", claims=FIRST)], ANY_ROOM, "", id="a-pin-on-nothing-does-nothing"),
    pytest.param([Card("a", image=image("a"), claims=FIRST)], ANY_ROOM, "", id="what-is-not-mounted-is-not-staged-yet"),
    pytest.param([on_source(claims=FIRST)], node(Space(100, 5, 0, 14)), "", id="the-reserve-is-left-free"),
    pytest.param([on_source(claims=FIRST)], node(Space(100, 4, 0, 14)), "stage a", id="up-to-the-reserve-is-taken"),
    pytest.param([on_source(claims=FIRST)], full(10, overhead_bytes=1), "", id="with-what-a-copy-takes-beside-it"),
    pytest.param([on_source(reads=read(1.1))], full(10), "stage a", id="hot-is-staged"),
    pytest.param([on_source(reads=read(1.0))], full(10), "", id="what-saves-no-more-than-its-copy-reads-is-not"),
    pytest.param([on_source(reads=read(9), held_off_until=1.0)], full(10), "", id="what-was-sent-away-stays-away"),
    pytest.param(
        [on_source(reads=read(9), claims=FIRST, held_off_until=1.0)], full(10), "stage a", id="a-pin-brings-it-back"
    ),
    # Room for others.
    pytest.param([on_source(claims=FIRST), on_copy("b")], full(10), "stage a", id="nobody-goes-while-there-is-room"),
    pytest.param([on_source(claims=FIRST), on_copy("b")], full(), "evict b", id="a-copy-waits-for-its-victim"),
    pytest.param([on_source(claims=FIRST), on_copy("b"), on_copy("c")], full(), "evict b", id="never-used-go-by-name"),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", reads=read(0, 2.0)), on_copy("c", reads=read(0, 1.0))],
        full(),
        "evict c",
        id="least-recently-used-goes-first",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", reads=read(0, 1.0)), on_copy("c")],
        full(),
        "evict c",
        id="never-used-before-used-long-ago",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", reads=read(9)), on_copy("c")], full(), "evict c", id="idle-before-hot"
    ),
    pytest.param(
        [on_source(size=20, claims=FIRST), on_copy("b"), on_copy("c")],
        full(),
        "evict b, evict c",
        id="as-many-as-it-takes",
    ),
    pytest.param(
        [on_source(size=20, claims=FIRST), on_copy("b"), on_copy("c")], full(10), "evict b", id="and-no-more-than-that"
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", 4, reads=read(0, 1.0)), on_copy("c", reads=read(0, 2.0))],
        full(),
        "evict c",
        id="a-small-one-that-is-not-needed-beside-a-large-one-stays",
    ),
    pytest.param([on_source(claims=FIRST), on_copy("b", claims=SECOND)], full(), "", id="a-pinned-one-is-no-victim"),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", claims=claims(2, standing=Standing.WAITS))],
        full(),
        "",
        id="nor-one-with-a-pin-that-may-count",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", claims=claims(2, standing=Standing.REFUSED))],
        full(),
        "evict b",
        id="one-with-a-refused-pin-is",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", are_claims_known=False)], full(), "", id="nobody-without-the-ledger"
    ),
    pytest.param(
        [on_source(size=30, claims=FIRST), on_copy("b"), on_copy("c")], full(5), "", id="what-cannot-fit-evicts-nobody"
    ),
    pytest.param([on_source(claims=FIRST), on_copy("b", under_way=BUSY)], full(), "", id="a-busy-one-is-no-victim"),
    pytest.param([on_source(claims=FIRST), on_copy("b", is_foreign=True)], full(), "", id="nor-one-beneath-a-foreign"),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", failures=failed(EVICT))], full(), "", id="a-failed-eviction-waits"
    ),
    pytest.param(
        [on_source(claims=FIRST), leaving(), on_copy("c")], full(leaving_bytes=10), "", id="what-leaves-is-waited-for"
    ),
    pytest.param(
        [on_source(size=20, claims=FIRST), leaving(), on_copy("c")],
        full(leaving_bytes=10),
        "evict c",
        id="and-added-to",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_source("d", claims=SECOND), leaving(), on_copy("c")],
        full(leaving_bytes=10),
        "evict c",
        id="what-leaves-serves-one",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", 5), on_source("d", 5, claims=SECOND)],
        full(5, used=95),
        "evict b",
        id="the-room-that-an-earlier-one-waits-for-is-not-given-away",
    ),
    pytest.param(
        [on_source(claims=FIRST), leaving(), on_source("d", 5, claims=SECOND)],
        full(5, used=95, leaving_bytes=10),
        "",
        id="nor-while-it-waits-for-what-leaves",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b"), Card("d", parts=part("d", under_way=True), under_way=BUSY)],
        full(used=20),
        "drop d",
        id="a-copy-that-is-stopped-makes-room-without-a-victim",
    ),
    pytest.param(
        [
            on_source(claims=FIRST),
            on_copy("b", version=2, copies=(cached("b", version=2), cached("b"))),
            on_copy("c"),
        ],
        full(),
        "evict b",
        id="outdated-ones-make-room-before-victims-do",
    ),
    pytest.param(
        [on_source(claims=FIRST, is_foreign=True), on_copy("b")], full(), "", id="nobody-goes-for-what-is-not-shown"
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", image=None, skipped=SKIPPED)],
        full(),
        "",
        id="nobody-goes-whom-the-source-cannot-take-over",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", image=None, skipped=SKIPPED), on_copy("c")],
        full(),
        "evict c",
        id="but-another-one-does",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_source("b", copies=(cached("b"),))],
        full(),
        "",
        id="nobody-goes-that-is-switched-in-this-plan",
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b", image=image("b", version=2))],
        full(),
        "",
        id="what-is-replaced-in-this-plan-is-no-victim",
    ),
    # Less room than is taken.
    pytest.param([on_copy("b"), on_copy("c")], full(-5, used=20), "evict b", id="over-the-capacity-one-goes"),
    pytest.param([on_copy("b"), on_copy("c")], full(-15, used=20), "evict b, evict c", id="or-two"),
    pytest.param([on_copy("b", claims=FIRST)], full(-5, used=10), "", id="but-none-that-is-pinned"),
    pytest.param(
        [on_copy("b"), on_copy("c", claims=FIRST)], full(-15, used=20), "evict b", id="as-much-as-can-be-freed"
    ),
    pytest.param([leaving(), on_copy("c")], full(-5, used=20, leaving_bytes=10), "", id="what-leaves-may-be-enough"),
    pytest.param(
        [on_source(size=5, claims=FIRST), on_copy("b")], full(-2, used=12), "evict b", id="one-victim-pays-for-both"
    ),
    pytest.param(
        [on_source(claims=FIRST), on_copy("b")],
        node(room(PLENTY), problem="cannot be read"),
        "",
        id="nothing-is-done-with-a-disk-that-cannot-be-used",
    ),
]


@pytest.mark.parametrize(("cards", "on", "expected"), SHARES)
def test_how_a_disk_is_shared(cards: list[Card], on: Node, expected: str) -> None:
    assert words(plan(cards, on)) == expected
    assert words(plan(cards[::-1], on)) == expected, "the order of the cards means something"


PROBLEMS = [
    pytest.param(
        [on_source(size=2 * GB, claims=FIRST)],
        full(GB),
        ("does not fit: 2.0 GB, the capacity is 1.0 GB", False),
        id="larger-than-the-capacity-is-hopeless",
    ),
    pytest.param(
        [on_source(size=2 * GB, claims=FIRST)],
        full(GB, used=5 * GB),
        (
            "waits for room: needs 2.0 GB, 1.0 GB can be had now; "
            "the rest is pinned, in use, kept free, or taken by others",
            True,
        ),
        id="pinned-by-others-may-mend-itself",
    ),
    pytest.param(
        [on_source(claims=FIRST)],
        node(room(0), problem="/cache: cannot read it"),
        ("/cache: cannot read it", False),
        id="a-disk-that-cannot-be-used",
    ),
    pytest.param([on_source(claims=FIRST), on_copy("b")], full(), None, id="waiting-for-an-eviction-is-none"),
    pytest.param([on_source(reads=read(99))], full(), None, id="what-is-only-hot-has-none"),
]


@pytest.mark.parametrize(("cards", "on", "expected"), PROBLEMS)
def test_what_a_pinned_dataset_is_told_that_finds_no_room(
    cards: list[Card], on: Node, expected: tuple[str, bool] | None
) -> None:
    problem = plan(cards, on).problems.get("a")
    assert (problem and (problem.text, problem.waiting_helps)) == expected


def test_an_eviction_says_why_and_for_whom_and_takes_its_reader_back_first() -> None:
    (evict,) = plan([on_source(claims=FIRST), on_copy("b")], full()).evictions
    assert (evict.image, evict.back_to, evict.despite) == (cached("b"), BackTo("loop-b", image("b")), frozenset())
    assert evict.reason == "nobody reads it, its room is needed by a, pinned by job:1"
    assert (evict.needed_by, evict.reason_unnamed) == ("a", "nobody reads it, its room is needed by another dataset")


def test_a_victim_is_told_whose_pins_do_not_keep_it() -> None:
    (evict,) = plan([on_copy(claims=claims(7, standing=Standing.REFUSED))], full(-1, used=10)).evictions
    assert evict.despite == frozenset({"job:7"})


def test_the_larger_goes_first_of_two_that_were_used_together() -> None:
    cards = [on_source(claims=FIRST), on_copy("b", reads=read(0, 5.0)), on_copy("c", 20, reads=read(0, 5.0))]
    assert words(plan(cards, full())) == "evict c"


def test_a_copy_names_all_its_holders_and_that_somebody_pins_it() -> None:
    holders = (*claims(7), Claim(Administrator(), 0, 8, Standing.COUNTS))
    pinned, hot = plan([on_source(claims=holders), on_source("b", reads=read(3))], ANY_ROOM).stages
    assert (pinned.reason, pinned.preheat) == ("pinned by job:7, administrator", True)
    assert not hot.preheat and hot.reason.startswith("saves 30 B over 30 min")


def test_pins_are_in_the_order_of_asking_over_all_datasets() -> None:
    cards = [on_source(claims=claims(3, 1)), on_source("b", claims=claims(2)), on_source("c")]
    cards.append(on_source("d", claims=claims(4, standing=Standing.REFUSED)))
    assert [(pin.dataset, pin.holder) for pin in pins_in_order(cards)] == [
        ("a", "job:1"),
        ("b", "job:2"),
        ("a", "job:3"),
    ]


def test_what_moves_in_this_plan_is_not_copied_in_it() -> None:
    assert words(plan([on_source(fault="EIO", claims=FIRST)], ANY_ROOM)) == ""
    assert words(plan([structs.replace(on_source(claims=FIRST), mounted=mounted("a", version=None))], ANY_ROOM)) == ""
