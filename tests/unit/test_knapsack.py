"""The knapsack: tables, then what must hold for any items, against brute force and against greedy."""

import functools
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.knapsack import TOLERANCE, Item, choose

EXACT = functools.partial(choose, tolerance=0.0, work=10**9)
TIB = 2**40


def items_of(*pairs):
    """Items named a, b, c, ... of (size, value)."""
    return [Item(name, size, value) for name, (size, value) in zip("abcdefghijklmnop", pairs, strict=False)]


def chosen(items, capacity, **options):
    return "".join(sorted(choose(items, capacity, **options).names))


def size_of(items, choice):
    return sum(item.size_bytes for item in items if item.name in choice.names)


def greedy_value(items, capacity):
    """What taking them by density, the larger first of equals, or the one most valuable that fits, is worth."""
    value, room = 0.0, capacity
    fitting = [item for item in items if item.value_bytes > 0 and item.size_bytes <= capacity]
    for item in sorted(fitting, key=lambda each: (-each.value_bytes / each.size_bytes, -each.size_bytes, each.name)):
        if item.size_bytes <= room:
            value, room = value + item.value_bytes, room - item.size_bytes
    return max([value, *(item.value_bytes for item in fitting)])


def best_value(items, capacity):
    """The optimum, by trying everything."""
    best = 0.0
    for count in range(len(items) + 1):
        for some in itertools.combinations(items, count):
            if sum(item.size_bytes for item in some) <= capacity:
                best = max(best, sum(item.value_bytes for item in some))
    return best


CASES = [
    pytest.param(items_of(), 10, "", id="of-nothing-nothing"),
    pytest.param(items_of((4, 1), (6, 1)), 10, "ab", id="all-that-fit-exactly"),
    pytest.param(items_of((11, 100)), 10, "", id="larger-than-the-capacity-is-never-chosen"),
    pytest.param(items_of((5, 100)), 0, "", id="no-capacity-no-choice"),
    pytest.param(items_of((5, 100)), -7, "", id="less-than-no-capacity-no-choice"),
    pytest.param(items_of((1, 0), (1, -5), (1, 1)), 10, "c", id="what-saves-nothing-is-left-although-it-fits"),
    pytest.param(items_of((10, 10), (10, 11)), 10, "b", id="the-more-valuable-of-two"),
    pytest.param(items_of((1, 3), (10, 10)), 10, "b", id="dense-but-small-loses-to-one-that-fills"),
    pytest.param(items_of((6, 9), (5, 6), (5, 6)), 10, "bc", id="two-that-fill-beat-the-densest"),
    pytest.param(items_of((3, 4), (4, 5), (7, 10), (8, 11), (9, 13)), 17, "de", id="a-textbook-s-example"),
    pytest.param(items_of((5, 5), (5, 5), (5, 5)), 10, "ab", id="ties-go-by-name"),
]


@pytest.mark.parametrize(("items", "capacity", "expected"), CASES)
def test_choose(items, capacity, expected) -> None:
    assert chosen(items, capacity) == expected


def test_what_is_present_wins_a_tie() -> None:
    items = items_of((5, 5), (5, 5), (5, 5))
    assert chosen(items, 5) == "a"
    assert chosen(items, 5, present={"c"}) == "c"


def test_what_is_present_is_not_exchanged_for_a_gain_within_the_tolerance() -> None:
    """Two sets that the tolerance cannot tell apart would take turns otherwise."""
    items = items_of((100, 1000.0), (50, 500.0), (50, 499.9))
    assert chosen(items, 100, tolerance=0.001, present={"a"}) == "a"
    assert chosen(items, 100, tolerance=0.001, present={"b", "c"}) == "a"
    assert chosen(items_of((100, 999.9), (50, 500.0), (50, 499.9)), 100, tolerance=0.001, present={"bc"}) == "bc"


def test_what_still_has_room_is_taken_though_the_tolerance_hides_its_worth() -> None:
    """The sizes are a run's that failed: the next choice took `a`, and so on to and fro with what was copied."""
    sizes = (123456789013, 246913578025, 246913578025, 3703703670361, 3703703670361)
    items = [
        Item(name, size, value * 1e11)
        for name, size, value in zip("abcde", sizes, (0.001, 1.1, 0.1, 2.0, 39.9), strict=True)
    ]
    assert chosen(items, 7654320918744) == "ade"


