"""The planner: tables whose ids are the specification, then what must hold for any observation."""

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.actions import (
    ActionKind,
    BackTo,
    DropStaged,
    Evict,
    Mend,
    Mount,
    Replace,
    Retarget,
    Stage,
    Uncover,
    Unmount,
)
from scratch_slurm.domain.backing import FromCopy, FromSource
from scratch_slurm.domain.errors import DaemonError, NotFoundError, PinnedError
from scratch_slurm.domain.model import Backing, Pin, Space
from tests.kit.sketch import Sketch, plan_eviction
from tests.kit.sketch import plan as make_plan
from tests.kit.strategies import (
    NAMES,
    admin_pin,
    cached,
    image,
    mounted,
    observation,
    observations,
    pin,
    room,
    staged,
)

CACHE = Backing.CACHE


def words(seen):
    """The plan as `kind dataset` words, in order."""
    return [f"{action.kind} {action.dataset}" for action in make_plan(seen).actions]


def on_source(*datasets, size=10):
    """Datasets mounted from the source: (images, mounts)."""
    return [image(name, size) for name in datasets], [mounted(name, size) for name in datasets]


def on_cache(*datasets, size=10):
    """Datasets mounted from the cache: (images, mounts, cached images)."""
    return (
        [image(name, size) for name in datasets],
        [mounted(name, size, backing=CACHE) for name in datasets],
        tuple(cached(name, size) for name in datasets),
    )


def with_pinned(pinned, victims, size=10, **rest):
    """`pinned` on the source and pinned in that order; `victims` cached and pinned by nobody."""
    images, mounts = on_source(*pinned, size=size)
    more_images, more_mounts, copies = on_cache(*victims)
    pins = tuple(pin(name, number) for number, name in enumerate(pinned, 1))
    return observation([*images, *more_images], [*mounts, *more_mounts], **{"cached": copies, "pins": pins, **rest})


