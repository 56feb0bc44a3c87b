"""What the daemon says of each dataset, from one round and from what it remembers."""

import dataclasses
from dataclasses import replace
from functools import partial

import pytest
from msgspec import structs

from scratch_slurm.domain.about import About
from scratch_slurm.domain.access import Person, may_read
from scratch_slurm.domain.actions import ActionKind, Evict, Mount, Replace, Stage, Unmount
from scratch_slurm.domain.backing import FromSource
from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.dataset import Card, Staging, UnderWay, fail
from scratch_slurm.domain.messages import DatasetState, DatasetStatus
from scratch_slurm.domain.model import Backing, Catalog, Permissions
from scratch_slurm.domain.planner import plan_cards
from scratch_slurm.domain.throughput import ReadCounter
from scratch_slurm.service.rounds import Snapshot
from scratch_slurm.service.status import StatusView
from tests.kit.sketch import cards_of
from tests.kit.strategies import admin_pin, cached, image, mounted, observation, pin, room

CONFIG = build_config({"source_dir": "/source", "cache_dir": "/cache"}, origin="test", host_name="node1")
NOW, MONOTONIC = 1_000_000.0, 5000.0
CACHE = Backing.CACHE


def view_of(seen, of_a=None, permissions=None, counters=None):
    """The view of a sketched node.

    Args:
        of_a: what else is on the card of `a`, by field.
        permissions: dataset -> who may read it.
    """
    cards, node = cards_of(seen)
    plan = plan_cards(cards, node)
    if of_a:
        cards["a"] = structs.replace(cards.get("a", Card("a")), **of_a)
    for name, readers in (permissions or {}).items():
        cards[name] = structs.replace(cards[name], permissions=readers)
    return StatusView(cards, Snapshot(node, plan, seen.catalog), counters or {}, CONFIG.mount_dir, MONOTONIC)


def copying(*, started=True, size=1000, done=0):
    """A copy of `a` under way, or waiting for its turn; it began ten seconds ago."""
    staging = Staging(image("a", size), "/cache", started_at=MONOTONIC - 10 if started else None)
    staging = staging.progress(0, "copying").progress(done, "copying")
    return {"under_way": UnderWay(Stage(staging.image, "pinned", True), staging=staging)}


def failed(kind=ActionKind.STAGE):
    return {"failures": {kind: fail(None, "disk full", MONOTONIC)}}


ON_SOURCE = observation([image("a")], [mounted("a")])
ON_CACHE = observation([image("a")], [mounted("a", backing=CACHE)], cached=(cached("a"),))
ASKED = observation([image("a")], [mounted("a")], pins=(pin("a"),))
TOO_LARGE = observation([image("a", 20)], [mounted("a", 20)], pins=(pin("a"),), space=room(10))
FULL = observation([image("a")], [mounted("a")], pins=(pin("a"),), space=room(0, used=50))
NEWER = observation([image("a", version=2)], [mounted("a")], pins=(pin("a"),))
SKIPPED = observation(skipped=["a"])
UNLISTED = replace(observation(), catalog=Catalog({}, {}, False, doubt="/source has not been listed yet: it hangs"))
AWAITED = replace(
    observation(), catalog=replace(UNLISTED.catalog, doubt="/source has not been listed yet", awaited=True)
)
NEW = observation([image("a")])
FOREIGN = observation([image("a")], foreign=frozenset("a"), pins=(pin("a"),))

