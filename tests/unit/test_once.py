"""A stamp is taken once, however many come and however the clock jumps."""

from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.node.seal.once import Once

STEPS = st.lists(st.one_of(st.tuples(st.integers(0, 9), st.binary(max_size=1)), st.integers(0, 9)), max_size=60)


@given(STEPS, st.integers(1, 4))
def test_nothing_is_taken_twice_and_no_more_is_remembered_than_may_be(
    steps: list[tuple[int, bytes] | int], most: int
) -> None:
    once, taken = Once(most), set()
    for step in steps:
        if isinstance(step, int):
            once.forget(before=step)
        elif once.take(*step):
            assert step not in taken
            taken.add(step)
        assert once.remembered <= most


def test_a_flood_costs_the_oldest_and_not_the_newer_ones() -> None:
    once = Once(most=2)
    assert [once.take(at, b"") for at in (5, 7, 6)] == [True, True, True]
    assert once.floor == 6
    assert not once.take(5, b"other")
    assert once.take(7, b"other")


def test_what_is_younger_than_the_floor_is_taken() -> None:
    once = Once()
    once.forget(before=5)
    assert [once.take(at, b"") for at in (4, 5, 6)] == [False, True, True]
