from pathlib import Path

import pytest

from scratch_slurm.domain.errors import DeviceError
from scratch_slurm.node.kernel.diskstats import DiskReads, parse_diskstats, read_diskstats

# Linux 6.18, 4.18 (18 fields) and 2.6-style partitions (4 fields).
RECORDED = """\
   7       0 loop0 117 0 2048 31 0 0 0 0 0 44 31 0 0 0 0 0 0
   7      12 loop12 3 0 9007199254740993 1 0 0 0 0 0 4 1 0 0 0 0
   7       1 loop1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 259       0 loop0p1 5 0 40 0 0 0 0 0 0 0 0
   7       2 loop2p1 5 0 40 0 0 0 0 0 0 0 0
 254       0 vda 114517 16615 123008306 788002 59609 27767 111265936 750697 0 124692 1551676 4142 49 98661552 12722 1
   8       1 sda1 3 4 5 6
   7       9 loop9
"""


def test_loop_devices_only_in_sectors_of_512_bytes() -> None:
    assert parse_diskstats(RECORDED) == {
        "loop0": DiskReads(reads=117, bytes=2048 * 512),
        "loop12": DiskReads(reads=3, bytes=9007199254740993 * 512),
        "loop1": DiskReads(reads=0, bytes=0),
    }


def test_an_empty_file_has_no_devices() -> None:
    assert parse_diskstats("") == {}


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="diskstats: cannot read it"):
        read_diskstats(tmp_path / "diskstats")