CASES = [
    pytest.param(observation(), [], id="nothing-there-nothing-to-do"),
    pytest.param(observation([image("b"), image("a")]), ["mount a", "mount b"], id="new-images-are-mounted-by-name"),
    pytest.param(
        observation([image("a")], complete=False),
        ["mount a"],
        id="an-image-that-was-seen-is-mounted-before-the-listing-ends",
    ),
    pytest.param(observation(*on_source("a")), [], id="nobody-asks-nothing-is-staged"),
    pytest.param(observation([image("a")], foreign=frozenset("a")), [], id="a-foreign-mount-is-left-alone"),
    pytest.param(observation([image("a")], busy=frozenset("a")), [], id="a-busy-dataset-is-left-alone"),
    pytest.param(
        observation([image("a")], backing_off=frozenset({("a", ActionKind.MOUNT)})), [], id="a-failed-mount-waits"
    ),
    # What the source has is newer, or gone.
    pytest.param(observation([image("a", version=2)], [mounted("a")]), ["replace a"], id="newer-and-free-is-replaced"),
    pytest.param(
        observation([image("a", version=2)], [mounted("a")], pins=(pin("a"),)), [], id="newer-but-pinned-is-kept"
    ),
    pytest.param(
        observation([image("a")], [mounted("a", version=None)]),
        ["replace a"],
        id="a-mount-of-unknown-generation-is-replaced",
    ),
    pytest.param(observation([], [mounted("a")]), ["unmount a"], id="gone-is-unmounted"),
    pytest.param(observation([], [mounted("a")], pins=(pin("a"),)), [], id="gone-but-pinned-stays-mounted"),
    pytest.param(observation([], [mounted("a")], complete=False), [], id="not-listed-yet-is-not-gone"),
    pytest.param(observation([], [mounted("a")], skipped=["a"]), [], id="a-bad-image-is-not-gone"),
    pytest.param(
        observation([], [mounted("a", backing=CACHE)], cached=(cached("a"),)),
        ["unmount a"],
        id="gone-is-unmounted-before-it-is-evicted",
    ),
    # What answers with an I/O error.
    pytest.param(
        observation(*on_source("a"), unwell={"a": "EIO"}, pins=(pin("a"),), space=room(0)),
        ["replace a"],
        id="unwell-is-mounted-anew-though-pinned",
    ),
    pytest.param(
        observation(*on_source("a"), unwell={"a": "EIO"}, backing_off=frozenset({("a", ActionKind.REPLACE)})),
        [],
        id="unwell-and-still-failing-waits",
    ),
    pytest.param(
        observation([image("a", version=2)], [mounted("a")], unwell={"a": "EIO"}, pins=(pin("a"),)),
        [],
        id="unwell-and-pinned-of-an-older-generation-has-nothing-to-be-mounted-from",
    ),
    pytest.param(
        observation(*on_cache("a")[:2], cached=(cached("a"),), bad_copies={cached("a").path: "EIO"}),
        [],
        id="a-bad-copy-that-is-read-stays-until-the-mount-is-another",
    ),
    pytest.param(
        observation(*on_source("a"), cached=(cached("a"),), bad_copies={cached("a").path: "EIO"}, pins=(pin("a"),)),
        ["evict a"],
        id="a-bad-copy-goes-though-pinned-and-is-not-switched-to",
    ),
    # Which file is read.
    pytest.param(
        observation(*on_source("a"), cached=(cached("a"),)), ["retarget a"], id="what-is-cached-is-read-from-there"
    ),
    pytest.param(
        observation([image("a", version=2)], [mounted("a")], cached=(cached("a", version=2),), pins=(pin("a"),)),
        [],
        id="a-copy-of-another-generation-is-not-switched-to",
    ),
    pytest.param(
        observation([image("a")], [mounted("a", backing=CACHE)]),
        ["retarget a"],
        id="a-deleted-copy-is-left-for-the-source",
    ),
    pytest.param(
        observation([image("a")], [mounted("a", backing=CACHE)], pins=(pin("a"),)),
        ["retarget a"],
        id="a-deleted-copy-is-staged-again-only-after-the-switch",
    ),
    pytest.param(
        observation([image("a", version=2)], [mounted("a", backing=CACHE)], pins=(pin("a"),)),
        [],
        id="a-deleted-copy-without-its-source-is-read-on",
    ),
    # Cached images that nobody can be served.
    pytest.param(observation(cached=(cached("a"),)), ["evict a"], id="a-copy-of-no-dataset-is-evicted"),
    pytest.param(
        observation(cached=(cached("a"),), complete=False), [], id="a-copy-is-kept-until-the-source-is-listed"
    ),
    pytest.param(observation(cached=(cached("a"),), skipped=["a"]), [], id="a-copy-of-a-bad-image-is-kept"),
    pytest.param(
        observation(*on_source("a"), cached=(cached("a", version=2),)),
        ["evict a"],
        id="a-copy-of-another-generation-is-evicted",
    ),
    pytest.param(
        observation([image("a", version=2)], [mounted("a", backing=CACHE)], cached=(cached("a"),), pins=(pin("a"),)),
        [],
        id="the-generation-that-a-job-reads-is-kept",
    ),
    pytest.param(
        observation([image("a")], [mounted("a", backing=CACHE)], cached=(cached("a"), cached("a", version=2))),
        ["evict a"],
        id="of-two-copies-the-one-that-is-not-mounted-goes",
    ),
    # Copies under way, or left over.
    pytest.param(
        observation(*on_source("a"), staged=(staged("a"),)), ["drop a"], id="a-left-over-copy-nobody-wants-is-dropped"
    ),
    pytest.param(
        observation(*on_source("a"), staged=(staged("a", under_way=True),), busy=frozenset("a")),
        ["drop a"],
        id="a-copy-under-way-is-stopped-when-its-last-pin-goes",
    ),
    pytest.param(
        observation(*on_source("a"), staged=(staged("a"),), busy=frozenset("a")),
        [],
        id="a-left-over-of-a-busy-dataset-waits",
    ),
    pytest.param(
        observation(*on_source("a"), staged=(staged("a"),), backing_off=frozenset({("a", ActionKind.DROP)})),
        [],
        id="a-failed-drop-waits",
    ),
    pytest.param(
        observation(*on_source("a"), staged=(staged("a", under_way=True),), busy=frozenset("a"), pins=(pin("a"),)),
        [],
        id="a-wanted-copy-under-way-goes-on",
    ),
    pytest.param(
        observation(*on_source("a"), staged=(staged("a"),), pins=(pin("a"),), space=room(0, used=10)),
        ["stage a"],
        id="a-left-over-copy-goes-on-in-its-own-room",
    ),
    pytest.param(
        observation(
            *on_source("a"), staged=(staged("a", version=2), staged("a")), pins=(pin("a"),), space=room(0, used=20)
        ),
        ["drop a", "stage a"],
        id="a-left-over-of-another-generation-is-dropped",
    ),
    pytest.param(
        observation(
            *on_source("a"), staged=(staged("a"), staged("a", version=2)), pins=(pin("a"),), space=room(0, used=20)
        ),
        ["drop a", "stage a"],
        id="a-left-over-of-another-generation-is-dropped-in-any-order",
    ),
    pytest.param(
        observation(
            *on_source("a"), staged=(staged("a", version=2),), pins=(pin("a"),), space=room(0, used=10), complete=False
        ),
        [],
        id="a-left-over-of-another-generation-lends-no-room",
    ),
    pytest.param(
        observation([], [mounted("a")], staged=(staged("a"),), pins=(pin("a"),), skipped=["a"]),
        [],
        id="a-left-over-is-kept-while-its-image-cannot-be-read",
    ),
    pytest.param(
        observation(*on_source("a"), staged=(staged("a"),), complete=False), [], id="a-left-over-waits-for-the-listing"
    ),
    # Staging.
    pytest.param(
        observation(*on_source("a"), pins=(pin("a"),), space=room(10)), ["stage a"], id="an-exact-fit-is-staged"
    ),
    pytest.param(
        observation(*on_source("a"), pins=(admin_pin("a"),)), ["stage a"], id="an-administrator-s-pin-is-a-pin"
    ),
    pytest.param(
        observation(*on_source("a"), pins=(pin("a", 1), pin("a", 2)), space=room(10)),
        ["stage a"],
        id="two-jobs-share-one-copy",
    ),
    pytest.param(
        observation(*on_source("a", "b"), pins=(pin("b", 1), pin("a", 2)), space=room(10)),
        ["stage b"],
        id="who-asked-first-is-first",
    ),
    pytest.param(
        observation(*on_source("a"), pins=(pin("a"),), backing_off=frozenset({("a", ActionKind.STAGE)})),
        [],
        id="a-failed-copy-waits",
    ),
    pytest.param(
        observation(
            *on_source("a", "b"),
            pins=(pin("a"), pin("b")),
            space=room(10),
            backing_off=frozenset({("a", ActionKind.STAGE)}),
        ),
        [],
        id="a-failed-copy-keeps-its-room-for-the-retry",
    ),
    pytest.param(observation(*on_source("a"), pins=(pin("x"),)), [], id="a-pin-on-nothing-does-nothing"),
    pytest.param(observation([image("a")], pins=(pin("a"),)), ["mount a"], id="what-is-not-mounted-is-not-staged-yet"),
    pytest.param(
        observation(*on_source("a"), pins=(pin("a"),), space=Space(100, 5, 0, 14)), [], id="the-reserve-is-left-free"
    ),
    pytest.param(
        observation(*on_source("a"), pins=(pin("a"),), space=Space(100, 4, 0, 14)),
        ["stage a"],
        id="up-to-the-reserve-is-taken",
    ),
    # Evicting for room.
    pytest.param(with_pinned("a", "b", space=room(10)), ["stage a"], id="no-victim-while-there-is-room"),
    pytest.param(with_pinned("a", "b", space=room(0)), ["evict b"], id="staging-waits-for-the-victim-to-be-gone"),
    pytest.param(with_pinned("a", "bc", space=room(0)), ["evict b"], id="never-used-goes-by-name"),
    pytest.param(
        with_pinned("a", "bc", space=room(0), last_used_at={"b": 2.0, "c": 1.0}),
        ["evict c"],
        id="least-recently-used-goes-first",
    ),
    pytest.param(
        with_pinned("a", "bc", space=room(0), last_used_at={"b": 1.0}),
        ["evict c"],
        id="never-used-goes-before-used-long-ago",
    ),
    pytest.param(
        with_pinned("a", "bc", size=20, space=room(0)), ["evict b", "evict c"], id="as-many-victims-as-it-takes"
    ),
    pytest.param(with_pinned("a", "bc", size=20, space=room(10)), ["evict b"], id="and-no-more-than-that"),
    pytest.param(
        with_pinned("a", "b", space=room(0), pins=(pin("a"), pin("b", 2))), [], id="a-pinned-image-is-no-victim"
    ),
    pytest.param(with_pinned("a", "bc", size=30, space=room(5)), [], id="what-cannot-fit-evicts-nobody"),
    pytest.param(with_pinned("a", "b", space=room(0), busy=frozenset("b")), [], id="a-busy-image-is-no-victim"),
    pytest.param(
        with_pinned("a", "b", space=room(0), backing_off=frozenset({("b", ActionKind.EVICT)})),
        [],
        id="a-failed-eviction-waits",
    ),
    pytest.param(
        with_pinned("a", "bc", space=room(0), busy=frozenset("b"), leaving_bytes=10),
        [],
        id="an-eviction-under-way-is-waited-for",
    ),
    pytest.param(
        with_pinned("a", "bc", size=20, space=room(0), busy=frozenset("b"), leaving_bytes=10),
        ["evict c"],
        id="and-added-to",
    ),
    pytest.param(
        with_pinned("ad", "bc", space=room(0), busy=frozenset("b"), leaving_bytes=10),
        ["evict c"],
        id="what-leaves-serves-one",
    ),
    pytest.param(
        observation(
            [image("a"), image("b", 5), image("d", 5)],
            [mounted("a"), mounted("b", 5, backing=CACHE), mounted("d", 5)],
            cached=(cached("b", 5),),
            pins=(pin("a", 1), pin("d", 2)),
            space=room(5, used=95),
        ),
        ["evict b"],
        id="the-room-that-an-earlier-one-waits-for-is-not-given-away",
    ),
    pytest.param(
        observation(
            [image("a", version=2)],
            [msgspec.structs.replace(mounted("a", backing=CACHE), generation_id=None)],
            cached=(cached("a"),),
            pins=(pin("a"),),
        ),
        [],
        id="what-is-read-is-kept-though-nobody-knows-its-generation",
    ),
    pytest.param(
        with_pinned("ad", "b", space=room(5)), ["evict b"], id="the-later-one-does-not-take-the-earlier-one-s-room"
    ),
    pytest.param(
        with_pinned("a", "b", space=room(0, used=20), staged=(staged("d", under_way=True),), busy=frozenset("d")),
        ["drop d"],
        id="a-copy-that-is-stopped-makes-room-without-a-victim",
    ),
    pytest.param(
        observation(
            [image("a"), image("b", version=2), image("c")],
            [mounted("a"), mounted("b", version=2, backing=CACHE), mounted("c", backing=CACHE)],
            cached=(cached("b", version=2), cached("b"), cached("c")),
            pins=(pin("a"),),
            space=room(0),
        ),
        ["evict b"],
        id="outdated-images-make-room-before-victims-do",
    ),
    pytest.param(
        with_pinned("a", "b", space=room(0), foreign=frozenset("a")),
        [],
        id="nobody-goes-for-a-dataset-that-cannot-be-shown",
    ),
    pytest.param(
        with_pinned("a", "b", size=5, space=room(-2, used=12)),
        ["evict b"],
        id="over-the-capacity-one-victim-pays-for-both",
    ),
    pytest.param(
        observation(
            [image("a")],
            [mounted("a"), mounted("b", backing=CACHE)],
            cached=(cached("b"),),
            skipped=["b"],
            pins=(pin("a"),),
            space=room(0),
        ),
        [],
        id="no-eviction-of-what-its-source-cannot-take-over",
    ),
    pytest.param(
        observation(
            [image("a"), image("b", version=2)],
            [mounted("a"), mounted("b", backing=CACHE)],
            cached=(cached("b"),),
            pins=(pin("a"),),
            space=room(0),
            busy=frozenset(),
        ),
        ["replace b"],
        id="what-is-replaced-in-this-plan-is-no-victim",
    ),
]


