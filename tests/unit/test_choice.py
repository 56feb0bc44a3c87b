"""What the cache should hold: tables of values and reasons, then what must hold for any candidates."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.choice import LONGEST_TIMES, Candidate, value_bytes, wish

GB, HALF_HOUR_S = 10**9, 1800.0
# One gigabyte read per horizon.
RATE = GB / HALF_HOUR_S


def candidate(dataset, size=10, reads=0, *, cached=False, pinned=False, missing=None, used=0.0, read=math.inf):
    """A dataset of `size` gigabytes, of which `reads` would be read over the horizon, and `missing` copied first.

    `read` gigabytes were read of it since this reading began.
    """
    missing = 0 if cached else size if missing is None else missing
    return Candidate(dataset, size * GB, round(missing * GB), reads * RATE, pinned, used, 0.0, read * GB)


def decide(*candidates, budget=100, pinned=()):
    return wish(candidates, pinned, budget * GB, HALF_HOUR_S)


VALUES = [
    pytest.param(candidate("a"), -10, id="an-idle-one-would-only-cost"),
    pytest.param(candidate("a", cached=True), 0, id="an-idle-cached-one-costs-nothing"),
    pytest.param(candidate("a", reads=10), 0, id="read-once-is-copied-once"),
    pytest.param(candidate("a", reads=30), 20, id="reads-less-the-copy"),
    pytest.param(candidate("a", reads=30, cached=True), 30, id="its-copy-is-paid"),
    pytest.param(candidate("a", reads=30, missing=4), 26, id="half-copied-costs-the-rest"),
    pytest.param(candidate("a", reads=30, read=25), 20, id="what-was-read-and-once-more-is-trusted"),
    pytest.param(candidate("a", reads=30, read=3), 3, id="and-no-more-than-that"),
    pytest.param(candidate("a", reads=30, read=3, cached=True), 13, id="nor-of-what-is-cached"),
    pytest.param(candidate("a", reads=9, read=3), -1, id="a-slow-reader-must-still-pay-for-the-copy"),
]


@pytest.mark.parametrize(("one", "expected"), VALUES)
def test_a_value(one, expected) -> None:
    assert value_bytes(one, HALF_HOUR_S) == pytest.approx(expected * GB)


def test_a_longer_horizon_is_worth_more() -> None:
    assert value_bytes(candidate("a", reads=30), 2 * HALF_HOUR_S) == pytest.approx(50 * GB)


REASONS = [
    pytest.param([candidate("a", pinned=True)], "pinned", id="pinned"),
    pytest.param([candidate("a", reads=50, pinned=True, cached=True)], "pinned", id="pinned-and-hot"),
    pytest.param([candidate("a")], "nobody reads it", id="idle"),
    pytest.param([candidate("a", cached=True)], "nobody reads it; it stays while there is room", id="idle-and-cached"),
    pytest.param(
        [candidate("a", reads=30)], "saves 30.0 GB over 30 min, its copy reads 10.0 GB", id="hot-enough-to-copy"
    ),
    pytest.param(
        [candidate("a", reads=30, missing=2.5)],
        "saves 30.0 GB over 30 min, its copy reads 2.5 GB",
        id="hot-and-partly-copied",
    ),
    pytest.param(
        [candidate("a", reads=9)],
        "saves 9.0 GB over 30 min, less than the 10.0 GB that its copy reads",
        id="does-not-pay",
    ),
    pytest.param([candidate("a", reads=9, cached=True)], "saves 9.0 GB over 30 min", id="cached-and-read"),
    pytest.param(
        [candidate("a", reads=30, read=3)],
        "saves 13.0 GB, what it was read so far and once more, its copy reads 10.0 GB",
        id="hot-but-only-just",
    ),
    pytest.param(
        [candidate("a", reads=30, read=3, cached=True)],
        "saves 13.0 GB, what it was read so far and once more",
        id="cached-and-read-since-a-moment-ago",
    ),
    pytest.param(
        [candidate("a", reads=30), candidate("b", 95, 500)],
        "saves 30.0 GB over 30 min, its copy reads 10.0 GB; others save more with that room",
        id="hot-but-others-are-hotter",
    ),
    pytest.param(
        [candidate("a", reads=9, cached=True), candidate("b", 95, 500)],
        "saves 9.0 GB over 30 min, less than others would with its room",
        id="cached-but-others-are-hotter",
    ),
]


@pytest.mark.parametrize(("candidates", "reason"), REASONS)
def test_a_reason(candidates, reason) -> None:
    assert decide(*candidates).verdicts["a"].reason == reason


CHOICES = [
    # Candidates, pinned, then chosen and unneeded as words.
    pytest.param([], (), "", "", id="nothing-to-choose-from"),
    pytest.param([candidate("a"), candidate("b", reads=11)], (), "b", "", id="what-pays-is-chosen"),
    pytest.param([candidate("a", reads=10)], (), "", "", id="what-only-just-does-not-pay-is-not"),
    pytest.param([candidate("a", 101, 10**6)], (), "", "", id="larger-than-the-budget-is-not"),
    pytest.param(
        [candidate("a", reads=20), candidate("b", reads=40)], (), "ba", "", id="the-most-valuable-per-byte-first"
    ),
    pytest.param(
        [candidate("a", 60, 200, pinned=True), candidate("b", 50, 5000)], ("a",), "", "", id="a-pin-beats-any-rate"
    ),
    pytest.param(
        [candidate("a", 120, pinned=True), candidate("b", 50, 200)],
        ("a",),
        "b",
        "",
        id="a-pin-that-cannot-fit-leaves-its-room",
    ),
    pytest.param(
        [candidate("a", 60, pinned=True), candidate("b", 60, pinned=True), candidate("c", 40, 99)],
        ("a", "b"),
        "c",
        "",
        id="of-two-pins-that-do-not-fit-both-the-first-counts",
    ),
    pytest.param(
        [candidate("a", 60, pinned=True), candidate("b", 60, pinned=True, cached=True), candidate("c", 45, 99)],
        ("a", "b"),
        "",
        "",
        id="a-pinned-and-cached-one-keeps-its-room-before-who-asked-first",
    ),
    pytest.param(
        [candidate("a", 60, pinned=True), candidate("b", 60, pinned=True, cached=True), candidate("c", 40, 99)],
        ("a", "b"),
        "c",
        "",
        id="and-what-it-leaves-is-used",
    ),
    pytest.param([candidate("a", cached=True)], (), "", "a", id="an-idle-cached-one-is-unneeded"),
    pytest.param([candidate("a", reads=0.1, cached=True)], (), "a", "", id="a-cached-one-needs-few-reads-to-stay"),
    pytest.param(
        [candidate("a", 60, 900, read=20), candidate("b", 60, 300, cached=True, read=200)],
        (),
        "b",
        "",
        id="who-reads-once-at-full-speed-displaces-nobody-who-proved-himself",
    ),
    pytest.param(
        [candidate("a", 60, 900, read=20), candidate("b", 60, cached=True)],
        (),
        "a",
        "b",
        id="but-those-whom-nobody-reads",
    ),
    # The only hysteresis is the copy that is paid.
    pytest.param(
        [candidate("a", 100, 200, cached=True), candidate("b", 100, 299)],
        (),
        "a",
        "",
        id="a-cached-one-stays-unless-the-gain-exceeds-the-other-s-copy",
    ),
    pytest.param(
        [candidate("a", 100, 200, cached=True), candidate("b", 100, 301)],
        (),
        "b",
        "a",
        id="a-cached-one-goes-when-the-gain-exceeds-the-other-s-copy",
    ),
    pytest.param(
        [candidate("a", 100, 300, cached=True), candidate("b", 100, 400)], (), "a", "", id="a-tie-changes-nothing"
    ),
    pytest.param(
        [candidate("b", 100, 300, cached=True), candidate("a", 100, 400)],
        (),
        "b",
        "",
        id="a-tie-changes-nothing-by-name",
    ),
    pytest.param(
        [candidate("a", 100, 300, missing=50), candidate("b", 100, 320)], (), "a", "", id="what-is-half-copied-goes-on"
    ),
]


@pytest.mark.parametrize(("candidates", "pinned", "chosen", "unneeded"), CHOICES)
def test_what_is_wished_for(candidates, pinned, chosen, unneeded) -> None:
    wishes = decide(*candidates, pinned=pinned)
    assert ("".join(wishes.chosen), "".join(wishes.unneeded), wishes.pinned) == (chosen, unneeded, pinned)


def test_the_unneeded_go_by_worth_then_by_use_then_by_size() -> None:
    wishes = decide(
        candidate("hot", 100, 1000),
        candidate("read", 10, 3, cached=True, used=9.0),
        candidate("old", 10, cached=True, used=1.0),
        candidate("new", 10, cached=True, used=5.0),
        candidate("large", 20, cached=True, used=5.0),
        candidate("never", 10, cached=True),
    )
    assert wishes.unneeded == ("never", "old", "large", "new", "read")


# Properties: for any candidates.


@st.composite
def candidates(draw, names="abcdefgh"):
    found = []
    for name in draw(st.sets(st.sampled_from(names))):
        size = draw(st.integers(1, 50))
        missing = draw(st.sampled_from((0.0, 0.0, 0.3, 1.0, 1.0))) * size
        reads = draw(st.sampled_from((0, 0, 1, 10, 49.9, 51, 200)))
        pinned = draw(st.booleans()) and draw(st.booleans())
        read = draw(st.sampled_from((1, 20, math.inf)))
        found.append(candidate(name, size, reads, missing=missing, pinned=pinned, read=read))
    return found


def asked(some):
    return tuple(each.dataset for each in some if each.pinned)


@given(candidates(), st.integers(0, 120))
def test_nothing_is_copied_that_does_not_pay(some, budget) -> None:
    wishes = decide(*some, budget=budget, pinned=asked(some))
    for each in some:
        if each.dataset in wishes.chosen and each.copy_bytes:
            assert each.bytes_per_s * HALF_HOUR_S > each.copy_bytes


@given(candidates(), st.integers(0, 120))
def test_the_pinned_and_the_chosen_share_the_budget(some, budget) -> None:
    wishes = decide(*some, budget=budget, pinned=asked(some))
    left_bytes = budget * GB - sum(each.size_bytes for each in some if each.pinned and not each.copy_bytes)
    for each in some:
        if each.pinned and each.copy_bytes > 0 and each.size_bytes <= left_bytes:
            left_bytes -= each.size_bytes
    assert sum(each.size_bytes for each in some if each.dataset in wishes.chosen) <= max(0, left_bytes)


@given(candidates(), st.integers(0, 120))
def test_everything_cached_is_pinned_chosen_or_unneeded(some, budget) -> None:
    wishes = decide(*some, budget=budget, pinned=asked(some))
    for each in some:
        places = [each.pinned, each.dataset in wishes.chosen, each.dataset in wishes.unneeded]
        assert sum(places) == 1 if each.copy_bytes == 0 else not places[2]
        assert wishes.verdicts[each.dataset].wanted == (places[0] or places[1])
        assert wishes.verdicts[each.dataset].reason


@given(candidates(), st.integers(0, 120), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_is_irrelevant(some, budget, rng) -> None:
    shuffled = rng.sample(some, len(some))
    assert decide(*shuffled, budget=budget, pinned=asked(some)) == decide(*some, budget=budget, pinned=asked(some))


@given(candidates(), st.integers(0, 120))
def test_a_wish_come_true_is_wished_for_again(some, budget) -> None:
    """With rates that stay as they are, nothing more is copied, and nothing that was copied goes."""
    first = decide(*some, budget=budget, pinned=asked(some))
    true = [
        msgspec.structs.replace(each, copy_bytes=0)
        if each.dataset in first.chosen
        else msgspec.structs.replace(each, copy_bytes=each.size_bytes)
        if each.dataset in first.unneeded
        else each
        for each in some
    ]
    assert set(decide(*true, budget=budget, pinned=asked(some)).chosen) == set(first.chosen)


def test_what_has_been_read_for_hours_is_trusted_to_go_on_for_as_long_again() -> None:
    """A fixed horizon would never pay for the copy of a large image that a job reads steadily."""
    large = Candidate("large", 3600_000, 3600_000, 500.0, False, 0.0, streak_s=0.0)
    assert not wish([large], (), 10**9, 1800.0).chosen
    after_three_hours = msgspec.structs.replace(large, streak_s=10_800.0)
    wishes = wish([after_three_hours], (), 10**9, 1800.0)
    assert wishes.chosen == ("large",)
    assert wishes.verdicts["large"].reason == "saves 5.4 MB over 3.0 h, its copy reads 3.6 MB"
    for_days = msgspec.structs.replace(large, streak_s=1e6)
    assert wish([for_days], (), 10**9, 1800.0).verdicts["large"].horizon_s == LONGEST_TIMES * 1800.0
