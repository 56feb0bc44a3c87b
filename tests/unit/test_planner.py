"""The planner, put together: what an administrator asks for, the order of things, and what must hold for anything.

Tables of what is decided on one card are in test_moves, of how a disk is shared in test_share.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.actions import (
    Action,
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
from scratch_slurm.domain.errors import DaemonError, NotFoundError, PinnedError, ScratchError
from scratch_slurm.domain.model import Backing, CachedImage, MountedImage, SourceImage
from scratch_slurm.domain.planner import Plan
from tests.kit.sketch import Sketch, plan_eviction
from tests.kit.sketch import plan as make_plan
from tests.kit.strategies import NAMES, admin_pin, cached, image, mounted, observation, observations, pin, room, staged

CACHE = Backing.CACHE
Kind = TypeVar("Kind", bound=Action)


def words(seen: Sketch) -> list[str]:
    """The plan as `kind dataset` words, in order."""
    return [f"{action.kind} {action.dataset}" for action in make_plan(seen).actions]


def on_source(*datasets: str) -> tuple[list[SourceImage], list[MountedImage]]:
    """Datasets mounted from the source: (images, mounts)."""
    return [image(name) for name in datasets], [mounted(name) for name in datasets]


def on_cache(*datasets: str) -> tuple[list[SourceImage], list[MountedImage], tuple[CachedImage, ...]]:
    """Datasets mounted from the cache: (images, mounts, cached images)."""
    return (
        [image(name) for name in datasets],
        [mounted(name, backing=CACHE) for name in datasets],
        tuple(cached(name) for name in datasets),
    )


CASES = [
    pytest.param(observation(), [], id="nothing-there-nothing-to-do"),
    pytest.param(observation([image("b"), image("a")]), ["mount a", "mount b"], id="new-images-are-mounted-by-name"),
    pytest.param(
        observation([], [mounted("a", backing=CACHE)], cached=(cached("a"),)),
        ["unmount a"],
        id="gone-is-unmounted-before-it-is-evicted",
    ),
    pytest.param(
        observation(*on_cache("a")[:2], cached=(cached("a"),), bad_copies={cached("a").path: "EIO"}),
        ["retarget a"],
        id="a-bad-copy-that-is-read-stays-until-its-device-has-left-it",
    ),
    pytest.param(
        observation(*on_source("a"), cached=(cached("a"),), bad_copies={cached("a").path: "EIO"}, pins=(pin("a"),)),
        ["evict a"],
        id="a-bad-copy-goes-though-pinned-and-is-not-switched-to",
    ),
    pytest.param(
        observation([image("a")], [mounted("a", backing=CACHE)], pins=(pin("a"),)),
        ["retarget a"],
        id="a-deleted-copy-is-staged-again-only-after-the-switch",
    ),
    pytest.param(observation(*on_source("a"), pins=(admin_pin("a"),)), ["stage a"], id="an-administrator-s-pin-is-one"),
    pytest.param(
        observation(
            [image("a"), image("b", version=2), image("c")],
            [mounted("a"), mounted("b"), mounted("c", backing=CACHE), mounted("d")],
            cached=(cached("c"), cached("x")),
            staged=(staged("y"),),
            pins=(pin("a"),),
            space=room(0),
        ),
        ["drop y", "evict x", "replace b", "unmount d"],
        id="drops-evictions-mounts-and-room-that-comes-is-waited-for",
    ),
    pytest.param(
        observation(
            [image("a"), image("b"), image("c")],
            [mounted("a"), mounted("b")],
            cached=(cached("b"),),
            pins=(pin("a"),),
        ),
        ["mount c", "retarget b", "stage a"],
        id="mounts-then-switches-then-copies",
    ),
]


@pytest.mark.parametrize(("seen", "expected"), CASES)
def test_plan(seen: Sketch, expected: list[str]) -> None:
    assert words(seen) == expected


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
def test_an_asked_for_eviction_refuses(seen: Sketch, error: type[ScratchError], match: str) -> None:
    with pytest.raises(error, match=match):
        plan_eviction(seen, "a", "asked")


def test_an_asked_for_eviction_is_not_begun_under_a_pin_that_may_count() -> None:
    seen = observation(*on_cache("a")[:2], cached=(cached("a"),), undecided=frozenset("a"))
    with pytest.raises(PinnedError, match="not known"):
        plan_eviction(seen, "a", "asked")


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


def of(kind: type[Kind], actions: Iterable[Action]) -> list[Kind]:
    return [action for action in actions if type(action) is kind]


def unwanted_bytes(decided: Plan) -> int:
    """What is leaving, or starts to leave, without being a victim."""
    drops = sum(drop.staged.reserved_bytes for drop in of(DropStaged, decided.actions))
    return drops + sum(evict.image.size_bytes for evict in of(Evict, decided.actions) if evict.despite is None)


def needs(seen: Sketch, stage: Stage) -> int:
    """What a copy takes beyond what its own left-over has already."""
    left = [
        part.reserved_bytes
        for part in seen.staged
        if (part.dataset, part.generation_id) == (stage.dataset, stage.image.generation.id)
    ]
    return max(0, stage.image.size_bytes - sum(left))


@given(observations())
def test_staging_stays_within_the_room(seen: Sketch) -> None:
    stages = of(Stage, make_plan(seen).actions)
    assert sum(needs(seen, stage) for stage in stages) <= max(0, seen.space.room_bytes)
    if seen.space.room_bytes < 0:
        assert not stages


@given(observations())
def test_no_victim_is_pinned_or_read_without_its_source(seen: Sketch) -> None:
    pinned = {each.dataset for each in seen.pins}
    for evict in of(Evict, make_plan(seen).actions):
        mount = seen.mounted.get(evict.dataset)
        if evict.despite is None:
            same = mount is not None and evict.image.generation_id == mount.generation_id
            assert not same or evict.image.path in seen.bad_copies
            assert mount is None or not mount.reads(evict.image)
            continue
        assert evict.dataset not in pinned
        if mount is not None and mount.reads(evict.image):
            assert evict.back_to is not None
            assert evict.back_to.device == mount.device
            assert evict.back_to.image.generation.id == mount.generation_id
        else:
            assert evict.back_to is None


@given(observations())
def test_every_victim_is_needed(seen: Sketch) -> None:
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
    supply = seen.space.room_bytes + seen.leaving_bytes + unwanted_bytes(decided)
    assert supply + sum(victim.image.size_bytes for victim in victims[:-1]) < demand


@given(observations())
def test_at_most_one_action_a_dataset_beside_drops_and_evictions(seen: Sketch) -> None:
    actions = [action for action in make_plan(seen).actions if not isinstance(action, DropStaged | Evict)]
    datasets = [action.dataset for action in actions]
    assert len(datasets) == len(set(datasets))


@given(observations())
def test_a_victim_has_no_other_action(seen: Sketch) -> None:
    actions = make_plan(seen).actions
    victims = {action.dataset for action in of(Evict, actions) if action.despite is not None}
    others = [action for action in actions if not isinstance(action, DropStaged | Evict)]
    assert victims.isdisjoint(action.dataset for action in others)


@given(observations(), st.randoms(use_true_random=False))
def test_the_order_of_unordered_inputs_is_irrelevant(seen: Sketch, random: Random) -> None:
    def shuffled(values: Collection[Any]) -> tuple[Any, ...]:
        return tuple(random.sample(list(values), len(values)))

    def reordered(mapping: Mapping[str, Any]) -> dict[str, Any]:
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
    def canonical(decided: Plan) -> tuple[list[str], list[Action]]:
        loose = [action for action in decided.actions if isinstance(action, DropStaged | Evict)]
        return sorted(map(repr, loose)), [action for action in decided.actions if action not in loose]

    assert canonical(ours) == canonical(theirs)


@given(observations())
def test_what_is_busy_foreign_or_backing_off_is_left_alone(seen: Sketch) -> None:
    for action in make_plan(seen).actions:
        if isinstance(action, DropStaged) and action.staged.under_way:
            continue  # stopping is what a busy dataset can still be asked for
        assert action.dataset not in seen.busy
        assert (action.dataset, action.kind) not in seen.backing_off
        if not isinstance(action, DropStaged):
            assert action.dataset not in seen.foreign


@given(observations())
def test_an_incomplete_listing_destroys_nothing(seen: Sketch) -> None:
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
def test_a_dataset_with_a_pin_that_may_count_is_left_as_it_is(seen: Sketch) -> None:
    assert len(words(seen)) == 1
    assert words(dataclasses.replace(seen, undecided=frozenset("a"))) == []


@given(observations(), st.frozensets(st.sampled_from(NAMES)))
def test_nothing_is_taken_from_a_dataset_with_a_pin_that_may_count(seen: Sketch, undecided: frozenset[str]) -> None:
    seen = dataclasses.replace(seen, undecided=undecided)
    for action in make_plan(seen).actions:
        if action.dataset in undecided and action.dataset not in seen.catalog.revoked:
            assert not isinstance(action, DropStaged), action
            assert not isinstance(action, Unmount), action
            assert not isinstance(action, Replace) or isinstance(action, Mend), action
            assert not isinstance(action, Evict) or action.despite is None, action


@given(observations())
def test_nothing_is_replaced_or_unmounted_under_a_pin(seen: Sketch) -> None:
    pinned = {each.dataset for each in seen.pins}
    for action in make_plan(seen).actions:
        if isinstance(action, Mend):
            assert action.image.generation.id == seen.mounted[action.dataset].generation_id
        elif isinstance(action, Uncover) and action.despite is None:
            assert seen.covered[action.dataset].generation_id == seen.mounted[action.dataset].generation_id
        elif isinstance(action, Replace | Uncover | Unmount):
            assert action.dataset not in pinned


@given(observations())
def test_only_the_mounted_generation_is_copied_and_switched_to(seen: Sketch) -> None:
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
        if isinstance(action, Mount) and isinstance(action.backing, FromCopy):
            assert generations[action.backing.copy.path] == action.image.generation.id


@given(observations())
def test_every_action_says_why(seen: Sketch) -> None:
    assert all(action.reason for action in make_plan(seen).actions)


@given(observations())
def test_a_plan_that_has_begun_evicts_nobody_else(seen: Sketch) -> None:
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
    ("bad", "expected"),
    [
        pytest.param({}, (Mend, FromCopy(cached("a"))), id="on-its-copy"),
        pytest.param(
            {cached("a").path: "EIO"}, (Retarget, FromSource(image("a"))), id="after-its-device-left-the-bad-copy"
        ),
    ],
)
def test_what_is_unwell_is_mounted_anew(bad: dict[str, str], expected: tuple[type, FromSource | FromCopy]) -> None:
    images, mounts, copies = on_cache("a")
    seen = observation(images, mounts, cached=copies, unwell={"a": "EIO"}, bad_copies=bad)
    (mend,) = make_plan(seen).actions
    assert isinstance(mend, Mend | Retarget)
    kind, backing = expected
    assert type(mend) is kind and mend.backing == backing
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