@pytest.mark.parametrize(("seen", "expected"), CASES)
def test_plan(seen, expected) -> None:
    assert words(seen) == expected


def test_a_new_mount_starts_on_its_copy() -> None:
    seen = observation([image("a")], cached=(cached("a"),))
    assert [action.backing for action in make_plan(seen).actions] == [FromCopy(cached("a"))]


def test_a_switch_to_the_source_says_which_generation_must_be_there() -> None:
    (switch,) = make_plan(observation([image("a")], [mounted("a", backing=CACHE)])).actions
    assert (switch.device, switch.backing) == ("loop-a", FromSource(image("a")))


def test_a_switch_to_the_cache_expects_no_generation() -> None:
    (switch,) = make_plan(observation(*on_source("a"), cached=(cached("a"),))).actions
    assert switch.backing == FromCopy(cached("a"))


def test_an_eviction_switches_its_reader_back_first() -> None:
    (evict,) = make_plan(with_pinned("a", "b", space=room(0))).actions
    assert (evict.image, evict.back_to, evict.despite) == (cached("b"), BackTo("loop-b", image("b")), frozenset())
    assert evict.reason == "nobody reads it, its room is needed by a, pinned by job:1"


def test_an_outdated_image_has_no_reader() -> None:
    (evict,) = make_plan(observation(cached=(cached("a"),))).actions
    assert (evict.back_to, evict.despite) == (None, None)


