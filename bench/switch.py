"""The time of a retarget under 0, 1 and 8 concurrent readers, and the readers' worst stall.

Each reader opens a file of the dataset by its path, reads 128 KiB at a random place from the device, past what memory
holds, compares every byte, and starts again. Its stall is the longest that one such turn took around a switch; "no
switch" is the same without one. The alternative is what people do without LOOP_CHANGE_FD: umount -l, then mount the
copy. "failed" counts turns that found no file, "left behind" the open files that read the old image for ever.
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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench import _common as common
from scratch_slurm.node.kernel import loopdev
from scratch_slurm.node.kernel.mounts import mount_image
from tests.kit.images import apart, clean_up
from tests.kit.sources import SlowSource

FILE_BYTES = 64 << 20
READ_BYTES = 128 << 10
LATENCY_S = 0.005
READERS = (0, 1, 8)
PLAIN = ("-noappend", "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX")

_fork = multiprocessing.get_context("fork")


class Turns(ctypes.Structure):
    """What a reader tells; only it writes `done`, `failed` and `wrong`."""

    _fields_ = [
        ("done", ctypes.c_long),
        ("failed", ctypes.c_long),
        ("wrong", ctypes.c_long),
        ("worst_s", ctypes.c_double),
    ]


def read_for_ever(path: Path, expected: bytes, turns: Turns, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        offset = rng.randrange(FILE_BYTES // READ_BYTES) * READ_BYTES
        began = time.monotonic()
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY)
                break
            except FileNotFoundError:
                turns.failed += 1
                time.sleep(0.0001)
        os.posix_fadvise(descriptor, offset, READ_BYTES, os.POSIX_FADV_DONTNEED)
        data = os.pread(descriptor, READ_BYTES, offset)
        os.close(descriptor)
        turns.worst_s = max(turns.worst_s, time.monotonic() - began)
        turns.wrong += data != expected[offset : offset + READ_BYTES]
        turns.done += 1


@contextlib.contextmanager
def readers(count: int, path: Path, expected: bytes) -> Iterator[Any]:
    told = _fork.Array(Turns, max(1, count), lock=False)
    processes = [_fork.Process(target=read_for_ever, args=(path, expected, told[n], n)) for n in range(count)]
    try:
        for process in processes:
            process.start()
        yield told[:count]
    finally:
        for process in processes:
            process.kill()
            process.join()


def wait_for_turns(told: list[Turns], turns: int) -> None:
    """Wait until every reader has ended so many turns from now."""
    wanted = [reader.done + turns for reader in told]
    give_up_at = time.monotonic() + 30
    while any(reader.done < done for reader, done in zip(told, wanted, strict=True)):
        if time.monotonic() > give_up_at:
            raise RuntimeError("a reader hangs")
        time.sleep(0.0005)


def time_switches(switch: Callable[[int], None], told: list[Turns], count: int) -> common.Figures:
    """Switch there and back; returns milliseconds."""
    switch_ms, stall_ms = [], []
    for number in range(count):
        wait_for_turns(told, 2)
        for reader in told:
            reader.worst_s = 0.0
        began = time.perf_counter()
        switch(number)
        switch_ms.append(1000 * (time.perf_counter() - began))
        wait_for_turns(told, 2)
        stall_ms.append(1000 * max([reader.worst_s for reader in told], default=0.0))
    return {
        "switches": count,
        "median_ms": common.median(switch_ms),
        "max_ms": max(switch_ms),
        "stall_median_ms": common.median(stall_ms) if told else None,
        "stall_max_ms": max(stall_ms) if told else None,
        "failed": sum(reader.failed for reader in told),
        "wrong": sum(reader.wrong for reader in told),
    }


class Dataset:
    """One image in two places, and a mount point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected = random.Random(1).randbytes(FILE_BYTES)
        tree = folder / "tree"
        tree.mkdir()
        (tree / "data").write_bytes(self.expected)
        self.source_dir = folder / "source"
        self.source_dir.mkdir()
        self.source, self.copy = self.source_dir / "a.squashfs", folder / "copy.image"
        subprocess.run(["mksquashfs", tree, self.source, *PLAIN], check=True, capture_output=True)
        subprocess.run(["cp", self.source, self.copy], check=True)
        self.mount_point = folder / "dataset"
        self.mount_point.mkdir()
        self.file = self.mount_point / "data"

    def retargets(self, source: Path, readers_count: int, count: int, *, switch: bool = True) -> common.Figures:
        with contextlib.ExitStack() as stack:
            images = [os.open(path, os.O_RDONLY) for path in (self.copy, source)]
            for image in images:
                stack.callback(os.close, image)
            with loopdev.attach(images[1], tag="bench", direct_io=False) as device:
                mount_image(device.path, self.mount_point, "squashfs")
            stack.callback(detach, self.mount_point)
            told = stack.enter_context(readers(readers_count, self.file, self.expected))
            kept = os.open(self.file, os.O_RDONLY)
            stack.callback(os.close, kept)

            def retarget(number: int) -> None:
                loopdev.retarget(device.name, images[number % 2])

            figures = time_switches(retarget if switch else lambda number: None, told, count)
            return {**figures, "left_behind": 0}

    def remounts(self, readers_count: int, count: int) -> common.Figures:
        def mount(path: Path) -> None:
            subprocess.run(["mount", "-t", "squashfs", "-o", "ro,loop", path, self.mount_point], check=True)

        with contextlib.ExitStack() as stack:
            mount(self.source)
            stack.callback(detach, self.mount_point)
            told = stack.enter_context(readers(readers_count, self.file, self.expected))
            kept = os.open(self.file, os.O_RDONLY)
            stack.callback(os.close, kept)

            left_behind: list[bool] = []

            def remount(number: int) -> None:
                subprocess.run(["umount", "-l", self.mount_point], check=True)
                mount((self.copy, self.source)[number % 2])
                if number == 0:
                    left_behind.append(os.fstat(kept).st_dev != self.file.stat().st_dev)

            figures = time_switches(remount, told, count)
            return {**figures, "left_behind": sum(left_behind)}


