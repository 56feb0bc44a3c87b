"""Sizes and durations as people write them."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratch_slurm.domain.errors import UsageError
from scratch_slurm.domain.sizes import NO_LIMIT_S, format_bytes, format_duration, parse_duration, parse_size, parse_wait

DISK = 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1", 1),
        ("007", 7),
        ("12 B", 12),
        ("12bytes", 12),
        ("500 GB", 500 * 10**9),
        ("500gb", 500 * 10**9),
        ("1 kB", 1000),
        ("1 KiB", 1024),
        ("2 TiB", 2 * 2**40),
        ("1.5 MB", 1_500_000),
        ("0.5 KiB", 512),
        ("  3  MiB  ", 3 * 2**20),
        ("1 PB", 10**15),
        ("1 PiB", 2**50),
        ("9007199254740993", 9007199254740993),
        ("80%", 800),
        ("100 %", 1000),
        ("0%", 0),
        ("12.5%", 125),
        ("33.39%", 333),
    ],
)
def test_a_size(text: str, expected: int) -> None:
    size = parse_size(text, whole_bytes=DISK)
    assert size == expected and isinstance(size, int)


NO_SIZES = [
    "", " ", "GB", "-1", "-1 GB", "+1", "1,5 GB", "1.GB", ".5 GB", "1e3", "1 XB", "1 G", "1 GB GB", "1GB/s", "0x10",
    "1_000",
    "101%", "100.1%", "-1%", "%", "80 % GB", "nan", "inf", "\u0661", "1 GB\n2 GB", "9" * 5000, "9" * 5000 + " GB",
    "9" * 400 + ".5 GB", "9" * 400 + "%",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_SIZES, ids=lambda text: text[:12])
def test_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not valid") as caught:
        parse_size(text, whole_bytes=DISK)
    assert caught.value.hint
    assert len(caught.value.message) < 500 or "%" in text


def test_a_percentage_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="'80%' is not valid here") as caught:
        parse_size("80%")
    assert "bytes" in (caught.value.hint or "")


@given(st.integers(0, 2**60), st.sampled_from(["", "B", "kB", "KiB", "MB", "MiB", "GB", "GiB", "TB", "TiB"]))
def test_whole_sizes_are_exact(number, unit) -> None:
    factor = parse_size(f"1{unit}")
    assert parse_size(f"{number}{unit}") == parse_size(f" {number} {unit.lower()} ") == number * factor


@given(st.text(max_size=30))
@example("9" * 5000)
def test_any_text_is_a_size_or_refused(text) -> None:
    try:
        size = parse_size(text, whole_bytes=DISK)
    except UsageError:
        return
    assert size >= 0


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1500, "1.5 kB"),
        (10**6, "1.0 MB"),
        (1.5 * 10**9, "1.5 GB"),
        (161061273600, "161.1 GB"),
        (10**12, "1.0 TB"),
        (2 * 10**15, "2.0 PB"),
        (5 * 10**18, "5000.0 PB"),
        (-2500, "-2.5 kB"),
    ],
)
def test_bytes_for_people(n_bytes: float, text: str) -> None:
    assert format_bytes(n_bytes) == text


@given(st.integers(0, 10**18))
def test_bytes_for_people_read_back_within_their_digits(n_bytes) -> None:
    back = parse_size(format_bytes(n_bytes))
    assert abs(back - n_bytes) <= max(1, n_bytes) * 0.05 + 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30", 30),
        ("0.5", 0.5),
        ("90s", 90),
        ("10m", 600),
        ("10 min", 600),
        ("1.5h", 5400),
        ("2h", 7200),
        (" 1 d ", 86400),
    ],
)
def test_a_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


NO_DURATIONS = [
    "", "s", "-1", "-1s", "1 week", "10M", "1h30m", "nan", "inf", "1e3", "1_000", "\u0661s", "1000000000", "20000d",
    "9" * 400 + "d",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_DURATIONS, ids=lambda text: text[:12])
def test_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is not valid") as caught:
        parse_duration(text)
    assert caught.value.hint and len(caught.value.message) < 100


@given(st.text(max_size=20))
def test_any_text_is_a_finite_duration_or_refused(text) -> None:
    try:
        seconds = parse_duration(text)
    except UsageError:
        return
    assert seconds >= 0 and math.isfinite(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("all", NO_LIMIT_S),
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1d", 86400),
        ("5", 300),
        ("5:30", 330),
        ("0:45", 45),
        ("90:00", 5400),
        ("1:02:03", 3723),
        ("2-12", 216000),
        ("1-00:30", 88200),
        ("1-01:01:01", 90061),
    ],
)
def test_a_wait(text: str, seconds: float) -> None:
    assert parse_wait(text) == seconds


NO_WAITS = [
    "", " 5", "5 ", "ALL", "-1", "+5", "1.5", "1.5h", "5s5", "10min", "1:2:3:4", "1-", "-5", "1-1:1:1:1", "5:", ":5",
    "1:001",
    "1234567", "1-2-3", "nan", "infinity", "\u0661", "5\n", "all\n", "5m\n", "9" * 100, "$(id)",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_WAITS, ids=lambda text: repr(text[:12]))
def test_no_wait(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time") as caught:
        parse_wait(text)
    assert caught.value.hint and len(caught.value.message) < 120


@given(st.text(alphabet="0123456789:-dhmsal. ", max_size=14))
def test_any_text_is_a_wait_or_refused(text) -> None:
    try:
        seconds = parse_wait(text)
    except UsageError:
        return
    assert seconds >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45, "45 s"),
        (119, "119 s"),
        (120, "2 min"),
        (1800, "30 min"),
        (7200, "2.0 h"),
        (12600, "3.5 h"),
        (172800, "2.0 d"),
        (864000, "10.0 d"),
    ],
)
def test_seconds_for_people(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text