def test_the_larger_goes_first_of_two_that_were_used_together() -> None:
    seen = observation(
        [image("a"), image("b"), image("c", 20)],
        [mounted("a"), mounted("b", backing=CACHE), mounted("c", 20, backing=CACHE)],
        cached=(cached("b"), cached("c", 20)),
        pins=(pin("a"),),
        space=room(0),
        last_used_at={"b": 5.0, "c": 5.0},
    )
    assert words(seen) == ["evict c"]


def test_a_copy_names_all_its_holders() -> None:
    (stage,) = make_plan(observation(*on_source("a"), pins=(pin("a", 7), admin_pin("a")))).actions
    assert stage.reason == "pinned by job:7, administrator"


GB = 10**9


def beneath(top, below, *, image_version, pinned=False, failed=(), **rest):
    """`a` with a mount of version `below` beneath the one of version `top`; the source has `image_version`."""
    images = [image("a", version=image_version)] if image_version else []
    pins = (pin("a"),) if pinned else ()
    off = frozenset(("a", kind) for kind in failed)
    covered = {"a": mounted("a", version=below)}
    return observation(images, [mounted("a", version=top)], covered=covered, pins=pins, backing_off=off, **rest)


UNCOVER, UNMOUNT = ActionKind.UNCOVER, ActionKind.UNMOUNT
CUT_SHORT = [
    pytest.param(beneath(1, 2, image_version=2), ["uncover a"], id="the-newer-one-beneath-is-shown"),
    pytest.param(beneath(1, 2, image_version=2, pinned=True), [], id="pinned-keeps-the-older-one-on-top"),
    pytest.param(beneath(1, 1, image_version=1, pinned=True), ["uncover a"], id="a-mend-is-finished-though-pinned"),
    pytest.param(beneath(2, 1, image_version=2), ["unmount a"], id="an-older-one-beneath-goes-with-all"),
    pytest.param(
        beneath(2, 1, image_version=2, pinned=True), ["stage a"], id="an-older-one-beneath-stays-while-pinned"
    ),
    pytest.param(beneath(1, None, image_version=1), ["unmount a"], id="an-unknown-one-beneath-goes-with-all"),
    pytest.param(beneath(None, None, image_version=1, pinned=True), [], id="two-unknown-ones-are-not-the-same"),
    pytest.param(
        beneath(1, 2, image_version=2, failed=[UNCOVER]), ["unmount a"], id="what-is-sick-beneath-goes-with-all"
    ),
    pytest.param(
        beneath(1, 1, image_version=1, pinned=True, failed=[UNCOVER]), ["stage a"], id="sick-and-pinned-stays"
    ),
    pytest.param(beneath(1, 2, image_version=2, failed=[UNCOVER, UNMOUNT]), [], id="no-third-mount-is-put-there"),
    pytest.param(beneath(1, 2, image_version=None), ["unmount a"], id="removed-from-the-source-goes-with-all"),
    pytest.param(beneath(1, 2, image_version=None, complete=False), [], id="a-listing-that-failed-takes-nothing"),
    pytest.param(beneath(1, 2, image_version=2, busy=frozenset("a")), [], id="one-thing-at-a-time"),
]


