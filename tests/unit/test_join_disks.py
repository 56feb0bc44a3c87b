"""What room each disk has: the copies under way count where they are made, and what is held where it lay."""

from dataclasses import replace

import pytest

from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.model import Space
from scratch_slurm.node.staging.cache import CacheContents, PartialImage
from scratch_slurm.service.join import find_disks
from scratch_slurm.service.memory import Copy, Memory
from scratch_slurm.service.observe import DiskReading, Reading
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


def test_each_disk_has_room_of_its_own() -> None:
    one, other = find_disks(look(), Memory(), CONFIG)
    assert (one.dir, one.space) == ("/ssd0", Space(100 * GB, 0, 5 * GB, 97 * GB, 100 * GB))
    assert (other.dir, other.space) == ("/ssd1", Space(20 * GB, GB, 3 * GB, 97 * GB, 40 * GB))


@pytest.mark.parametrize("disk", ["/ssd0", "/ssd1"])
def test_a_copy_under_way_takes_room_where_it_is_made(disk: str) -> None:
    memory = Memory()
    memory.copies["b"] = Copy(image("b", GB), disk)
    before = {each.dir: each.space for each in find_disks(look(), Memory(), CONFIG)}
    after = {each.dir: each.space for each in find_disks(look(), memory, CONFIG)}
    taken = {name: after[name].used_bytes - before[name].used_bytes for name in after}
    assert taken.pop(disk) == pytest.approx(GB + OVERHEAD_BYTES, abs=4096)
    assert set(taken.values()) == {0}


def test_what_a_copy_has_on_its_disk_is_not_counted_twice() -> None:
    memory = Memory()
    memory.copies["b"] = Copy(image("b", GB), "/ssd0")
    seen = look()
    part = PartialImage("b", image("b", GB).generation.id, GB)
    contents = replace(seen.disks[0].contents, partials=(part,), used_bytes=4 * GB, free_bytes=96 * GB)
    seen = replace(seen, disks=(replace(seen.disks[0], contents=contents), seen.disks[1]))
    assert find_disks(seen, memory, CONFIG)[0].space.used_bytes == pytest.approx(6 * GB, abs=50_000)


def test_what_is_wrong_with_a_disk_is_its_own() -> None:
    one, other = find_disks(look(second="/ssd1: cannot read it"), Memory(), CONFIG)
    assert (one.problem, other.problem) == ("", "/ssd1: cannot read it")
    assert look(second="/ssd1: cannot read it").problem == "/ssd1: cannot read it"
    assert find_disks(look(unknown=True), Memory(), CONFIG)[1].is_unknown
