"""The read counters' file: what one daemon saves the next one of this boot has, and nothing else."""

import logging
from pathlib import Path

import pytest

from scratch_slurm.domain.model import Backing
from scratch_slurm.domain.throughput import ReadCounter
from scratch_slurm.service.reads import load_counters, save_counters


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
    """Without what it did not count: of readings that are over it tells nothing."""
    path.write_text(
        '{"boot_id":"boot","counters":{"a":{"period_s":600.0,"device":"/dev/loop0@12","device_bytes":70,"source_bytes":60,'
        '"cache_bytes":0,"reading_since":20.0,"last_read_at":50.0,"samples":[[0.0,0],[50.0,60]]}}}'
    )
    counter = load_counters(path, "boot", 600.0)["a"]
    assert (counter.read_for_s(60.0), counter.ended_readings, counter.reading_from_bytes) == (40.0, 0, 0)


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