@pytest.mark.parametrize(("seen", "expected"), CUT_SHORT)
def test_a_change_that_was_cut_short(seen, expected) -> None:
    assert words(seen) == expected
    for action in make_plan(seen).actions:
        if isinstance(action, Uncover):
            assert (action.despite is None) == (seen.covered["a"].generation_id == seen.mounted["a"].generation_id)
        if isinstance(action, Unmount):
            assert action.despite == frozenset()


PROBLEMS = [
    pytest.param(
        observation(*on_source("a", size=2 * GB), pins=(pin("a"),), space=room(GB)),
        ("does not fit: 2.0 GB, the capacity is 1.0 GB", False),
        id="larger-than-the-capacity-is-hopeless",
    ),
    pytest.param(
        observation(*on_source("a", size=2 * GB), pins=(pin("a"),), space=room(GB, used=5 * GB)),
        (
            "waits for room: needs 2.0 GB, 1.0 GB can be had now; "
            "the rest is pinned, in use, kept free, or taken by others",
            True,
        ),
        id="pinned-by-others-may-mend-itself",
    ),
    pytest.param(
        observation([image("a", version=2)], [mounted("a")], pins=(pin("a"),)),
        ("the source has a newer image; it is mounted when nobody pins the old one", False),
        id="a-newer-image-waits-for-the-last-pin",
    ),
    pytest.param(
        observation([], [mounted("a")], pins=(pin("a"),)),
        ("removed from the source; it stays while it is pinned", False),
        id="a-removed-image-stays-while-pinned",
    ),
]


@pytest.mark.parametrize(("seen", "expected"), PROBLEMS)
def test_problem(seen, expected) -> None:
    decided = make_plan(seen)
    problem = decided.problems["a"]
    assert (problem.text, problem.waiting_helps) == expected
    assert not decided.actions


def test_waiting_for_an_eviction_is_no_problem() -> None:
    assert not make_plan(with_pinned("a", "b", space=room(0))).problems