def test_a_choice_is_not_exchanged_by_the_next_one_for_a_gain_within_the_tolerance() -> None:
    """`f` could be swapped for `c`, which saves a hundred-thousandth more."""
    sizes = (1, 13, 9, 16, 25, 4, 17, 27, 14)
    values = (0.001, 29.999, 0.002, 30.0, 39.999, 0.001, 1 / 3, 39.9, 29.999)
    items = items_of(*zip(sizes, values, strict=True))
    first = choose(items, 64)
    assert choose(items, 64, present=first.names).names == first.names


def test_what_is_present_and_worthless_is_left() -> None:
    assert chosen(items_of((5, 0), (5, 1)), 10, present={"a"}) == "b"


def test_what_is_present_and_does_not_fit_together_is_chosen_from() -> None:
    assert chosen(items_of((6, 6), (6, 7), (4, 1)), 10, present={"a", "b"}) == "bc"


def test_a_set_is_not_over_capacity_by_rounding() -> None:
    """The ancestor's fault: sizes in thousandths of the capacity, rounded; 2,000 items of half of one are 'nothing'."""
    capacity = 4 * TIB
    items = [Item(f"d{index}", round(capacity / 1000 * 0.499), 1.0) for index in range(4000)]
    choice = choose(items, capacity)
    assert size_of(items, choice) <= capacity
    assert len(choice.names) == capacity // items[0].size_bytes


def test_one_byte_too_many_is_too_many() -> None:
    items = items_of((2 * TIB, 1.0), (2 * TIB + 1, 1.0))
    assert len(choose(items, 4 * TIB).names) == 1
    assert len(choose(items, 4 * TIB + 1).names) == 2


# Properties: for any items.

amounts = st.integers(1, 30)
values = st.one_of(st.integers(-5, 40), st.floats(0.001, 40))  # bytes: sums of far smaller ones lose their value


