"""The planner and what is hot: who is staged for its throughput, who makes room, and that it comes to rest."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.actions import ActionKind, DropStaged, Evict, Retarget, Stage, StagedImage
from scratch_slurm.domain.model import Backing, Space
from tests.kit.sketch import Sketch
from tests.kit.sketch import plan as make_plan
from tests.kit.strategies import (
    PLENTY,
    cached,
    image,
    mounted,
    observation,
    observations,
    pin,
    rates,
    room,
    staged,
)

CACHE = Backing.CACHE
GB = 10**9


def words(seen: Sketch) -> list[str]:
    return [f"{action.kind} {action.dataset}" for action in make_plan(seen).actions]


def node(
    source: str = "", cache: str = "", size: int = 10, reads: Mapping[str, float] | None = None, **rest: Any
) -> Sketch:
    """Datasets of one size on the source and in the cache, read as `reads` says in bytes over the horizon."""
    return observation(
        [image(name, size) for name in source + cache],
        [
            *(mounted(name, size) for name in source),
            *(mounted(name, size, backing=CACHE) for name in cache),
        ],
        **{"cached": tuple(cached(name, size) for name in cache), "bytes_per_s": rates(reads or {}), **rest},
    )


def under_way(dataset: str, done: int = 0, size: int = 10) -> StagedImage:
    return dataclasses.replace(staged(dataset, size, under_way=True), done_bytes=done)


CASES = [
    # Who is staged.
    pytest.param(node("a", reads={"a": 11}), ["stage a"], id="hot-is-staged"),
    pytest.param(node("a", reads={"a": 10}), [], id="what-does-not-pay-is-not"),
    pytest.param(node("ab", reads={"a": 20, "b": 30}), ["stage b", "stage a"], id="the-hottest-per-byte-first"),
    pytest.param(
        node("ab", reads={"b": 9999}, pins=(pin("a"),)), ["stage a", "stage b"], id="the-pinned-before-the-hottest"
    ),
    pytest.param(node("ab", reads={"a": 20, "b": 30}, space=room(10)), ["stage b"], id="one-fits-the-hotter-goes"),
    pytest.param(node("a", reads={"a": 99}, space=room(9)), [], id="what-does-not-fit-is-not"),
    pytest.param(
        node("a", reads={"a": 99}, backing_off=frozenset({("a", ActionKind.STAGE)})), [], id="what-failed-waits"
    ),
    pytest.param(
        node("ab", reads={"a": 99, "b": 20}, space=room(10), backing_off=frozenset({("a", ActionKind.STAGE)})),
        ["stage b"],
        id="what-failed-holds-no-room-from-others",
    ),
    pytest.param(
        observation([image("a")], bytes_per_s=rates({"a": 99})), ["mount a"], id="what-is-not-mounted-is-not-staged-yet"
    ),
    pytest.param(node("a", reads={"a": 99}, foreign=frozenset("a")), [], id="a-foreign-mount-is-not-served"),
    pytest.param(
        observation([image("a", version=2)], [mounted("a")], bytes_per_s=rates({"a": 99})),
        ["replace a"],
        id="an-old-generation-is-not-staged",
    ),
    # Who makes room for it.
    pytest.param(node("a", "b", reads={"a": 99}, space=room(0)), ["evict b"], id="hot-displaces-idle"),
    pytest.param(node("a", "b", reads={"a": 99}, space=room(10)), ["stage a"], id="but-not-while-there-is-room"),
    pytest.param(node("a", "b", reads={"a": 10}, space=room(0)), [], id="what-does-not-pay-displaces-nobody"),
    pytest.param(
        node("a", "bc", reads={"a": 99, "b": 1}, space=room(0)), ["evict c"], id="the-idle-one-goes-before-the-read-one"
    ),
    pytest.param(
        node("a", "bc", reads={"a": 99}, space=room(0), last_used_at={"b": 1.0, "c": 2.0}),
        ["evict b"],
        id="of-two-idle-ones-the-longest-idle",
    ),
    pytest.param(
        node("a", "b", reads={"a": 30, "b": 19}, space=room(0)),
        ["evict b"],
        id="hot-displaces-less-hot-if-the-gain-exceeds-its-copy",
    ),
    pytest.param(
        node("a", "b", reads={"a": 30, "b": 21}, space=room(0)), [], id="and-not-if-the-gain-is-less-than-its-copy"
    ),
    pytest.param(node("a", "b", reads={"a": 30, "b": 20}, space=room(0)), [], id="nor-if-it-is-just-its-copy"),
    pytest.param(
        node("a", "b", reads={"b": 9999}, pins=(pin("a"),), space=room(0)), ["evict b"], id="pinned-displaces-hot"
    ),
    pytest.param(
        node("a", "bc", reads={"b": 9999}, pins=(pin("a"),), space=room(0)), ["evict c"], id="but-idle-before-hot"
    ),
    pytest.param(
        node("a", "b", reads={"a": 9999}, pins=(pin("b"),), space=room(0)), [], id="hot-does-not-displace-pinned"
    ),
    pytest.param(
        node("ab", "c", reads={"b": 9999}, pins=(pin("a"),), space=room(0)),
        ["evict c"],
        id="the-room-of-the-idle-goes-to-the-pinned",
    ),
    pytest.param(
        node("a", "b", reads={"a": 99}, space=room(0), busy=frozenset("b"), leaving=frozenset("b"), leaving_bytes=10),
        [],
        id="an-eviction-under-way-is-waited-for",
    ),
    # Copies under way.
    pytest.param(
        node("a", reads={"a": 99}, staged=(under_way("a"),), busy=frozenset("a")), [], id="a-copy-that-pays-goes-on"
    ),
    pytest.param(
        node("a", reads={"a": 9}, staged=(under_way("a"),), busy=frozenset("a")),
        ["drop a"],
        id="a-copy-that-no-longer-pays-is-stopped",
    ),
    pytest.param(
        node("a", reads={"a": 9}, staged=(under_way("a", done=2),), busy=frozenset("a")),
        [],
        id="a-copy-costs-only-what-is-left-of-it",
    ),
    pytest.param(
        node("a", reads={"a": 9}, pins=(pin("a"),), staged=(under_way("a"),), busy=frozenset("a")),
        [],
        id="a-pinned-copy-goes-on-whatever-it-saves",
    ),
    pytest.param(
        node(
            "ab",
            reads={"a": 20},
            pins=(pin("b"),),
            staged=(under_way("a"),),
            busy=frozenset("a"),
            space=room(0, used=10),
        ),
        ["drop a"],
        id="a-copy-for-throughput-gives-way-to-a-pin",
    ),
    pytest.param(
        node("ab", reads={"a": 20, "b": 99}, staged=(under_way("a"),), busy=frozenset("a"), space=room(0, used=10)),
        ["drop a"],
        id="a-copy-gives-way-to-a-hotter-one",
    ),
    pytest.param(
        node("ab", reads={"a": 20, "b": 24}, staged=(under_way("a", 5),), busy=frozenset("a"), space=room(0, used=10)),
        [],
        id="but-not-to-a-little-hotter-one-when-half-is-done",
    ),
    pytest.param(
        node("a", reads={"a": 99}, staged=(staged("a"),), backing_off=frozenset({("a", ActionKind.STAGE)})),
        [],
        id="what-a-failed-copy-has-is-kept-for-its-retry",
    ),
    pytest.param(
        node("a", staged=(staged("a"),), backing_off=frozenset({("a", ActionKind.STAGE)})),
        ["drop a"],
        id="but-not-when-nobody-reads-it-any-more",
    ),
    pytest.param(
        node("a", reads={"a": 99}, staged=(staged("a"),), space=room(0, used=10)),
        ["stage a"],
        id="a-left-over-copy-goes-on-in-its-own-room",
    ),
    # Less room than there was.
    pytest.param(
        node("", "abc", reads={"a": 1, "b": 20}, space=room(-5, used=30)),
        ["evict c"],
        id="shrinking-takes-the-idle-first",
    ),
    pytest.param(
        node("", "abc", reads={"a": 1, "b": 20}, space=room(-15, used=30)),
        ["evict c", "evict a"],
        id="then-the-least-valuable",
    ),
    pytest.param(
        node("", "abc", reads={"a": 1, "b": 20}, pins=(pin("c"),), space=room(-5, used=30)),
        ["evict a"],
        id="shrinking-never-takes-the-pinned",
    ),
    pytest.param(
        node("", "ab", pins=(pin("a"), pin("b", 2)), space=room(-5, used=20)), [], id="and-takes-nobody-if-all-are"
    ),
    pytest.param(
        node("", "ab", reads={"b": 9}, space=Space(100, 10, 20, 4)),
        ["evict a"],
        id="others-fill-the-disk-and-the-cache-shrinks",
    ),
    pytest.param(
        node(
            "",
            "ab",
            reads={"b": 9},
            space=Space(100, 10, 20, 4),
            busy=frozenset("a"),
            leaving=frozenset("a"),
            leaving_bytes=10,
        ),
        [],
        id="shrinking-waits-for-what-is-leaving",
    ),
    pytest.param(
        node("a", "b", reads={"a": 99}, space=Space(100, 10, 10, 4)),
        ["evict b"],
        id="hot-or-not-a-full-disk-stages-nothing",
    ),
]


@pytest.mark.parametrize(("seen", "expected"), CASES)
def test_plan(seen: Sketch, expected: list[str]) -> None:
    assert words(seen) == expected


REASONS = [
    pytest.param(
        node("a", reads={"a": 30 * GB}, size=10 * GB), "saves 30.0 GB over 30 min, its copy reads 10.0 GB", id="staged"
    ),
    pytest.param(
        node("a", reads={"a": 9 * GB}, size=10 * GB, staged=(under_way("a", size=10 * GB),), busy=frozenset("a")),
        "saves 9.0 GB over 30 min, less than the 10.0 GB that its copy reads",
        id="stopped",
    ),
    pytest.param(
        node("a", "b", reads={"a": 30 * GB}, size=10 * GB, space=room(0)),
        "nobody reads it, its room is needed by a",
        id="evicted-for-what-is-hot",
    ),
    pytest.param(
        node("a", "b", reads={"b": 5 * GB}, size=10 * GB, pins=(pin("a"),), space=room(0)),
        "saves 5.0 GB over 30 min, its room is needed by a, pinned by job:1",
        id="evicted-for-a-pin",
    ),
    pytest.param(
        node(
            "a",
            "b",
            reads={"a": 99 * GB, "b": 5 * GB},
            streak_bytes={"a": 9 * GB, "b": 1},
            size=10 * GB,
            space=room(0),
        ),
        "saves 5.0 GB over 30 min, its room is needed by a",
        id="evicted-for-what-has-proved-itself",
    ),
    pytest.param(
        node(
            "a",
            "b",
            reads={"a": 99 * GB, "b": 50 * GB},
            streak_bytes={"a": 9 * GB, "b": 3 * GB},
            size=10 * GB,
            pins=(pin("a"),),
            space=room(0),
        ),
        "saves 13.0 GB, what it was read so far and once more, its room is needed by a, pinned by job:1",
        id="evicted-though-read-since-a-moment-ago",
    ),
    pytest.param(
        node("", "b", reads={"b": 5 * GB}, size=10 * GB, space=Space(50 * GB, 4 * GB, 10 * GB, 3 * GB)),
        "saves 5.0 GB over 30 min, others fill the disk: 3.0 GB free, 4.0 GB must stay so",
        id="evicted-for-the-reserve",
    ),
    pytest.param(
        node("", "b", size=10 * GB, space=room(-GB, used=10 * GB)),
        "nobody reads it, the capacity is 9.0 GB",
        id="evicted-for-the-capacity",
    ),
]


@pytest.mark.parametrize(("seen", "reason"), REASONS)
def test_a_reason(seen: Sketch, reason: str) -> None:
    (action,) = make_plan(seen).actions
    assert action.reason == reason


def test_drops_and_copies_at_once_do_not_exceed_the_capacity() -> None:
    """The ancestor's fault: it copied into room that was still to come free."""
    seen = node("ab", "cd", reads={"a": 99, "b": 99}, space=room(5, used=20))
    assert words(seen) == ["evict c", "evict d"]
    half_way = node(
        "abc",
        "d",
        reads={"a": 99, "b": 99},
        space=room(15, used=10),
        busy=frozenset("d"),
        leaving=frozenset("d"),
        leaving_bytes=10,
    )
    assert words(half_way) == ["stage a"]


