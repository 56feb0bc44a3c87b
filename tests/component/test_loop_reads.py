"""What the loop plans with: rates since a reading began, how much was read, and how long readings go on."""

import itertools
import time

import pytest

from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.model import Backing
from scratch_slurm.node.cache import Cache
from scratch_slurm.node.ledger import Ledger
from scratch_slurm.service.loop import Loop
from scratch_slurm.service.observe import Reading, SeenMount
from scratch_slurm.service.source import Source
from scratch_slurm.service.workers import Workers


@pytest.fixture
def loop(tmp_path):
    values = {"source_dir": "source", "cache_dir": "cache", "mount_dir": "mnt", "state_dir": "state"}
    paths = {key: f"{tmp_path}/{value}" for key, value in values.items()}
    config = build_config({**paths, "capacity": "1 GB", "reserve": "0"}, origin="test", host_name="node")
    (tmp_path / "state").mkdir(mode=0o700)
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    workers = Workers()
    with Ledger(config.ledger_path, boot_id="boot", now=time.time) as ledger:
        yield Loop(config, cache, ledger, workers, Source(config.source_dir, workers, silence_s=30))


def test_the_loop_plans_with_what_was_read_since_a_reading_began(loop, monkeypatch):
    """Every 30 s a look; a minute after three quarters of an hour of quiet 6 MB have been read."""
    clock = itertools.count(1000.0, 30.0)
    contents = loop._cache.read()
    reads = [0, *[0] * 90, 3_000_000, 6_000_000]
    for total in reads:
        now = next(clock)
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        mount = SeenMount("a", 7, "loop0", Backing.SOURCE, "/source/a.squashfs", total)
        seen = loop._observe(Reading({"a": mount}, contents, 0, ()))
    assert seen.bytes_per_s == {"a": pytest.approx(100_000.0)}
    assert seen.reading_bytes == {"a": 6_000_000}
    assert seen.read_for_s == {"a": 60.0}
    assert seen.horizon_s == pytest.approx((2 * 1800 + 60) / 2)