EVICTIONS = [
    pytest.param(observation(*on_source("a")), NotFoundError, "not cached", id="what-is-not-cached"),
    pytest.param(
        observation(*on_source("a"), cached=(cached("a"),), pins=(pin("a", 4), admin_pin("a"))),
        PinnedError,
        "pinned by job:4, administrator",
        id="what-is-pinned",
    ),
    pytest.param(
        observation(*on_source("a"), cached=(cached("a"),), busy=frozenset("a")),
        DaemonError,
        "under way",
        id="what-is-busy",
    ),
    pytest.param(
        observation([image("a", version=2)], [mounted("a", backing=CACHE)], cached=(cached("a"),)),
        DaemonError,
        "cannot take over",
        id="what-the-source-has-another-generation-of",
    ),
    pytest.param(
        observation([], [mounted("a", backing=CACHE)], cached=(cached("a", version=2), cached("a"))),
        DaemonError,
        "cannot take over",
        id="what-the-source-has-lost",
    ),
]


@pytest.mark.parametrize(("seen", "error", "match"), EVICTIONS)
def test_an_asked_for_eviction_refuses(seen, error, match) -> None:
    with pytest.raises(error, match=match):
        plan_eviction(seen, "a", "asked")


def test_an_asked_for_eviction_is_not_begun_under_a_pin_that_may_count() -> None:
    seen = observation(*on_cache("a")[:2], cached=(cached("a"),), undecided=frozenset("a"))
    with pytest.raises(PinnedError, match="not known"):
        plan_eviction(seen, "a", "asked")


def refused(dataset: str) -> dict[str, tuple[Pin, ...]]:
    return {"refused": (pin(dataset, 7), pin("z", 8))}


DESPITE = [
    pytest.param(
        observation([image("a", version=2)], [mounted("a")], **refused("a")),
        frozenset({"job:7"}),
        id="a-newer-image",
    ),
    pytest.param(observation([], [mounted("a")], **refused("a")), frozenset({"job:7"}), id="a-removed-one"),
    pytest.param(
        observation([image("a")], [mounted("a")], unwell={"a": "EIO"}, **refused("a")), None, id="a-mend-asks-nobody"
    ),
    pytest.param(
        observation(*on_cache("a")[:2], cached=(cached("a"),), space=room(-1, used=10), **refused("a")),
        frozenset({"job:7"}),
        id="an-eviction",
    ),
    pytest.param(
        observation(
            [image("a", version=2)],
            [mounted("a")],
            covered={"a": mounted("a", version=2)},
            **refused("a"),
        ),
        frozenset({"job:7"}),
        id="what-was-cut-short",
    ),
]


@pytest.mark.parametrize(("seen", "expected"), DESPITE)
def test_what_is_done_is_told_whose_pins_do_not_count(seen: Sketch, expected: frozenset[str] | None) -> None:
    (action,) = make_plan(seen).actions
    assert isinstance(action, Replace | Unmount | Uncover | Evict)
    assert action.despite == expected


def test_an_asked_for_eviction_switches_back_first() -> None:
    images, mounts, copies = on_cache("a")
    evict = plan_eviction(observation(images, mounts, cached=copies), "a", "asked")
    assert evict == Evict(copies[0], BackTo("loop-a", images[0]), "asked")


def test_an_asked_for_eviction_takes_the_copy_that_is_read() -> None:
    copies = (cached("a", version=1), cached("a", version=2))
    for order in (copies, copies[::-1]):
        for version in (1, 2):
            seen = observation(
                [image("a", version=version)], [mounted("a", version=version, backing=CACHE)], cached=order
            )
            assert plan_eviction(seen, "a", "asked").image == copies[version - 1]


# Properties: for any observation.


def of(kind, actions):
    return [action for action in actions if type(action) is kind]


def unwanted_bytes(decided, seen):
    """What is leaving, or starts to leave, without being a victim."""
    drops = sum(drop.staged.reserved_bytes for drop in of(DropStaged, decided.actions))
    return drops + sum(evict.image.size_bytes for evict in of(Evict, decided.actions) if evict.despite is None)


def needs(seen, stage):
    """What a copy takes beyond what its own left-over has already."""
    left = [
        part.reserved_bytes
        for part in seen.staged
        if (part.dataset, part.generation_id) == (stage.dataset, stage.image.generation.id)
    ]
    return max(0, stage.image.size_bytes - sum(left))


@given(observations())
def test_staging_stays_within_the_room(seen) -> None:
    stages = of(Stage, make_plan(seen).actions)
    assert sum(needs(seen, stage) for stage in stages) <= max(0, seen.space.room_bytes)
    if seen.space.room_bytes < 0:
        assert not stages


