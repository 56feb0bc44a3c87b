"""What a plan is made from: rates since a reading began, how much was read, and how long readings go on."""

import itertools

import pytest

from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.model import Backing, Catalog
from scratch_slurm.node.staging.cache import CacheContents
from scratch_slurm.service.join import count_reads, find_ours, join
from scratch_slurm.service.memory import Memory
from scratch_slurm.service.observe import DiskReading, Reading, SeenMount

CONFIG = build_config(
    {"source_dir": "/source", "cache_dir": "/cache", "capacity": "1 GB", "reserve": "0"},
    origin="test",
    host_name="node",
)
NOTHING_CACHED = CacheContents((), (), used_bytes=0, free_bytes=10**10, whole_bytes=10**10)


def test_the_plan_is_made_from_what_was_read_since_a_reading_began() -> None:
    """Every 30 s a look; a minute after three quarters of an hour of quiet 6 MB have been read."""
    memory, clock = Memory(), itertools.count(1000.0, 30.0)
    for total in [0, *[0] * 90, 3_000_000, 6_000_000]:
        now = next(clock)
        mount = SeenMount("a", 7, "loop0", Backing.SOURCE, "/source/a.squashfs", total)
        reading = Reading({"a": mount}, (DiskReading("/cache", NOTHING_CACHED),), {}, ())
        ours = find_ours(reading, memory, {})
        count_reads(memory, reading, ours, CONFIG.period_s, now)
    unread = {"covered": {}, "pins": (), "undecided": set(), "busy": set()}
    seen = join(reading, Catalog({}, {}), ours, memory, CONFIG, **unread, now=now)
    assert seen.bytes_per_s == {"a": pytest.approx(100_000.0)}
    assert seen.streak_bytes == {"a": 6_000_000}
    assert seen.streak_s == {"a": 60.0}
    assert seen.horizon_s == pytest.approx((2 * 1800 + 60) / 2)
