"""What the loop devices have read so far, from /proc/diskstats. Must not keep samples: rates are made elsewhere."""

import re
from pathlib import Path
from typing import NamedTuple

from scratch_slurm.domain.errors import DeviceError

# Whatever the device's own block size is. Source: Documentation/admin-guide/iostats.rst, field 3.
_SECTOR_BYTES = 512

# Major, minor, name, reads, reads merged, sectors read; after five more numbers what is under way.
_LOOP = re.compile(
    r"^ *\d+ +\d+ (loop\d+) (\d+) \d+ (\d+)(?: \d+ \d+ \d+ \d+ \d+ (\d+))?(?: |$)", re.ASCII | re.MULTILINE
)


class DiskReads(NamedTuple):
    """Reads that reached a device since it was made; what the page cache served is not in it."""

    reads: int
    bytes: int
    under_way: int = 0
    """Requests that have not ended."""


def parse_diskstats(text: str) -> dict[str, DiskReads]:
    """Parse /proc/diskstats into loop device name -> reads; partitions and other devices are left out.

    A binding anew of the same device does not start its counters anew: the first sample is the base.
    Source: Documentation/admin-guide/iostats.rst
    """
    return {
        name: DiskReads(int(reads), int(sectors) * _SECTOR_BYTES, int(under_way or 0))
        for name, reads, sectors, under_way in _LOOP.findall(text)
    }


def read_diskstats(path: Path = Path("/proc/diskstats")) -> dict[str, DiskReads]:
    """Read what every loop device has read so far; never blocks.

    Raises: DeviceError: the file cannot be read.
    """
    try:
        return parse_diskstats(path.read_text(encoding="ascii", errors="replace"))
    except OSError as exc:
        raise DeviceError(f"{path}: cannot read it: {exc.strerror}") from exc