@st.composite
def instances(draw, largest=12):
    """Few items with many ties: (items, capacity, names present)."""
    kind = draw(st.sampled_from(("any", "subset sum", "strongly correlated", "huge")))
    pairs = draw(st.lists(st.tuples(amounts, values), max_size=largest))
    unit = 123_456_789_012 if kind == "huge" else 1
    if kind == "subset sum":
        pairs = [(size, size) for size, _ in pairs]
    if kind == "strongly correlated":
        pairs = [(size, size + 10) for size, _ in pairs]
    items = items_of(*((size * unit + (unit > 1), value * unit) for size, value in pairs))
    capacity = draw(st.integers(0, 30 + sum(size for size, _ in pairs) // 2)) * unit
    return items, capacity, draw(st.sets(st.sampled_from([item.name for item in items] or ["a"])))


@given(instances())
def test_never_over_the_capacity_and_only_what_is_worth_something(instance) -> None:
    items, capacity, present = instance
    choice = choose(items, capacity, present=present)
    assert size_of(items, choice) <= max(0, capacity)
    assert all(item.value_bytes > 0 for item in items if item.name in choice.names)
    assert choice.value_bytes == pytest.approx(sum(item.value_bytes for item in items if item.name in choice.names))


@given(instances())
def test_without_a_tolerance_it_is_the_optimum(instance) -> None:
    items, capacity, present = instance
    choice = EXACT(items, capacity, present=present)
    assert choice.value_bytes == pytest.approx(best_value(items, capacity))
    assert choice.gap == pytest.approx(0, abs=1e-9)


@given(instances(), st.sampled_from((0, 3, 20_000)), st.sampled_from((0.0, TOLERANCE, 0.2)))
def test_the_bound_is_a_bound_and_the_gap_is_honest(instance, work, tolerance) -> None:
    items, capacity, present = instance
    choice = choose(items, capacity, present=present, work=work, tolerance=tolerance)
    optimum = best_value(items, capacity)
    assert choice.bound_bytes >= optimum * (1 - 1e-9)
    assert choice.value_bytes >= (1 - choice.gap) * optimum * (1 - 1e-9)
    assert 0 <= choice.gap <= 1


@given(instances(), st.sampled_from((TOLERANCE, 0.01, 0.2)))
def test_the_tolerance_is_kept_when_there_is_work_enough(instance, tolerance) -> None:
    items, capacity, present = instance
    choice = choose(items, capacity, present=present, tolerance=tolerance, work=10**9)
    assert choice.value_bytes * (1 + tolerance) >= best_value(items, capacity) * (1 - 1e-9)
    assert choice.gap <= tolerance


@given(instances(), st.sampled_from((0, 3, 20_000)))
def test_never_worse_than_greedy_nor_than_what_is_present(instance, work) -> None:
    items, capacity, present = instance
    choice = choose(items, capacity, present=present, work=work, tolerance=0.5)
    assert choice.value_bytes >= greedy_value(items, capacity) * (1 - 1e-9)
    kept = [item for item in items if item.name in present and item.value_bytes > 0]
    if sum(item.size_bytes for item in kept) <= capacity:
        assert choice.value_bytes >= sum(item.value_bytes for item in kept) * (1 - 1e-9)


@given(instances(), st.randoms(use_true_random=False))
def test_the_order_of_the_items_is_irrelevant(instance, rng) -> None:
    items, capacity, present = instance
    shuffled = rng.sample(items, len(items))
    assert choose(shuffled, capacity, present=present) == choose(items, capacity, present=present)


@given(instances())
def test_choosing_again_changes_nothing(instance) -> None:
    items, capacity, present = instance
    first = choose(items, capacity, present=present)
    assert choose(items, capacity, present=first.names).names == first.names


@given(instances(), st.integers(0, 20))
def test_more_capacity_is_never_worth_less(instance, more) -> None:
    items, capacity, _ = instance
    less = EXACT(items, capacity).value_bytes
    assert EXACT(items, capacity + more).value_bytes >= less * (1 - 1e-9)


# Many items: the sizes that a site may have, and the ones that are hard to choose from.


def log_normal(rng, count):
    """From 1 GiB to 2 TiB, as datasets are."""
    sizes = [min(2 * TIB, max(2**30, int(rng.lognormvariate(0, 1.5) * 60 * 2**30))) for _ in range(count)]
    return [Item(f"d{index}", size, rng.uniform(-0.5, 2) * size) for index, size in enumerate(sizes)]


def strongly_correlated(rng, count):
    sizes = [rng.randint(1, 16 * TIB // count) for _ in range(count)]
    return [Item(f"d{index}", size, size + max(sizes) / 10) for index, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("make", "count", "within"),
    [
        pytest.param(log_normal, 100, TOLERANCE, id="log-normal-100"),
        pytest.param(log_normal, 1000, TOLERANCE, id="log-normal-1000"),
        pytest.param(strongly_correlated, 100, 0.005, id="strongly-correlated-100"),
        pytest.param(strongly_correlated, 1000, 0.0005, id="strongly-correlated-1000"),
    ],
)
def test_many_items_are_chosen_close_to_the_bound(make, count, within) -> None:
    for seed in range(5):
        items = make(random.Random(seed), count)
        choice = choose(items, 4 * TIB)
        assert size_of(items, choice) <= 4 * TIB
        assert choice.value_bytes >= greedy_value(items, 4 * TIB)
        assert choice.gap <= within


def test_what_the_tolerance_hides_is_in_the_gap() -> None:
    """The best two are worth 10.5; 9 is within a fifth of it, so the search stops, and says how far it may be."""
    items = items_of((6, 9.0), (5, 5.25), (5, 5.25))
    rough, exact = choose(items, 10, tolerance=0.2), EXACT(items, 10)
    assert (rough.value_bytes, exact.value_bytes, exact.gap) == (9.0, 10.5, 0.0)
    assert rough.bound_bytes >= 10.5


def test_the_search_ends_where_nothing_can_be_proven() -> None:
    """Sizes that are all even and a capacity that is odd: the last unit cannot be filled, and nothing says so."""
    rng = random.Random(1)
    items = [Item(f"d{index}", size, size) for index in range(300) for size in (2 * rng.randint(10**9, 10**10),)]
    capacity = sum(item.size_bytes for item in items) // 2 | 1
    choice = choose(items, capacity, tolerance=0.0)
    assert 0 < choice.gap < 0.001
