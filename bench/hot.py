"""End to end: a reader loops over a dataset on a source of 100 MB/s, and the daemon notices by itself.

Nothing is pinned, asked for or configured beyond the defaults: the daemon sees the reads, copies the image, which takes
its share of the source meanwhile, and switches the mount below the reader's open file. The page cache is dropped after
each pass, as if the dataset were larger than the memory. Against it the same reader, as long, without a daemon.
"""

import sys

sys.path.insert(0, sys.path.pop(0).rpartition("/")[0])  # bench/copy.py is not the standard library's

import contextlib
import ctypes
import multiprocessing
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import _common as common
from scratch_slurm.domain.messages import DatasetState
from tests.kit.daemon import RunningDaemon
from tests.kit.images import apart, clean_up
from tests.kit.sources import SlowSource

SOURCE_BYTES_PER_S = 100e6
PIECE_BYTES = 1 << 20
PLAIN = ("-noappend", "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX")

_fork = multiprocessing.get_context("fork")


class Progress(ctypes.Structure):
    """What the reader tells: `read_s` leaves out the dropping of caches."""

    _fields_ = [("bytes", ctypes.c_longlong), ("read_s", ctypes.c_double), ("passes", ctypes.c_long)]


def read_for_ever(path: Path, told: Progress) -> None:
    """Read one open file again and again, in order."""
    with path.open("rb", buffering=0) as file:
        while True:
            file.seek(0)
            began = time.monotonic()
            while size := len(file.read(PIECE_BYTES)):
                now = time.monotonic()
                told.bytes += size
                told.read_s += now - began
                began = now
            told.passes += 1
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            Path("/proc/sys/vm/drop_caches").write_text("1\n")


@contextlib.contextmanager
def reader(path: Path) -> Iterator[Any]:
    told = _fork.Value(Progress, lock=False)
    process = _fork.Process(target=read_for_ever, args=(path, told))
    process.start()
    try:
        yield told
    finally:
        process.kill()
        process.join()


def measure(quick: bool) -> common.Figures:
    if os.geteuid() != 0:
        raise SystemExit("the daemon needs root")
    size_bytes, after_s, intervals = (64 << 20, 3.0, (2,)) if quick else (1 << 30, 30.0, (30, 5))
    with apart(), tempfile.TemporaryDirectory(prefix="scratch-slurm-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        (folder / "images").mkdir()
        make_image(folder / "images/hot.squashfs", size_bytes)
        rows = []
        with SlowSource(folder / "images", folder / "slow", bytes_per_s=SOURCE_BYTES_PER_S) as slow:
            try:
                for interval in intervals:
                    rows.append(run_with_daemon(folder / f"node-{interval}", slow, interval, after_s))
                rows.append(run_without(folder / "plain", slow, max(row["seconds"] for row in rows)))
            finally:
                clean_up(folder)
    return {"image_bytes": size_bytes, "source_bytes_per_s": SOURCE_BYTES_PER_S, "rows": rows}


def make_image(image: Path, size_bytes: int) -> None:
    tree = image.with_suffix(".tree")
    tree.mkdir()
    rng = random.Random(1)
    with (tree / "data").open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(rng.randbytes(1 << 20))
    subprocess.run(["mksquashfs", tree, image, *PLAIN], check=True, capture_output=True)
    (tree / "data").unlink()
    tree.rmdir()


def run_with_daemon(folder: Path, slow: SlowSource, interval: int, after_s: float) -> common.Figures:
    folder.mkdir()
    settings: dict[str, Any] = {"source_dir": str(slow.path), "capacity": "4 GB", "interval": interval}
    settings |= {"period": "10m", "horizon": "30m"}
    with RunningDaemon(folder, **settings) as daemon:
        daemon.until(lambda: daemon.is_mounted("hot"), "the dataset is mounted")
        slow_before = slow.counters().get("hot.squashfs", None)
        with reader(daemon.path("hot")) as told:
            began = time.monotonic()
            noticed = until_state(daemon, told, DatasetState.STAGING, DatasetState.CACHED)
            noticed_s = time.monotonic() - began
            cached = until_state(daemon, told, DatasetState.CACHED)
            cached_s = time.monotonic() - began
            while time.monotonic() < began + cached_s + after_s:
                time.sleep(0.05)
            end = told.bytes, told.read_s
            seconds = time.monotonic() - began
        slow_bytes = slow.counters()["hot.squashfs"].bytes - (slow_before.bytes if slow_before else 0)
    return {
        "what": f"scratch-slurmd, interval {interval} s",
        "seconds": seconds,
        "noticed_s": noticed_s,
        "cached_s": cached_s,
        "before_mb_per_s": rate((0, 0.0), noticed),
        "copying_mb_per_s": rate(noticed, cached),
        "after_mb_per_s": rate(cached, end),
        "read_bytes": end[0],
        "slow_bytes": slow_bytes,
    }


def run_without(folder: Path, slow: SlowSource, seconds: float) -> common.Figures:
    """The same reader on a plain read-only loop mount of the source."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "squashfs", "-o", "ro,loop", slow.path / "hot.squashfs", folder], check=True)
    before = slow.counters()["hot.squashfs"].bytes
    try:
        with reader(folder / "data") as told:
            time.sleep(seconds)
            end = told.bytes, told.read_s
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    return {
        "what": "the source all along",
        "seconds": seconds,
        "before_mb_per_s": rate((0, 0.0), end),
        "read_bytes": end[0],
        "slow_bytes": slow.counters()["hot.squashfs"].bytes - before,
    }


def until_state(daemon: RunningDaemon, told: Progress, *states: DatasetState) -> tuple[int, float]:
    give_up_at = time.monotonic() + 600
    while daemon.state("hot") not in states:
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"not {states} within the time: {daemon.dataset('hot')}")
        time.sleep(0.1)
    return told.bytes, told.read_s


def rate(begin: tuple[int, float], end: tuple[int, float]) -> float:
    """MB/s between two looks at the reader; 0 when it read nothing."""
    return (end[0] - begin[0]) / 1e6 / (end[1] - begin[1]) if end[1] > begin[1] else 0.0


def show(figures: common.Figures) -> str:
    plain = figures["rows"][-1]
    lines = []
    for row in figures["rows"]:
        after = row.get("after_mb_per_s")
        whole = row["read_bytes"] / row["seconds"] / 1e6
        lines.append(
            (
                row["what"],
                *(row.get(key, "-") for key in ("noticed_s", "cached_s", "before_mb_per_s", "copying_mb_per_s")),
                after or "-",
                (after or plain["before_mb_per_s"]) / plain["before_mb_per_s"],
                whole,
                row["slow_bytes"] / row["read_bytes"],
            )
        )
    header = (
        "reader", "copy begins s", "cached s", "before MB/s", "copying MB/s", "after MB/s", "x source", "in all MB/s",
        "slow bytes a byte",
    )  # fmt: skip
    size = f"{figures['image_bytes'] / 1e6:.0f} MB"
    return (
        common.table(header, lines)
        + f"\nImage of {size}, from the first byte read; in all: with the pauses between passes."
    )


if __name__ == "__main__":
    common.main(__doc__, measure, show)
