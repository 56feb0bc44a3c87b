"""Pinned means pinned: an eviction and a pin come to one answer, whoever is first, and nobody waits for the disk."""

import asyncio
import contextlib
import random
import threading
import time

import pytest

from scratch_slurm.domain.actions import Evict
from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.errors import LedgerError, PinnedError, ScratchError, SourceError
from scratch_slurm.domain.messages import DatasetState
from scratch_slurm.node.staging.cache import Cache
from scratch_slurm.service import operations as op
from scratch_slurm.service.perform import Performer
from scratch_slurm.service.worker_hands import WorkerHands
from scratch_slurm.service.workers import Workers
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.strategies import pin

GENERATION = "0123456789abcdef"


class Pins:
    """A ledger whose answers are known beforehand: one for each look."""

    def __init__(self, *looks):
        self.looks = list(looks)
        self.events = []

    async def pins(self):
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    async def record(self, event, **values):
        self.events.append(event)


@pytest.fixture
def cache(tmp_path):
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    cache.image_path("coco", GENERATION).write_bytes(b"whole")
    return cache


def evict(cache, pins, *, workers=None):
    """Evict the one image; returns the error, if any."""
    values = {"source_dir": "/source", "cache_dir": str(cache.dir)}
    config = build_config(values, origin="test", host_name="n1")
    (image,) = cache.read().images

    async def run():
        pool = workers or Workers()
        hands = WorkerHands(config, pool)
        performer = Performer(config, pins, hands, tell=hands.tell, gate=lambda dataset, generation_id: None)
        try:
            await performer.perform(Evict(image, None, "because"))
        finally:
            await pool.close(patience_s=10)

    try:
        asyncio.run(run())
    except ScratchError as exc:
        return exc
    return None


HELD = [pin("coco", 7)]
CASES = [
    pytest.param([[], []], None, False, id="nobody-pins"),
    pytest.param([HELD], PinnedError, True, id="pinned-before-it-begins"),
    pytest.param([[], HELD], PinnedError, True, id="pinned-between-the-looks"),
    pytest.param([[pin("other", 7)], [pin("other", 7)]], None, False, id="another-dataset-is-pinned"),
    pytest.param([LedgerError("no")], LedgerError, True, id="nobody-knows-who-pins"),
    pytest.param([[], LedgerError("no")], LedgerError, True, id="nobody-knows-who-pins-at-the-second-look"),
]


@pytest.mark.parametrize(("looks", "error", "stays"), CASES)
def test_an_image_goes_only_when_nobody_is_known_to_pin_it_before_and_after_it_is_retired(
    cache, looks, error, stays
) -> None:
    pins = Pins(*looks)
    found = evict(cache, pins)
    assert type(found) is (error or type(None))
    assert [image.dataset for image in cache.read().images] == (["coco"] if stays else [])
    assert list(cache.staging.iterdir()) == []
    assert pins.looks == []


class LateWorkers(Workers):
    """Workers of which the first to retire it is given up on, and does it all the same, as the kernel may have it."""

    async def run(self, request, **options):
        await super().run(request, **options)
        if isinstance(request, op.RetireImage):
            raise SourceError("no sign of life")


def test_an_image_that_was_retired_by_a_process_that_was_given_up_is_served_again(cache) -> None:
    assert isinstance(evict(cache, Pins([], []), workers=LateWorkers()), SourceError)
    assert [image.dataset for image in cache.read().images] == ["coco"]


@pytest.mark.root
def test_an_eviction_and_a_pin_never_cross(folder) -> None:
    """Jobs pin and ask as the prolog does, while an administrator evicts: who is told `cached` keeps that copy."""
    with RunningDaemon(folder) as daemon:
        make_version(daemon.source_dir, "coco", 1, file_bytes=20_000)
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        (path,) = daemon.cached_files()
        daemon.release(1)
        over = threading.Event()
        evicted: list[bool] = []
        kept: list[bool] = []
        rng, pauses = random.Random(7), random.Random(8)

        def administrator():
            while not over.wait(pauses.uniform(0, 0.12)):
                with contextlib.suppress(ScratchError):
                    daemon.evict("coco")
                    evicted.append(True)

        thread = threading.Thread(target=administrator)
        thread.start()
        try:
            deadline = time.monotonic() + 90
            job_id = 1
            while job_id < 30 or not (evicted and kept):
                assert time.monotonic() < deadline, f"evicted {len(evicted)} times, kept {len(kept)} times"
                job_id += 1
                time.sleep(rng.uniform(0, 0.3))  # now and then nobody pins for long enough
                with daemon.ledger() as ledger:
                    ledger.pin(f"job:{job_id}", ["coco"], uid=0)
                if daemon.wait("coco").datasets[0].state is DatasetState.CACHED:
                    inode = path.stat().st_ino
                    kept.append(True)
                    for _ in range(20):
                        assert path.stat().st_ino == inode, "evicted under a pin"
                else:
                    daemon.until(lambda: daemon.is_cached("coco"), "it is staged for the pin")
                with daemon.ledger() as ledger:
                    ledger.release(f"job:{job_id}")
        finally:
            over.set()
            thread.join()
