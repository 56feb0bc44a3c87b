"""Disks by whose fault copies failed: for how long others go first."""

from scratch_slurm.service.shunned import Shunned


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_disk_comes_last_for_ten_minutes_and_is_not_told_of_after_that() -> None:
    clock = Clock()
    shunned = Shunned(clock)
    shunned.add("/ssd0")
    assert shunned.find() == {"/ssd0": 1600.0}
    clock.now = 1599.0
    shunned.add("/ssd1")
    assert shunned.find() == {"/ssd0": 1600.0, "/ssd1": 2199.0}
    clock.now = 1600.0
    assert shunned.find() == {"/ssd1": 2199.0}


def test_each_failure_begins_the_time_anew_and_a_copy_that_succeeds_ends_it() -> None:
    clock = Clock()
    shunned = Shunned(clock)
    shunned.add("/ssd0")
    clock.now = 1300.0
    shunned.add("/ssd0")
    assert shunned.find() == {"/ssd0": 1900.0}
    shunned.forgive(["/ssd1", "/ssd0"])
    assert shunned.find() == {}