@given(observations())
def test_no_victim_is_pinned_or_read_without_its_source(seen) -> None:
    pinned = {each.dataset for each in seen.pins}
    for evict in of(Evict, make_plan(seen).actions):
        mount = seen.mounted.get(evict.dataset)
        if evict.despite is None:
            same = mount is not None and evict.image.generation_id == mount.generation_id
            assert not same or evict.image.path in seen.bad_copies
            assert mount is None or evict.image.path != mount.backing_path
            continue
        assert evict.dataset not in pinned
        if mount is not None and mount.backing_path == evict.image.path:
            assert evict.back_to is not None
            assert evict.back_to.device == mount.device
            assert evict.back_to.image.generation.id == mount.generation_id
        else:
            assert evict.back_to is None


@given(observations())
def test_every_victim_is_needed(seen) -> None:
    """Without the last victim, some wanted dataset would have gone short; with none needed there is none."""
    decided = make_plan(seen)
    victims = [evict for evict in of(Evict, decided.actions) if evict.despite is not None]
    if not victims:
        return
    have = {(copy.dataset, copy.generation_id) for copy in seen.cached if copy.path not in seen.bad_copies}
    names = {each.dataset for each in seen.pins} | {*decided.wishes.chosen}
    wanted = [seen.catalog.images[name] for name in names & seen.catalog.images.keys()]
    lacking = [each for each in wanted if (each.dataset, each.generation.id) not in have]
    demand = sum(needs(seen, Stage(each, "", preheat=True)) for each in lacking)
    supply = seen.space.room_bytes + seen.leaving_bytes + unwanted_bytes(decided, seen)
    assert supply + sum(victim.image.size_bytes for victim in victims[:-1]) < demand


@given(observations())
def test_at_most_one_action_a_dataset_beside_drops_and_evictions(seen) -> None:
    actions = [action for action in make_plan(seen).actions if not isinstance(action, DropStaged | Evict)]
    datasets = [action.dataset for action in actions]
    assert len(datasets) == len(set(datasets))


@given(observations())
def test_a_victim_has_no_other_action(seen) -> None:
    actions = make_plan(seen).actions
    victims = {action.dataset for action in of(Evict, actions) if action.despite is not None}
    others = [action for action in actions if not isinstance(action, DropStaged | Evict)]
    assert victims.isdisjoint(action.dataset for action in others)


@given(observations(), st.randoms(use_true_random=False))
def test_the_order_of_unordered_inputs_is_irrelevant(seen, random) -> None:
    def shuffled(values):
        return tuple(random.sample(list(values), len(values)))

    def reordered(mapping):
        return dict(shuffled(mapping.items()))

    other = dataclasses.replace(
        seen,
        catalog=dataclasses.replace(
            seen.catalog, images=reordered(seen.catalog.images), skipped=reordered(seen.catalog.skipped)
        ),
        mounted=reordered(seen.mounted),
        cached=shuffled(seen.cached),
        staged=shuffled(seen.staged),
        last_used_at=reordered(seen.last_used_at),
    )
    ours, theirs = make_plan(seen), make_plan(other)
    assert ours.problems == theirs.problems

    # The order among drops, or among outdated images, means nothing.
    def canonical(decided):
        loose = [action for action in decided.actions if isinstance(action, DropStaged | Evict)]
        return sorted(map(repr, loose)), [action for action in decided.actions if action not in loose]

    assert canonical(ours) == canonical(theirs)


@given(observations())
def test_what_is_busy_foreign_or_backing_off_is_left_alone(seen) -> None:
    for action in make_plan(seen).actions:
        if isinstance(action, DropStaged) and action.staged.under_way:
            continue  # stopping is what a busy dataset can still be asked for
        assert action.dataset not in seen.busy
        assert (action.dataset, action.kind) not in seen.backing_off
        if not isinstance(action, DropStaged):
            assert action.dataset not in seen.foreign


@given(observations())
def test_an_incomplete_listing_destroys_nothing(seen) -> None:
    seen = dataclasses.replace(seen, catalog=dataclasses.replace(seen.catalog, complete=False))
    for action in make_plan(seen).actions:
        assert not isinstance(action, Unmount | DropStaged)
        if isinstance(action, Evict) and action.despite is None:
            # Proof enough without a listing: the source is known to hold another generation.
            assert action.dataset in seen.catalog.images


HELD = [
    pytest.param(observation([image("a", version=2)], [mounted("a")]), id="a-newer-image"),
    pytest.param(observation([image("b")], [mounted("a"), mounted("b")]), id="removed-from-the-source"),
    pytest.param(
        observation([image("a")], [mounted("a", backing=CACHE)], cached=(cached("a"),), space=room(-10, used=10)),
        id="room-is-short",
    ),
    pytest.param(
        observation([image("a")], [mounted("a")], staged=(staged("a", under_way=True),)), id="a-copy-under-way"
    ),
]