STATES = [
    # What is seen and remembered; the state; whether a job's start need not wait any longer.
    pytest.param(ON_CACHE, None, DatasetState.CACHED, True, id="read-from-the-cache"),
    pytest.param(ON_SOURCE, None, DatasetState.SOURCE, False, id="read-from-the-source"),
    pytest.param(ASKED, None, DatasetState.QUEUED, False, id="pinned-and-not-begun"),
    pytest.param(ASKED, copying(started=False), DatasetState.QUEUED, False, id="pinned-and-waiting-for-its-turn"),
    pytest.param(ASKED, copying(), DatasetState.STAGING, False, id="a-copy-under-way"),
    pytest.param(ON_SOURCE, copying(), DatasetState.STAGING, False, id="a-copy-that-nobody-pins"),
    pytest.param(ASKED, failed(), DatasetState.QUEUED, True, id="a-copy-that-failed"),
    pytest.param(TOO_LARGE, None, DatasetState.SOURCE, True, id="what-never-fits"),
    pytest.param(FULL, None, DatasetState.QUEUED, False, id="what-may-fit-later"),
    pytest.param(NEWER, None, DatasetState.SOURCE, True, id="a-newer-image-waits"),
    pytest.param(observation([image("a")]), None, DatasetState.UNMOUNTED, False, id="about-to-be-mounted"),
    pytest.param(
        observation([image("a")]), failed(ActionKind.MOUNT), DatasetState.UNMOUNTED, True, id="a-mount-that-failed"
    ),
    pytest.param(SKIPPED, None, DatasetState.UNMOUNTED, True, id="a-bad-image"),
    pytest.param(AWAITED, None, DatasetState.UNKNOWN, False, id="the-first-listing-is-under-way"),
    pytest.param(UNLISTED, None, DatasetState.UNKNOWN, True, id="the-source-cannot-be-listed"),
    pytest.param(FOREIGN, None, DatasetState.UNMOUNTED, True, id="a-mount-of-others"),
    pytest.param(
        observation(cached=(cached("a"),)), None, DatasetState.UNMOUNTED, False, id="cached-but-not-listed-yet"
    ),
    pytest.param(observation(), None, DatasetState.UNKNOWN, True, id="never-heard-of"),
    pytest.param(observation(pins=(pin("a"),)), None, DatasetState.UNKNOWN, True, id="pinned-but-never-heard-of"),
]


def test_a_job_does_not_wait_for_room_that_its_own_datasets_take_whoever_else_asks_for_one_of_them() -> None:
    names = ("a", "b", "c")
    seen = observation(
        [image(name, 40) for name in names],
        [mounted(name, 40, backing=Backing.CACHE if name != "c" else Backing.SOURCE) for name in names],
        cached=(cached("a", 40), cached("b", 40)),
        pins=(pin("a"), pin("b"), pin("c"), pin("c", 2)),
        space=room(20, used=80),
    )
    view = view_of(seen)
    assert view.is_settled("c", names)
    assert not view.is_settled("c", ["c"])
    assert all(view.is_settled(name, names) for name in ("a", "b"))


@pytest.mark.parametrize(("seen", "of_a", "state", "settled"), STATES)
def test_state(seen, of_a, state, settled) -> None:
    view = view_of(seen, of_a)
    assert view.dataset("a").state is state
    assert view.is_settled("a") == settled


PROBLEMS = [
    pytest.param(ON_CACHE, None, "", id="all-is-well"),
    pytest.param(ASKED, None, "", id="waiting-is-no-problem"),
    pytest.param(ASKED, failed(), "stage failed: disk full; next try in 5 s", id="a-failure"),
    pytest.param(TOO_LARGE, None, "does not fit: 20 B, the capacity is 10 B", id="too-large"),
    pytest.param(SKIPPED, None, "skipped: a.squashfs is cut short", id="a-bad-image"),
    pytest.param(
        FOREIGN, None, "/datasets/a carries a mount that is not ours; it is left alone", id="a-mount-of-others"
    ),
    pytest.param(observation(), None, "no such dataset on this node", id="unknown"),
    pytest.param(AWAITED, None, "not known yet: /source has not been listed yet", id="the-first-listing-is-under-way"),
    pytest.param(
        UNLISTED, None, "not known yet: /source has not been listed yet: it hangs", id="the-source-cannot-be-listed"
    ),
    pytest.param(
        observation([image("aa")]), None, "no such dataset on this node; did you mean aa?", id="unknown-with-a-near-one"
    ),
    pytest.param(
        observation([image("a", version=2)], [mounted("a")], pins=(pin("a"),)),
        failed(ActionKind.RETARGET),
        "retarget failed: disk full; next try in 5 s; "
        "the source has a newer image; it is mounted when nobody pins the old one",
        id="several-at-once",
    ),
]