def detach(mount_point: Path) -> None:
    subprocess.run(["umount", "-l", mount_point], check=False)


def measure(quick: bool) -> common.Figures:
    if os.geteuid() != 0:
        raise SystemExit("loop devices and mounts need root")
    rows = []
    many, few = (20, 6) if quick else (300, 60)
    with apart(), tempfile.TemporaryDirectory(prefix="scratch-slurm-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        try:
            dataset = Dataset(folder)
            with SlowSource(dataset.source_dir, folder / "slow", latency_s=LATENCY_S) as slow:
                slow_image = slow.path / dataset.source.name
                for count in READERS:
                    ways: dict[str, Callable[[], common.Figures]] = {
                        "retarget": partial(dataset.retargets, dataset.source, count, many),
                        "retarget, source 5 ms": partial(dataset.retargets, slow_image, count, few),
                        "umount -l, mount": partial(dataset.remounts, count, few),
                    }
                    if count:
                        ways["no switch"] = partial(dataset.retargets, dataset.source, count, many, switch=False)
                    for way, run in random.sample(list(ways.items()), len(ways)):
                        rows.append({"way": way, "readers": count, **run()})
        finally:
            clean_up(folder)
    order = ("no switch", "retarget", "retarget, source 5 ms", "umount -l, mount")
    return {"rows": sorted(rows, key=lambda row: (order.index(row["way"]), row["readers"]))}


def show(figures: common.Figures) -> str:
    base = {row["readers"]: row["median_ms"] for row in figures["rows"] if row["way"] == "retarget"}

    def cell(value: float | None) -> object:
        return "-" if value is None else value

    lines = [
        (
            row["way"],
            row["readers"],
            row["switches"],
            cell(None if row["way"] == "no switch" else row["median_ms"]),
            cell(None if row["way"] == "no switch" else row["max_ms"]),
            cell(None if row["way"] == "no switch" else row["median_ms"] / base[row["readers"]]),
            cell(row["stall_median_ms"]),
            cell(row["stall_max_ms"]),
            row["failed"],
            row["left_behind"],
            row["wrong"],
        )
        for row in figures["rows"]
    ]
    header = (
        "way", "readers", "switches", "median ms", "max ms", "x retarget", "stall ms", "worst stall", "failed",
        "left behind", "wrong bytes",
    )  # fmt: skip
    return common.table(header, lines)


if __name__ == "__main__":
    common.main(__doc__, measure, show)
