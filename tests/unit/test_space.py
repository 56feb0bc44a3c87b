"""What room each disk has: the copies under way count where they are made, and what is held where it lay."""

from dataclasses import replace

import pytest
from msgspec import structs

from scratch_slurm.domain.actions import Evict, Stage
from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.dataset import Card, Staging, UnderWay
from scratch_slurm.domain.model import Space
from scratch_slurm.node.staging.cache import CacheContents, PartialImage
from scratch_slurm.service.observe import DiskReading, Reading
from scratch_slurm.service.space import find_disks, find_max_pinned_bytes, find_overhead_bytes
from tests.kit.strategies import cached, image

GB = 10**9
CONFIG = build_config(
    {
        "source_dir": "/source",
        "cache_dirs": ["/ssd0", {"dir": "/ssd1", "capacity": "50%", "reserve": "1 GB"}],
        "capacity": "100 GB",
        "reserve": "0",
    },
    origin="test",
    host_name="node",
)
OVERHEAD_BYTES = 3 * 4096


def look(*, second: str = "", unknown: bool = False) -> Reading:
    contents = CacheContents((cached("a", 3 * GB),), (), 3 * GB, 97 * GB, 100 * GB)
    problem = DiskReading("/ssd1", replace(contents, whole_bytes=40 * GB), second, unknown)
    return Reading({}, (DiskReading("/ssd0", contents), problem), {"/ssd0": 2 * GB}, ())


def copying(disk: str) -> Card:
    staging = Staging(image("b", GB), disk)
    return Card("b", under_way=UnderWay(Stage(image("b", GB), "pinned", True, disk), staging=staging))


def evicting(*, hanging_since: float | None = None) -> Card:
    copy = structs.replace(cached("a", 3 * GB), disk="/ssd0")
    return Card("a", under_way=UnderWay(Evict(copy, None, "room"), hanging_since))


def test_each_disk_has_room_of_its_own() -> None:
    one, other = find_disks(look(), (), CONFIG)
    assert (one.dir, one.space) == ("/ssd0", Space(100 * GB, 0, 5 * GB, 97 * GB, 100 * GB))
    assert (other.dir, other.space) == ("/ssd1", Space(20 * GB, GB, 3 * GB, 97 * GB, 40 * GB))


@pytest.mark.parametrize("disk", ["/ssd0", "/ssd1"])
def test_a_copy_under_way_takes_room_where_it_is_made(disk: str) -> None:
    before = {each.dir: each.space for each in find_disks(look(), (), CONFIG)}
    after = {each.dir: each.space for each in find_disks(look(), [copying(disk)], CONFIG)}
    taken = {name: after[name].used_bytes - before[name].used_bytes for name in after}
    assert taken.pop(disk) == pytest.approx(GB + OVERHEAD_BYTES, abs=4096)
    assert set(taken.values()) == {0}


def test_what_a_copy_has_on_its_disk_is_not_counted_twice() -> None:
    seen = look()
    part = PartialImage("b", image("b", GB).generation.id, GB)
    contents = replace(seen.disks[0].contents, partials=(part,), used_bytes=4 * GB, free_bytes=96 * GB)
    seen = replace(seen, disks=(replace(seen.disks[0], contents=contents), seen.disks[1]))
    assert find_disks(seen, [copying("/ssd0")], CONFIG)[0].space.used_bytes == pytest.approx(6 * GB, abs=50_000)


def test_an_eviction_will_free_its_room_but_not_while_it_hangs() -> None:
    assert [each.leaving_bytes for each in find_disks(look(), [evicting()], CONFIG)] == [3 * GB, 0]
    assert [each.leaving_bytes for each in find_disks(look(), [evicting(hanging_since=1.0)], CONFIG)] == [0, 0]


def test_a_copy_takes_most_beyond_its_image_where_that_is_largest() -> None:
    assert find_overhead_bytes(()) == OVERHEAD_BYTES
    assert find_overhead_bytes([image("a", 2**40), image("b", 1)]) == OVERHEAD_BYTES + 2**40 // 2**19


def test_what_is_wrong_with_a_disk_is_its_own() -> None:
    one, other = find_disks(look(second="/ssd1: cannot read it"), (), CONFIG)
    assert (one.problem, other.problem) == ("", "/ssd1: cannot read it")
    assert look(second="/ssd1: cannot read it").problem == "/ssd1: cannot read it"
    assert find_disks(look(unknown=True), (), CONFIG)[1].is_unknown


def test_a_disk_by_whose_fault_a_copy_failed_is_shunned_and_the_other_is_not() -> None:
    assert [each.shunned_until for each in find_disks(look(), (), CONFIG, {"/ssd1": 7.0})] == [0.0, 7.0]


@pytest.mark.parametrize(("limit", "expected"), [("", None), ("50%", 60 * GB), ("7 GB", 7 * GB)])
def test_what_the_jobs_of_a_user_may_pin_is_of_all_disks_together(limit: str, expected: int | None) -> None:
    config = structs.replace(CONFIG, max_pinned=limit)
    assert find_max_pinned_bytes(config, find_disks(look(), (), CONFIG)) == expected