@pytest.mark.parametrize(("seen", "of_a", "text"), PROBLEMS)
def test_problem(seen, of_a, text) -> None:
    assert view_of(seen, of_a).dataset("a").problem == text


def test_what_hangs_says_since_when() -> None:
    problem = view_of(ON_SOURCE, {"under_way": UnderWay(hanging_since=NOW - 60)}).dataset("a").problem
    assert problem.startswith("gives no answer since ") and problem.count(":") == 2


def test_a_cached_dataset_in_figures() -> None:
    counter = ReadCounter(600.0)
    for at, read, backing in ((-40, 0, Backing.SOURCE), (-30, 5, Backing.SOURCE), (0, 3005, CACHE)):
        counter.sample(MONOTONIC + at, "loop-a", read, backing)
    seen = observation(
        [image("a", 300)],
        [mounted("a", 300, backing=CACHE)],
        cached=(cached("a", 300), cached("a", 200, version=2)),
        pins=(pin("a", 8), admin_pin("a"), pin("a", 7), pin("b", 9)),
    )
    status = view_of(seen, {"reads": counter.reads(MONOTONIC)}, counters={"a": counter}).dataset("a")
    assert (status.size_bytes, status.cached_bytes, status.staged_bytes) == (300, 500, 0)
    assert (status.use_count, status.holders) == (2, ("job:8", "administrator", "job:7"))
    assert (status.source_read_bytes, status.cache_read_bytes) == (5, 3000)
    assert status.read_bytes_per_s == pytest.approx(100.0)
    assert (status.path, status.update_waiting, status.eta_s) == ("/datasets/a", False, None)


def test_a_copy_in_figures() -> None:
    status = view_of(ASKED, copying(size=1000, done=250)).dataset("a")
    assert (status.staged_bytes, status.stage_bytes_per_s, status.eta_s) == (250, 25.0, 30.0)


def test_a_copy_that_does_not_move_has_no_end() -> None:
    assert view_of(ASKED, copying(done=0)).dataset("a").eta_s is None


def test_a_copy_that_waits_has_no_speed() -> None:
    status = view_of(ASKED, copying(started=False)).dataset("a")
    assert (status.stage_bytes_per_s, status.eta_s) == (0.0, None)


@pytest.mark.parametrize(
    ("seen", "waiting"),
    [
        (ON_SOURCE, False),
        (NEWER, True),
        (observation([image("a", version=2)], [mounted("a", version=None)]), False),
        (observation([], [mounted("a")]), False),
        (observation([image("a")]), False),
    ],
    ids=["the-same", "newer", "not-known-which", "removed", "not-mounted"],
)
def test_an_update_waits(seen, waiting) -> None:
    assert view_of(seen).dataset("a").update_waiting is waiting


def test_a_dataset_that_the_source_lost_keeps_the_size_of_its_copy() -> None:
    seen = observation([], [mounted("a", 70, backing=CACHE)], cached=(cached("a", 70),), pins=(pin("a"),))
    assert view_of(seen).dataset("a").size_bytes == 70


def test_what_is_not_mounted_has_no_path() -> None:
    assert view_of(observation([image("a")])).dataset("a").path == ""


def test_all_names_are_told_sorted() -> None:
    seen = observation(
        [image("d")], [mounted("c")], skipped=["b"], cached=(cached("a"),), pins=(pin("e"),), foreign=frozenset("d")
    )
    assert view_of(seen).names() == ["a", "b", "c", "d", "e"]
    assert view_of(seen).names(STRANGER) == ["a", "b", "c", "d"], "what is only asked for is told to root alone"


STRANGER = partial(may_read, Person(12345, frozenset((12345,))))
WITHOUT_GROUPS = partial(may_read, Person(12345, None))
ROOT = partial(may_read, Person(0, frozenset((0,))))
PUBLIC, FOR_STAFF = Permissions(0, 50, 0o644), Permissions(0, 50, 0o640)
CACHED_ALONE = observation(cached=(cached("a"),), pins=(pin("a"),), complete=False)