def test_a_set_by_rounding_over_the_capacity_is_not_wished_for() -> None:
    """The ancestor's fault: sizes in thousandths of the capacity, rounded down, add up to more than it."""
    names = [f"d{number:04}" for number in range(1100)]
    size = 2**30
    seen = observation(
        [image(name, size) for name in names],
        [mounted(name, size) for name in names],
        bytes_per_s=rates(dict.fromkeys(names, 9 * size)),
        space=room(1000 * size - 1),
    )
    decided = make_plan(seen)
    assert len(decided.wishes.chosen) == 999
    stages = [action for action in decided.actions if isinstance(action, Stage)]
    assert len(stages) == len(decided.actions)
    assert sum(stage.image.size_bytes for stage in stages) <= seen.space.room_bytes


# Properties: for any observation.


@given(observations())
def test_nothing_is_staged_for_its_throughput_that_does_not_pay(seen: Sketch) -> None:
    pinned = {each.dataset for each in seen.pins}
    for action in make_plan(seen).actions:
        if isinstance(action, Stage) and action.dataset not in pinned:
            assert not action.preheat
            assert seen.bytes_per_s[action.dataset] * seen.horizon_s > action.image.size_bytes - sum(
                part.done_bytes for part in seen.staged if part.dataset == action.dataset
            )


