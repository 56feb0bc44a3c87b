"""Read rates: what a counter adds up, and over which window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.model import Backing
from scratch_slurm.domain.throughput import ReadCounter, rates, usual_streak_s

SOURCE, CACHE = Backing.SOURCE, Backing.CACHE


def counted(*readings, period_s=600.0):
    """A counter after (seconds, device, bytes, backing) readings, and what each added."""
    counter = ReadCounter(period_s)
    return counter, [counter.sample(*reading) for reading in readings]


READINGS = [
    pytest.param([(0, "loop0", 500, SOURCE)], [0], id="what-was-read-before-is-not-ours"),
    pytest.param([(0, "loop0", 500, SOURCE), (1, "loop0", 700, SOURCE)], [0, 200], id="the-difference-counts"),
    pytest.param([(0, "loop0", 5, SOURCE), (1, "loop0", 5, SOURCE)], [0, 0], id="no-reads"),
    pytest.param(
        [(0, "loop0", 500, SOURCE), (1, "loop0", 100, SOURCE), (2, "loop0", 150, SOURCE)],
        [0, 0, 50],
        id="a-counter-that-goes-backwards-starts-anew",
    ),
    pytest.param(
        [(0, "loop0", 500, SOURCE), (1, "loop1", 900, SOURCE), (2, "loop1", 950, SOURCE)],
        [0, 0, 50],
        id="another-device-starts-anew",
    ),
    pytest.param(
        [(0, "loop0", 0, SOURCE), (1, "loop0", 10, CACHE), (2, "loop0", 40, CACHE), (3, "loop0", 100, SOURCE)],
        [0, 10, 30, 60],
        id="a-switch-changes-nothing",
    ),
]


@pytest.mark.parametrize(("readings", "added"), READINGS)
def test_what_a_reading_adds(readings, added) -> None:
    assert counted(*readings)[1] == added


def test_reads_are_counted_by_what_served_them() -> None:
    counter, _ = counted(
        (0, "loop0", 0, SOURCE), (1, "loop0", 10, CACHE), (2, "loop0", 40, CACHE), (3, "loop0", 100, SOURCE)
    )
    assert (counter.source_bytes, counter.cache_bytes, counter.total_bytes) == (60, 40, 100)


RATES = [
    pytest.param([], 100, 10, 0.0, id="nothing-was-watched"),
    pytest.param([(0, 0)], 100, 10, 0.0, id="one-reading-is-no-rate"),
    pytest.param([(0, 0), (10, 1000)], 10, 10, 100.0, id="the-whole-span"),
    pytest.param([(0, 0), (10, 1000)], 10, 100, 10.0, id="what-was-not-watched-counts-as-no-reads"),
    pytest.param([(0, 0), (10, 1000)], 20, 10, 0.0, id="reads-behind-the-span-are-over"),
    pytest.param([(0, 0), (10, 1000)], 15, 10, 50.0, id="reads-are-spread-between-readings"),
    pytest.param([(0, 0), (10, 1000), (20, 1000), (30, 4000)], 30, 10, 300.0, id="the-latest-reads-count"),
    pytest.param([(0, 0), (10, 1000), (20, 1000), (30, 4000)], 30, 30, 4000 / 30, id="the-mean-of-all"),
]


@pytest.mark.parametrize(("readings", "now", "span_s", "expected"), RATES)
def test_a_rate(readings, now, span_s, expected) -> None:
    counter, _ = counted(*((at, "loop0", read, SOURCE) for at, read in readings))
    assert counter.bytes_per_s(now, span_s) == pytest.approx(expected)


def test_a_new_device_is_no_burst() -> None:
    counter, _ = counted((0, "loop0", 0, SOURCE), (10, "loop0", 100, SOURCE), (20, "loop1", 10**9, SOURCE))
    assert counter.bytes_per_s(20, 20) == pytest.approx(5.0)


def test_rates_name_only_what_is_read() -> None:
    busy, _ = counted((0, "loop0", 0, SOURCE), (10, "loop0", 1000, SOURCE))
    idle, _ = counted((0, "loop1", 0, SOURCE), (10, "loop1", 0, SOURCE))
    assert rates({"a": busy, "b": idle, "c": ReadCounter(600)}, 10, 10) == {"a": 100.0}


STEPS = st.lists(
    st.tuples(st.sampled_from((0.1, 1.0, 30.0, 400.0)), st.integers(0, 1000), st.sampled_from(Backing)), max_size=80
)


@given(STEPS, st.sampled_from((60.0, 600.0)))
def test_no_byte_is_lost_or_counted_twice(steps, period_s) -> None:
    counter, now, device_bytes = ReadCounter(period_s), 0.0, 7
    counter.sample(now, "loop0", device_bytes, SOURCE)
    for pause_s, read, backing in steps:
        now, device_bytes = now + pause_s, device_bytes + read
        assert counter.sample(now, "loop0", device_bytes, backing) == read
    assert counter.total_bytes == sum(read for _, read, _ in steps)
    # Over all that was ever watched and longer, nothing is left out that the window still holds.
    assert counter.bytes_per_s(now, period_s) * period_s <= counter.total_bytes + 1e-6


@given(STEPS)
def test_a_window_stays_small_and_whole(steps) -> None:
    counter, now, total = ReadCounter(60.0), 0.0, 0
    history = [(0.0, 0)]
    counter.sample(now, "loop0", 0, SOURCE)
    for pause_s, read, backing in steps:
        now, total = now + pause_s, total + read
        history.append((now, total))
        counter.sample(now, "loop0", total, backing)
    assert len(counter.samples) <= 130
    began = now - 60.0
    # The window's reads lie between those surely within it and those since the last reading before it.
    inside = [read for at, read in history if at >= began]
    before = [read for at, read in history if at <= began]
    least, most = total - inside[0], total - (before[-1] if before else 0)
    measured = counter.bytes_per_s(now, 60.0) * 60.0
    # Readings closer together than a sixtieth of the window are joined.
    joined = sum(read for pause_s, read, _ in steps if pause_s <= 1.0)
    assert least - joined - 1 <= measured <= most + joined + 1


def test_a_pause_of_a_whole_period_ends_the_time_it_was_read_for() -> None:
    counter, _ = counted(
        *((at, "loop0", read, SOURCE) for at, read in ((0, 0), (10, 5), (60, 9), (150, 12))), period_s=100.0
    )
    # It may have begun right after the reading before the first that showed it.
    assert counter.streak_s(150) == 150
    assert counter.streak_s(250) == 250
    assert counter.streak_s(251) == 0
    counter.sample(290, "loop0", 12, SOURCE)
    counter.sample(300, "loop0", 20, SOURCE)
    assert counter.streak_s(310) == 20


def test_a_streak_that_began_unwatched_is_no_longer_than_a_period() -> None:
    counter, _ = counted((0, "loop0", 0, SOURCE), (5000, "loop0", 60, SOURCE))
    assert counter.streak_s(5000) == 600


def every_30_s(*read, began=0, period_s=600.0):
    """A counter sampled every 30 s, with so many bytes read before each sample."""
    counter = ReadCounter(period_s)
    total = 0
    for number, new in enumerate((0, *read)):
        total += new
        counter.sample(began + 30.0 * number, "loop0", total, SOURCE)
    return counter, began + 30.0 * len(read)


STREAK_RATES = [
    pytest.param([300], 300 / 60, id="of-the-first-moment-a-tenth-of-the-period-is-the-mean"),
    pytest.param([300] * 2, 10.0, id="after-that-it-is-the-rate"),
    pytest.param([300] * 5, 10.0, id="and-stays-it"),
    pytest.param([0] * 50 + [300] * 5, 10.0, id="however-long-nobody-read-before"),
    pytest.param([900] * 5 + [300] * 20, 10.0, id="over-the-period-at-most"),
    pytest.param([300] * 2 + [0] * 8, 2.0, id="a-pause-counts"),
    pytest.param([300] * 2 + [0] * 20, 0.0, id="a-whole-period-without-reads-is-the-end"),
    pytest.param([300] + [0] * 25 + [600] * 4, 20.0, id="what-comes-after-is-another-streak"),
    pytest.param([], 0.0, id="never-read"),
]


@pytest.mark.parametrize(("read", "expected"), STREAK_RATES)
def test_a_rate_while_it_is_read(read, expected) -> None:
    counter, now = every_30_s(*read)
    assert counter.streak_rate(now, 600.0) == pytest.approx(expected)
    assert counter.reads(now).bytes_per_s == pytest.approx(expected)


def test_what_was_read_in_this_streak() -> None:
    counter, now = every_30_s(700, *[0] * 25, 5, 6)
    assert counter.streak_bytes(now) == counter.reads(now).streak_bytes == 11
    assert counter.streak_bytes(now + 601) == 0


@given(STEPS)
def test_a_rate_is_never_more_than_what_was_read_in_the_time(steps) -> None:
    counter, now, total = ReadCounter(60.0), 0.0, 0
    counter.sample(now, "loop0", 0, SOURCE)
    for pause_s, read, backing in steps:
        now, total = now + pause_s, total + read
        counter.sample(now, "loop0", total, backing)
        rate = counter.streak_rate(now, 60.0)
        assert rate <= rates({"a": counter}, now, 60.0).get("a", 0.0) * 10 + 1e-6
        assert counter.streak_bytes(now) <= total


USUAL = [
    pytest.param([], 1800.0, id="nothing-is-known-and-the-horizon-stands"),
    pytest.param([[0] * 100], 1800.0, id="nobody-reads-and-it-stands"),
    pytest.param([[1] * 200], (2 * 1800 + 6000) / 2, id="one-that-goes-on-is-a-sign-of-longer-ones"),
    pytest.param([[1] * 40 + [0] * 21], (2 * 1800 + 1200) / 3, id="one-that-ended-tells-how-long-it-was"),
    pytest.param(
        [([1] * 40 + [0] * 21) * 2 + [1] * 10, [1] * 132],
        (2 * 1800 + 2 * 1200 + 300 + 3960) / 4,
        id="ends-and-times-of-all-are-counted",
    ),
    pytest.param([[1] * 10_000], 8 * 1800.0, id="no-longer-than-eight-times-the-horizon"),
    pytest.param([([1] + [0] * 21) * 100], 1800.0 / 8, id="no-shorter-than-an-eighth"),
]


@pytest.mark.parametrize(("readings", "expected"), USUAL)
def test_how_long_a_streak_usually_goes_on(readings, expected) -> None:
    watched = [every_30_s(*read) for read in readings]
    counters = {str(number): counter for number, (counter, _) in enumerate(watched)}
    now = watched[0][1] if watched else 0.0
    assert usual_streak_s(counters.values(), now, 1800.0) == pytest.approx(expected)
