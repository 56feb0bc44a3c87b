"""The read counters: what they count, and their file, which the next daemon of this boot has, and nobody else."""

import logging
from pathlib import Path

import pytest

from scratch_slurm.domain.dataset import Reads
from scratch_slurm.domain.model import Backing
from scratch_slurm.domain.sight import SeenMount
from scratch_slurm.domain.throughput import ReadCounter
from scratch_slurm.service.reads import Counters, load_counters, save_counters


def read_counter(*readings: tuple[float, int, Backing]) -> ReadCounter:
    counter = ReadCounter(600.0)
    for at, read, backing in readings:
        counter.sample(at, "/dev/loop0@12", read, backing)
    return counter


COUNTERS = {
    "a": read_counter((0.0, 0, Backing.SOURCE), (30.5, 10**13 + 1, Backing.SOURCE), (60.0, 10**13 + 5, Backing.CACHE)),
    "b+1@x": read_counter((0.0, 5, Backing.CACHE), (30.0, 6, Backing.CACHE)),
    "twice": read_counter((0.0, 5, Backing.SOURCE), (30.0, 6, Backing.SOURCE), (900.0, 9, Backing.SOURCE)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reads.json"


def test_what_is_saved_is_loaded(path: Path) -> None:
    save_counters(path, COUNTERS, "boot")
    assert load_counters(path, "boot", 600.0) == COUNTERS


def test_a_loaded_counter_goes_on(path: Path) -> None:
    save_counters(path, COUNTERS, "boot")
    counter = load_counters(path, "boot", 600.0)["a"]
    assert counter.sample(90.0, "/dev/loop0@12", 10**13 + 105, Backing.CACHE) == 100
    assert (counter.source_bytes, counter.cache_bytes) == (10**13 + 1, 104)
    assert counter.bytes_per_s(90.0, 30.0) == pytest.approx(100 / 30)


def test_an_earlier_version_s_file_is_read(path: Path) -> None:
    """Without what it did not count: of streaks that are over it tells nothing."""
    path.write_text(
        '{"boot_id":"boot","counters":{"a":{"period_s":600.0,"device":"/dev/loop0@12","device_bytes":70,"source_bytes":60,'
        '"cache_bytes":0,"reading_since":20.0,"last_read_at":50.0,"samples":[[0.0,0],[50.0,60]]}}}'
    )
    counter = load_counters(path, "boot", 600.0)["a"]
    assert (counter.streak_s(60.0), counter.ended_streaks, counter.streak_from_bytes) == (40.0, 0, 0)


def test_the_period_is_the_present_configuration_s(path: Path) -> None:
    save_counters(path, COUNTERS, "boot")
    assert {counter.period_s for counter in load_counters(path, "boot", 60.0).values()} == {60.0}


def test_another_boot_begins_with_nothing(path: Path) -> None:
    save_counters(path, COUNTERS, "boot")
    assert load_counters(path, "another", 600.0) == {}


def test_what_was_never_read_is_not_saved(path: Path) -> None:
    save_counters(path, {"idle": read_counter((0.0, 7, Backing.SOURCE))}, "boot")
    assert load_counters(path, "boot", 600.0) == {}


def test_without_a_file_there_is_nothing(path: Path) -> None:
    assert load_counters(path, "boot", 600.0) == {}


GARBAGE = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\0" * 64, id="zeros-after-a-power-cut"),
    pytest.param(b"\xff\xfe", id="not-utf-8"),
    pytest.param(b"[1, 2", id="cut-off"),
    pytest.param(b"[]", id="another-shape"),
    pytest.param(b'{"boot_id": "boot"}', id="a-field-missing"),
    pytest.param(b'{"boot_id": "boot", "counters": {"a": {"period_s": "x"}}}', id="a-field-of-another-type"),
    pytest.param(b'{"boot_id": "boot", "counters": {"a": {"period_s": 1, "samples": [[1]]}}}', id="half-a-sample"),
]


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_is_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert load_counters(path, "boot", 600.0) == {}


def test_a_file_that_cannot_be_read_is_nothing(path: Path) -> None:
    path.mkdir()
    assert load_counters(path, "boot", 600.0) == {}


def test_a_save_replaces_the_file_at_once(path: Path) -> None:
    save_counters(path, COUNTERS, "boot")
    with path.open("rb") as reader:
        save_counters(path, {}, "boot")
        assert b"loop0" in reader.read()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_save_that_fails_is_a_warning_and_keeps_the_old(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_counters(path, COUNTERS, "boot")
    path.with_name(path.name + ".new").mkdir()
    with caplog.at_level(logging.WARNING):
        save_counters(path, {}, "boot")
    assert "cannot save the read counters" in caplog.text
    assert load_counters(path, "boot", 600.0) == COUNTERS


MOUNT = SeenMount("a", (7, "loop0"))
ANOTHER = SeenMount("a", (8, "loop0"))


def look(counters: Counters, now: float, read_bytes: int, mount: SeenMount = MOUNT) -> Reads | None:
    return counters.take([mount], {"a": read_bytes}, now).get("a")


def test_what_was_read_since_a_streak_began_is_told() -> None:
    """Every 30 s a look; a minute after three quarters of an hour of quiet 6 MB have been read."""
    counters, now = Counters(600.0), 1000.0
    for total in [0, *[0] * 90, 3_000_000]:
        look(counters, now, total)
        now += 30.0
    assert look(counters, now, 6_000_000) == Reads(100_000.0, 60.0, 6_000_000, now, 6_000_000, 0)
    assert counters.usual_streak_s(now, 1800.0) == pytest.approx((2 * 1800 + 60) / 2)


def test_what_is_not_read_has_no_counter() -> None:
    counters = Counters(600.0)
    assert [look(counters, now, 4096) for now in (0.0, 30.0, 60.0)] == [None, None, None]
    assert counters.by_dataset == {}


def test_a_counter_at_rest_goes_on_as_if_it_had_been_looked_at() -> None:
    """Two of them meet the same reads: one is looked at through `Counters`, and rests; the other is not let rest."""
    counters, plain = Counters(60.0), ReadCounter(60.0)
    total, pauses = 0, [0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 9, *[0] * 20, 3]
    for step, new in enumerate(pauses):
        total, now = total + new, 100.0 + 30.0 * step
        told = look(counters, now, total)
        plain.sample(now, "loop0@7", total, Backing.SOURCE)
        if plain.total_bytes:
            assert told == plain.reads(now), f"step {step}"
    assert total == 24


def test_a_mount_made_anew_begins_from_where_its_device_is() -> None:
    counters = Counters(600.0)
    for now, total in ((0.0, 0), (30.0, 100)):
        look(counters, now, total)
    told = look(counters, 60.0, 5000, ANOTHER)
    assert told is not None and told.source_bytes == 100
    told = look(counters, 90.0, 5050, ANOTHER)
    assert told is not None and told.source_bytes == 150


def test_an_idle_mount_made_anew_begins_from_where_its_device_is() -> None:
    counters = Counters(600.0)
    assert [look(counters, 0.0, 10), look(counters, 30.0, 5000, ANOTHER)] == [None, None]
    told = look(counters, 60.0, 5001, ANOTHER)
    assert told is not None and told.source_bytes == 1


def test_what_is_mounted_no_more_is_forgotten() -> None:
    counters = Counters(600.0)
    for now, total in ((0.0, 0), (30.0, 100)):
        look(counters, now, total)
    assert counters.take([], {}, 60.0) == {}
    assert counters.by_dataset == {}


def test_a_saved_counter_goes_on() -> None:
    saved = ReadCounter(600.0)
    for at, total in ((0.0, 0), (30.0, 100)):
        saved.sample(at, "loop0@7", total, Backing.SOURCE)
    told = look(Counters(600.0, {"a": saved}), 60.0, 130)
    assert told is not None and told.source_bytes == 130