@given(observations())
def test_what_is_chosen_is_no_victim(seen: Sketch) -> None:
    decided = make_plan(seen)
    for action in decided.actions:
        if isinstance(action, Evict) and action.despite is not None:
            assert action.dataset not in decided.wishes.chosen


@given(observations())
def test_the_wishes_share_the_capacity(seen: Sketch) -> None:
    """All that is chosen fits beside what is pinned and cached, even if everything else had to go."""
    decided = make_plan(seen)
    space = seen.space
    everything = space.used_bytes + space.room_bytes + seen.leaving_bytes
    pinned = {each.dataset for each in seen.pins}
    kept = sum(
        verdict.size_bytes
        for name, verdict in decided.wishes.verdicts.items()
        if name in decided.wishes.chosen or (name in pinned and verdict.cached)
    )
    if decided.wishes.chosen:
        assert kept <= everything


# A small world in which every action succeeds, some of them later; rates stay as they are.


@dataclasses.dataclass
class World:
    sizes: dict[str, int]
    rates: dict[str, float]
    pinned: tuple[str, ...]
    capacity: int
    cached: set[str]
    copying: dict[str, int]
    """Dataset -> bytes done."""
    reading: dict[str, int]
    """Dataset -> bytes read since its reading began."""

    def see(self) -> Sketch:
        used = sum(self.sizes[name] for name in (*self.cached, *self.copying))
        assert used <= self.capacity or not self.copying, "over the capacity"
        return observation(
            [image(name, size) for name, size in self.sizes.items()],
            [
                mounted(name, size, backing=CACHE if name in self.cached else Backing.SOURCE)
                for name, size in self.sizes.items()
            ],
            cached=tuple(cached(name, self.sizes[name]) for name in sorted(self.cached)),
            staged=tuple(
                dataclasses.replace(staged(name, self.sizes[name], under_way=True), done_bytes=done)
                for name, done in self.copying.items()
            ),
            pins=tuple(pin(name, number) for number, name in enumerate(self.pinned, 1)),
            busy=frozenset(self.copying),
            bytes_per_s=rates(self.rates),
            streak_bytes=self.reading,
            space=Space(self.capacity, 0, used, PLENTY),
        )

    def run_a_round(self, speed: int) -> bool:
        """Returns: whether anything was decided."""
        actions = make_plan(self.see()).actions
        for action in actions:
            if isinstance(action, Stage):
                self.copying[action.dataset] = 0
            elif isinstance(action, DropStaged):
                del self.copying[action.dataset]
            elif isinstance(action, Evict):
                self.cached.remove(action.dataset)
            else:
                assert not isinstance(action, Retarget)
        for name in list(self.copying):
            self.copying[name] += speed
            if self.copying[name] >= self.sizes[name]:
                del self.copying[name]
                self.cached.add(name)
        return bool(actions)

    def saved(self) -> float:
        return sum(self.rates.get(name, 0) for name in self.cached)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    names = "abcdefgh"[: draw(st.integers(1, 8))]
    sizes = {name: draw(st.integers(1, 40)) for name in names}
    reads = {name: draw(st.one_of(st.sampled_from((0, 1000)), st.floats(0, 200))) for name in names}
    order = draw(st.permutations(names))
    capacity = draw(st.integers(5, 120))
    have: set[str] = set()
    free = capacity
    for name in order:
        if sizes[name] <= free and draw(st.booleans()):
            have.add(name)
            free -= sizes[name]
    pinned = tuple(name for name in names if draw(st.integers(0, 4)) == 0)
    shrunk = draw(st.sampled_from((1.0, 1.0, 0.5)))
    reading = {name: draw(st.integers(1, 60)) for name in names if draw(st.booleans())}
    return World(sizes, reads, pinned, math.ceil(capacity * shrunk), have, {}, reading)