TOLD = [
    # What is seen; who may read it, as far as known; who asks; whether all is told; whether it may be told soon.
    pytest.param(ON_CACHE, {"a": PUBLIC}, STRANGER, True, False, id="public"),
    pytest.param(ON_CACHE, {"a": PUBLIC}, WITHOUT_GROUPS, True, False, id="public-and-groups-do-not-matter"),
    pytest.param(ON_CACHE, {"a": FOR_STAFF}, STRANGER, False, False, id="private"),
    pytest.param(ON_CACHE, {"a": FOR_STAFF}, WITHOUT_GROUPS, None, True, id="private-and-groups-are-not-known"),
    pytest.param(ON_CACHE, {"a": FOR_STAFF}, ROOT, True, False, id="private-and-root-asks"),
    pytest.param(ON_CACHE, {}, STRANGER, None, True, id="mounted-and-not-known-yet"),
    pytest.param(ON_CACHE, {}, ROOT, True, False, id="not-known-and-root-asks"),
    pytest.param(CACHED_ALONE, {}, STRANGER, None, True, id="a-copy-without-a-listing"),
    pytest.param(SKIPPED, {}, STRANGER, None, False, id="an-image-that-cannot-be-looked-at"),
    pytest.param(SKIPPED, {"a": PUBLIC}, STRANGER, True, False, id="a-bad-image"),
    pytest.param(observation(pins=(pin("a"),)), {}, STRANGER, True, False, id="a-name-of-nothing"),
]


@pytest.mark.parametrize(("seen", "permissions", "judge", "permits", "soon"), TOLD)
def test_what_is_not_known_is_private(seen, permissions, judge, permits, soon) -> None:
    view = view_of(seen, permissions=permissions)
    assert (view.permits("a", judge), view.awaits_verdict("a", judge)) == (permits, soon)
    told = view.dataset_for("a", judge)
    if permits:
        assert told.state is view.dataset("a").state
    else:
        assert told == DatasetStatus("a", DatasetState.PRIVATE)


def test_of_a_name_of_nothing_strangers_are_not_told_who_asks_for_it() -> None:
    view = view_of(observation(pins=(pin("a"),)))
    assert view.dataset_for("a", STRANGER).holders == ()
    assert view.dataset_for("a", ROOT).holders == ("job:1",)


def test_the_nearest_names_are_those_that_the_reader_may_know() -> None:
    view = view_of(
        observation([image("imagenet"), image("imagenot")]), permissions={"imagenet": PUBLIC, "imagenot": FOR_STAFF}
    )
    assert view.dataset_for("imagene", STRANGER).problem.endswith("did you mean imagenet?")
    assert "imagenot" in view.dataset_for("imagene", ROOT).problem


HANDS = [
    pytest.param(Mount(image("a"), FromSource(image("a")), "new"), True, id="mount"),
    pytest.param(Replace(image("a"), FromSource(image("a")), "newer"), True, id="replace"),
    pytest.param(Unmount("a", "gone"), True, id="unmount"),
    pytest.param(Stage(image("a"), "pinned", True), False, id="stage"),
    pytest.param(Evict(cached("a"), None, "room"), True, id="evict"),
]


@pytest.mark.parametrize(("action", "changing"), HANDS)
def test_a_mount_changes_hands(action, changing) -> None:
    view = view_of(ON_SOURCE, {"under_way": UnderWay(action)})
    assert (view.is_changing_hands("a"), view.is_changing_hands("b")) == (changing, False)


def test_what_is_about_to_be_mounted_or_may_be_listed_in_a_moment_changes_hands() -> None:
    assert view_of(NEW).is_changing_hands("a"), "a mount waits for its turn"
    assert view_of(AWAITED).is_changing_hands("a")
    assert not view_of(UNLISTED).is_changing_hands("a")
    assert not view_of(NEW).is_changing_hands("b")


def test_what_a_manifest_says_is_told_to_those_that_may_read_the_dataset() -> None:
    said = About(description="photographs", licence="CC-BY-4.0")
    view = view_of(observation([dataclasses.replace(image("a"), about=said)]), permissions={"a": FOR_STAFF})
    assert view.dataset_for("a", ROOT).about == said
    assert view.dataset_for("a", STRANGER).about == About()