@pytest.mark.parametrize("seen", HELD)
def test_a_dataset_with_a_pin_that_may_count_is_left_as_it_is(seen) -> None:
    assert len(words(seen)) == 1
    assert words(dataclasses.replace(seen, undecided=frozenset("a"))) == []


@given(observations(), st.frozensets(st.sampled_from(NAMES)))
def test_nothing_is_taken_from_a_dataset_with_a_pin_that_may_count(seen, undecided) -> None:
    seen = dataclasses.replace(seen, undecided=undecided)
    for action in make_plan(seen).actions:
        if action.dataset in undecided and action.dataset not in seen.catalog.revoked:
            assert not isinstance(action, DropStaged), action
            assert not isinstance(action, Unmount), action
            assert not isinstance(action, Replace) or isinstance(action, Mend), action
            assert not isinstance(action, Evict) or action.despite is None, action


@given(observations())
def test_nothing_is_replaced_or_unmounted_under_a_pin(seen) -> None:
    pinned = {each.dataset for each in seen.pins}
    for action in make_plan(seen).actions:
        if isinstance(action, Mend):
            assert action.image.generation.id == seen.mounted[action.dataset].generation_id
        elif isinstance(action, Uncover) and action.despite is None:
            assert seen.covered[action.dataset].generation_id == seen.mounted[action.dataset].generation_id
        elif isinstance(action, Replace | Uncover | Unmount):
            assert action.dataset not in pinned


@given(observations())
def test_only_the_mounted_generation_is_copied_and_switched_to(seen) -> None:
    generations = {copy.path: copy.generation_id for copy in seen.cached}
    for action in make_plan(seen).actions:
        if isinstance(action, Stage):
            assert action.image.generation.id == seen.mounted[action.dataset].generation_id
        if isinstance(action, Retarget):
            if isinstance(action.backing, FromSource):
                aimed = action.backing.image.generation.id
            else:
                aimed = action.backing.copy.generation_id
            assert aimed == seen.mounted[action.dataset].generation_id
        if isinstance(action, Mount) and action.backing.path in generations:
            assert generations[action.backing.path] == action.image.generation.id


@given(observations())
def test_every_action_says_why(seen) -> None:
    assert all(action.reason for action in make_plan(seen).actions)


@given(observations())
def test_a_plan_that_has_begun_evicts_nobody_else(seen) -> None:
    """While the victims of one plan are on their way out, the next plan chooses no others."""
    decided = make_plan(seen)
    evictions = of(Evict, decided.actions)
    started = {evict.dataset: evict for evict in reversed(evictions)}
    # One dataset's second copy waits for its first; the loop starts one at a time.
    if len(started) != len(evictions) or of(DropStaged, decided.actions):
        return
    later = dataclasses.replace(
        seen,
        busy=seen.busy | started.keys(),
        leaving=seen.leaving | started.keys(),
        leaving_bytes=seen.leaving_bytes + sum(evict.image.size_bytes for evict in evictions),
    )
    assert not of(Evict, make_plan(later).actions)


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        pytest.param({}, cached("a").path, id="on-its-copy"),
        pytest.param({cached("a").path: "EIO"}, image("a").path, id="on-the-source-when-the-copy-is-bad"),
    ],
)
def test_what_is_unwell_is_mounted_anew(bad, path) -> None:
    images, mounts, copies = on_cache("a")
    seen = observation(images, mounts, cached=copies, unwell={"a": "EIO"}, bad_copies=bad)
    (mend,) = make_plan(seen).actions
    assert (type(mend), mend.backing.path) == (Mend, path)
    assert "EIO" in mend.reason
    assert make_plan(seen).problems["a"].waiting_helps


def test_without_a_cache_directory_a_pinned_dataset_has_that_problem_and_no_wait() -> None:
    seen = observation(*on_source("a"), pins=(pin("a"),), space=room(0), cache_problem="/cache: cannot read it")
    decided = make_plan(seen)
    assert decided.actions == ()
    assert (decided.problems["a"].text, decided.problems["a"].waiting_helps) == ("/cache: cannot read it", False)


def test_what_a_job_waits_for_is_mounted_first_and_then_what_is_cached() -> None:
    seen = observation([image(name) for name in "abcde"], cached=(cached("c"), cached("e")), pins=(pin("d"), pin("e")))
    assert words(seen) == ["mount e", "mount d", "mount c", "mount a", "mount b"]