@given(worlds(), st.sampled_from((3, 10, 1000)))
def test_with_rates_that_stay_it_comes_to_rest(world: World, speed: int) -> None:
    """No oscillation: some rounds later nothing is decided any more, and then never again."""
    quiet = 0
    for _ in range(200):
        quiet = 0 if world.run_a_round(speed) or world.copying else quiet + 1
        if quiet == 3:
            break
    assert quiet == 3, "never at rest"


@given(worlds(), st.sampled_from((3, 10, 1000)))
def test_at_rest_no_single_change_would_pay(world: World, speed: int) -> None:
    for _ in range(200):
        if not world.run_a_round(speed) and not world.copying:
            break
    pinned = set(world.pinned)
    used = sum(world.sizes[name] for name in world.cached)
    idle = [name for name in world.cached - pinned if world.rates[name] == 0]
    room_bytes = world.capacity - used + sum(world.sizes[name] for name in idle)
    waiting = [name for name in world.pinned if name not in world.cached]
    for name in world.sizes.keys() - world.cached - pinned:
        if not waiting:
            pays = world.rates[name] > world.sizes[name] * 1.001
            assert not (pays and world.sizes[name] <= room_bytes), f"{name} should be cached"


@given(worlds(), st.sampled_from((3, 10, 1000)))
def test_without_pins_or_a_smaller_disk_less_is_never_saved_than_before(world: World, speed: int) -> None:
    """Everything that is copied is worth its copy, so what is saved never shrinks from one rest to the next.

    With rates that are trusted without a limit: else what is saved counts only as far as it is trusted.
    """
    world.pinned, world.reading = (), {}
    world.capacity = max(world.capacity, sum(world.sizes[name] for name in world.cached))
    before = world.saved()
    for _ in range(200):
        if not world.run_a_round(speed) and not world.copying:
            break
    assert world.saved() >= before * (1 - 1e-9)
