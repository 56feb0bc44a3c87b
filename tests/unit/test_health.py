"""Which mounts are looked at: those that were read since the last look, no more often than the interval."""

import msgspec
import pytest

from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.model import Backing
from scratch_slurm.service.health import Health
from scratch_slurm.service.memory import Memory
from scratch_slurm.service.observe import SeenMount
from scratch_slurm.service.worker_hands import WorkerHands
from scratch_slurm.service.workers import Workers

MOUNT = SeenMount("coco", 100, "loop3", Backing.SOURCE, "/source/coco.squashfs", 4096)
CONFIG = build_config(
    {"source_dir": "/source", "cache_dir": "/cache", "interval": "30"}, origin="test", host_name="node"
)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def health(memory: Memory) -> Health:
    return Health(CONFIG, memory, WorkerHands(CONFIG, Workers()))


def read(total_bytes: int) -> SeenMount:
    return msgspec.structs.replace(MOUNT, read_bytes=total_bytes)


def test_idle_mounts_are_never_looked_at(health: Health) -> None:
    assert [health.choose([MOUNT], now) for now in (0.0, 60.0, 6000.0)] == [[], [], []]


def test_what_is_read_is_looked_at_once_an_interval(health: Health) -> None:
    assert health.choose([MOUNT], 0.0) == []
    assert health.choose([read(8192)], 29.0) == []
    assert health.choose([read(8192)], 30.0) == [read(8192)]


def test_reads_of_the_look_itself_ask_for_no_other(health: Health) -> None:
    health.choose([MOUNT], 0.0)
    assert health.choose([read(8192)], 40.0)
    health._looked.clear()  # as a look does when it ends
    assert health.choose([read(9000)], 41.0) == []
    assert health.choose([read(9000)], 100.0) == []
    assert health.choose([read(9001)], 101.0) == [read(9001)]


def test_what_is_unwell_is_looked_at_again_though_nobody_reads_it(health: Health, memory: Memory) -> None:
    health.choose([MOUNT], 0.0)
    memory.unwell["coco", 100, "loop3"] = "EIO"
    assert health.choose([MOUNT], 31.0) == [MOUNT]


def test_a_mount_made_anew_is_another_one(health: Health, memory: Memory) -> None:
    health.choose([MOUNT], 0.0)
    memory.unwell["coco", 100, "loop3"] = "EIO"
    anew = msgspec.structs.replace(MOUNT, mount_id=101, read_bytes=0)
    assert health.choose([anew], 31.0) == []
    assert memory.unwell == {}
