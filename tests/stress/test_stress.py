"""Random datasets, jobs and misfortunes over the real daemon; every promise is checked after every step.

`make stress` runs the long form: SCRATCH_STRESS_SECONDS (600) from SCRATCH_STRESS_SEED (another one each time; it is
printed when a promise breaks).
"""

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.daemon import RunningDaemon
from tests.kit.disks import small_disk
from tests.kit.diskuse import DiskWatch
from tests.kit.images import apart, clean_up
from tests.kit.sources import SlowSource, why_not
from tests.kit.world import CAPACITY_BYTES, RESERVE_BYTES, World

pytestmark = [pytest.mark.root, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

SHORT_S = 8.0


@pytest.fixture(scope="module", autouse=True)
def _namespace() -> Iterator[None]:
    with apart():
        yield


@pytest.fixture
def folder(tmp_path: Path):
    (tmp_path / "real").mkdir()
    yield tmp_path
    clean_up(tmp_path)


def run(folder: Path, seed, duration_s):
    config: dict[str, Any] = {
        "capacity": str(CAPACITY_BYTES),
        "reserve": str(RESERVE_BYTES),
        "copy": {"datasets": 3, "bandwidth": 6_000_000},
        "source_timeout": "4",
        "horizon": "5m",
    }
    with (
        small_disk(folder, folder / "cache", 64 << 20),
        SlowSource(folder / "real", folder / "source") as source,
        RunningDaemon(folder, **config) as daemon,
        DiskWatch(daemon.cache_dir) as watch,
    ):
        filler = folder / "cache" / "lost+found" / "another-program"
        world = World(daemon, source, watch, filler, random.Random(seed))
        for _ in range(5):
            world.publish()
        end = time.monotonic() + duration_s
        try:
            while time.monotonic() < end:
                world.step()
            world.settle()
        except BaseException as exc:
            source.set(hang=False, hang_open=False, hang_all=False)
            exc.add_note(f"seed {seed}, step {world.steps}:\n" + "\n".join(world.history[-40:]))
            exc.add_note("\n".join(daemon.log()[-60:]))
            raise
        finally:
            for held in world.held:
                with contextlib.suppress(OSError):
                    os.close(held.fd)
            daemon.kill_if_running()
            clean_up(folder / "datasets")
        return world


def test_every_promise_holds_after_every_step_of_a_short_run(folder: Path) -> None:
    assert run(folder, 1, SHORT_S).steps > 10


@pytest.mark.stress
def test_every_promise_holds_after_every_step_of_a_long_run(folder: Path) -> None:
    seed = int(os.environ.get("SCRATCH_STRESS_SEED") or random.SystemRandom().randrange(10**6))
    world = run(folder, seed, float(os.environ.get("SCRATCH_STRESS_SECONDS") or 600))
    print(f"seed {seed}: {world.steps} steps")
