"""What one user may pin, and what can never fit together: tables first, then what must hold for any pins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.actions import Evict, Stage
from scratch_slurm.domain.model import ADMINISTRATOR, Backing, Pin, Space, job_holder
from scratch_slurm.domain.shares import find_beyond, most_bytes, word_own_room
from tests.kit.sketch import plan
from tests.kit.strategies import NAMES, PLENTY, cached, image, mounted, observation, room

SIZES = {"a": 40, "b": 40, "c": 30, "d": 10}
ALICE, BOB = 1000, 1001


def pin(dataset, uid=ALICE, job_id=1):
    return Pin(dataset, job_holder(job_id), uid, 0.0)


def admin(dataset):
    return Pin(dataset, ADMINISTRATOR, 1000, 0.0)


BEYOND = [
    pytest.param([], 50, [], id="no-pins"),
    pytest.param([pin("a"), pin("b")], None, [], id="off-unless-set"),
    pytest.param([pin("a"), pin("b")], 80, [], id="just-as-much-as-may-be"),
    pytest.param([pin("a"), pin("b")], 79, ["b"], id="what-was-asked-for-later-is-beyond"),
    pytest.param([pin("a"), pin("b"), pin("d")], 50, ["b"], id="a-smaller-one-still-has-room"),
    pytest.param([pin("a"), pin("a", job_id=2), pin("d", job_id=2)], 50, [], id="a-dataset-counts-once-for-all-jobs"),
    pytest.param([pin("a"), pin("b", job_id=2)], 50, ["b"], id="all-jobs-of-a-user-together"),
    pytest.param([pin("a"), pin("b", BOB)], 50, [], id="each-user-has-a-share"),
    pytest.param([pin("a", BOB), pin("b"), pin("a")], 50, [], id="it-counts-for-whoever-asked-first"),
    pytest.param([pin("a"), pin("b"), pin("b", BOB)], 50, [], id="another-user-has-room-for-it"),
    pytest.param([pin("a"), pin("b"), admin("b")], 50, [], id="the-administrator-is-exempt"),
    pytest.param([pin("a", 0), pin("b", 0), pin("c", 0)], 50, [], id="root-is-exempt"),
    pytest.param([pin("b", 0), pin("a"), pin("b")], 50, [], id="what-root-pins-is-nobodys-share"),
    pytest.param([pin("a")], 39, ["a"], id="one-that-is-larger-than-the-share"),
    pytest.param([pin("a")], 0, ["a"], id="nothing-at-all-may-be-pinned"),
    pytest.param([pin("unknown"), pin("a")], 40, [], id="what-is-not-known-takes-nothing"),
]


@pytest.mark.parametrize(("pins", "limit_bytes", "expected"), BEYOND)
def test_what_a_users_pins_do_not_bring_into_the_cache(pins, limit_bytes, expected) -> None:
    assert sorted(find_beyond(pins, SIZES, limit_bytes)) == expected


def test_a_job_is_told_how_much_its_user_pins_and_does_not_wait() -> None:
    beyond = find_beyond([pin("a"), pin("b")], {"a": 4 * 10**9, "b": 2 * 10**9}, 5 * 10**9)
    assert beyond["b"].text == (
        "needs 2.0 GB; the jobs of user 1000 pin 4.0 GB already here, of 5.0 GB that a user may (max_pinned)"
    )
    assert not beyond["b"].waiting_helps


PINS = st.lists(
    st.builds(
        lambda dataset, uid, job_id: Pin(dataset, job_holder(job_id) if job_id else ADMINISTRATOR, uid, 0.0),
        st.sampled_from(NAMES),
        st.sampled_from((0, ALICE, BOB)),
        st.integers(0, 4),
    ),
    max_size=8,
    unique=True,
)


@given(PINS, st.sampled_from((0, 10, 40, 70, 120)))
def test_no_user_has_more_than_the_share(pins, limit_bytes) -> None:
    beyond = find_beyond(pins, SIZES, limit_bytes)
    first: dict[str, list[Pin]] = {}
    for each in pins:
        if each.dataset not in beyond:
            first.setdefault(each.dataset, []).append(each)
    exempt = {each.dataset for each in pins if each.uid == 0 or each.job_id is None}
    assert not exempt & beyond.keys()
    # Each dataset may count for any of those who pin it; some assignment must keep everybody within the share.
    shared = [name for name in first if name not in exempt]
    alone = {name for name in shared if len({each.uid for each in first[name]}) == 1}
    for uid in (ALICE, BOB):
        assert sum(SIZES[name] for name in alone if first[name][0].uid == uid) <= limit_bytes
    assert sum(SIZES[name] for name in shared) <= 2 * limit_bytes


@given(PINS, st.sampled_from((0, 10, 40, 70, 120)))
def test_a_pin_that_comes_later_takes_nothing_from_earlier_ones(pins, limit_bytes) -> None:
    for count in range(len(pins)):
        before, after = (find_beyond(pins[:end], SIZES, limit_bytes) for end in (count, count + 1))
        counted = {each.dataset for each in pins[:count]} - before.keys()
        assert not counted & after.keys()


# In the plan


def world(*, cached_names=(), pins=(), limit=50, **rest):
    mounts = [
        mounted(name, SIZES[name], backing=Backing.CACHE if name in cached_names else Backing.SOURCE) for name in SIZES
    ]
    return observation(
        [image(name, size) for name, size in SIZES.items()],
        mounts,
        cached=tuple(cached(name, SIZES[name]) for name in cached_names),
        pins=tuple(pins),
        max_pinned_bytes=limit,
        **rest,
    )


def words(seen):
    return [f"{action.kind} {action.dataset}" for action in plan(seen).actions]


def test_what_is_beyond_is_not_staged_for_its_pin_and_is_said() -> None:
    decided = plan(world(pins=[pin("a"), pin("b")]))
    assert [action.dataset for action in decided.actions] == ["a"]
    assert "max_pinned" in decided.problems["b"].text
    assert "a" not in decided.problems


def test_what_is_beyond_may_still_be_cached_for_its_throughput() -> None:
    seen = world(pins=[pin("a"), pin("b")], bytes_per_s={"b": 1.0}, streak_s={"b": 3600.0})
    stages = {action.dataset: action.preheat for action in plan(seen).actions if isinstance(action, Stage)}
    assert stages == {"a": True, "b": False}


def test_what_is_beyond_and_cached_stays_while_there_is_room_and_is_no_problem() -> None:
    seen = world(cached_names=["a", "b"], pins=[pin("a"), pin("b")])
    assert words(seen) == []
    assert not plan(seen).problems


def test_what_is_beyond_and_cached_makes_room_for_another_users_pin() -> None:
    seen = world(cached_names=["a", "b"], pins=[pin("a"), pin("b"), pin("c", BOB, 2)], space=room(0, used=80))
    (evict,) = plan(seen).actions
    assert isinstance(evict, Evict)
    assert evict.dataset == "b"
    assert evict.despite == frozenset({"job:1"})


def test_without_a_limit_it_does_not() -> None:
    seen = world(
        cached_names=["a", "b"], pins=[pin("a"), pin("b"), pin("c", BOB, 2)], space=room(0, used=80), limit=None
    )
    assert words(seen) == []


def test_a_newer_image_waits_for_a_pin_that_is_beyond_too() -> None:
    seen = observation([image("a", 40, version=2)], [mounted("a", 40)], pins=(pin("a"),), max_pinned_bytes=10)
    assert words(seen) == []


# A job's own room


SPACES = [
    pytest.param(Space(100, 0, 0, PLENTY), 100, id="the-size-of-the-disk-is-not-known"),
    pytest.param(Space(100, 20, 0, PLENTY, 200), 100, id="the-capacity"),
    pytest.param(Space(100, 20, 0, PLENTY, 110), 90, id="the-disk-less-the-reserve"),
]


@pytest.mark.parametrize(("space", "expected"), SPACES)
def test_what_can_ever_be_had(space, expected) -> None:
    assert most_bytes(space) == expected


OWN_ROOM = [
    pytest.param([pin("a"), pin("b"), pin("c")], "c", True, id="its-own-pins-take-all-room"),
    pytest.param([pin("a"), pin("b")], "b", False, id="its-own-pins-fit"),
    pytest.param([pin("a", job_id=2), pin("b"), pin("c")], "c", False, id="another-job-takes-the-room"),
    pytest.param([pin("a"), pin("b"), pin("c"), pin("c", BOB, 2)], "c", False, id="another-holder-has-less"),
    pytest.param([admin("a"), admin("b"), admin("c")], "c", True, id="the-administrators-pins-are-a-holders-too"),
    pytest.param([pin("a"), pin("b")], "c", False, id="nobody-asks-for-it"),
]


@pytest.mark.parametrize(("pins", "dataset", "hopeless"), OWN_ROOM)
def test_a_dataset_that_waits_for_its_own_holders(pins, dataset, hopeless) -> None:
    problem = word_own_room(dataset, pins, SIZES, [Space(100, 0, 80, PLENTY)])
    assert (problem is not None) == hopeless
    assert problem is None or not problem.waiting_helps


def test_the_job_is_told_with_both_figures() -> None:
    sizes = {"a": 4 * 10**9, "b": 3 * 10**9}
    problem = word_own_room("b", [pin("a"), pin("b")], sizes, [Space(5 * 10**9, 0, 0, PLENTY)])
    assert problem is not None
    assert (
        problem.text == "does not fit beside what else is asked for with it: 7.0 GB together, 5.0 GB can be cached here"
    )


def test_the_plan_says_so_and_waits_for_others_as_before() -> None:
    own = world(cached_names=["a", "b"], pins=[pin("a"), pin("b"), pin("c")], space=room(0, used=80), limit=None)
    others = world(
        cached_names=["a", "b"], pins=[pin("a", job_id=2), pin("b"), pin("c")], space=room(0, used=80), limit=None
    )
    assert "does not fit beside" in plan(own).problems["c"].text
    assert not plan(own).problems["c"].waiting_helps
    assert plan(others).problems["c"].waiting_helps
