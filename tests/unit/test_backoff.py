"""The pauses between tries double, within two bounds."""

from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.backoff import pause_s


def test_a_pause_doubles_from_the_first_to_the_last() -> None:
    assert [pause_s(failures, 5, 60) for failures in range(1, 7)] == [5, 10, 20, 40, 60, 60]


def test_a_first_pause_beyond_the_last_is_cut_to_it() -> None:
    assert pause_s(1, 200, 120) == 120


@given(failures=st.integers(1, 10**6), first_s=st.floats(0.001, 1e4), last_s=st.floats(0.001, 1e6))
def test_no_number_of_failures_makes_it_shorter_or_longer_than_the_last(
    failures: int, first_s: float, last_s: float
) -> None:
    pause = pause_s(failures, first_s, last_s)
    assert 0 < pause <= last_s
    assert pause <= pause_s(failures + 1, first_s, last_s)
