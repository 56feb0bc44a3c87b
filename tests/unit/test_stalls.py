"""Devices that have reads under way and finish none."""

from scratch_slurm.node.kernel.diskstats import DiskReads
from scratch_slurm.service.hangs import Stalls


def test_a_device_stalls_when_what_is_under_way_does_not_end_for_so_long() -> None:
    stalls = Stalls(10.0)
    assert stalls.sample({"loop1": DiskReads(5, 0, 2)}, 100.0) == []
    assert stalls.sample({"loop1": DiskReads(5, 0, 2)}, 109.9) == []
    assert stalls.sample({"loop1": DiskReads(5, 0, 1)}, 110.0) == ["loop1"]
    assert stalls.sample({"loop1": DiskReads(5, 0, 1)}, 111.0) == ["loop1"], "as long as it does"


def test_each_read_that_ends_is_a_sign_of_life() -> None:
    stalls = Stalls(10.0)
    assert not any(stalls.sample({"loop1": DiskReads(reads, 0, 8)}, 9.0 * reads) for reads in range(20))


def test_a_device_without_reads_does_not_stall() -> None:
    stalls = Stalls(10.0)
    stalls.sample({"loop1": DiskReads(5, 0, 1)}, 0.0)
    stalls.sample({"loop1": DiskReads(5, 0, 0)}, 5.0)
    assert stalls.sample({"loop1": DiskReads(5, 0, 1)}, 12.0) == [], "another read"
    assert stalls.sample({}, 50.0) == []
    assert stalls.sample({"loop1": DiskReads(5, 0, 1)}, 51.0) == []
