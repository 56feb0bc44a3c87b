"""What the loop devices have read so far, from /proc/diskstats. Must not keep samples: rates are made elsewhere."""

import re
from pathlib import Path
from typing import NamedTuple

from scratch_slurm.domain.errors import DeviceError

# Whatever the device's own block size is. Source: Documentation/admin-guide/iostats.rst, field 3.
_SECTOR_BYTES = 512

_LOOP = re.compile(r"loop[0-9]+", re.ASCII)


class DiskReads(NamedTuple):
    """Reads that reached a device since it was made; what the page cache served is not in it."""

    reads: int
    bytes: int


def parse_diskstats(text: str) -> dict[str, DiskReads]:
    """Parse /proc/diskstats into loop device name -> reads; partitions and other devices are left out.

    A binding anew of the same device does not start its counters anew: the first sample is the base.
    Source: Documentation/admin-guide/iostats.rst
    """
    reads = {}
    for line in text.split("\n"):
        fields = line.split(None, 6)  # major, minor, name, reads, reads merged, sectors read, ...
        if len(fields) >= 6 and _LOOP.fullmatch(fields[2]):
            reads[fields[2]] = DiskReads(int(fields[3]), int(fields[5]) * _SECTOR_BYTES)
    return reads


def read_diskstats(path: Path = Path("/proc/diskstats")) -> dict[str, DiskReads]:
    """Read what every loop device has read so far; never blocks.

    Raises: DeviceError: the file cannot be read.
    """
    try:
        return parse_diskstats(path.read_text(encoding="ascii", errors="replace"))
    except OSError as exc:
        raise DeviceError(f"{path}: cannot read it: {exc.strerror}") from exc
