"""The stager against cp, rsync, dd with direct I/O, and fio reading and writing at once as the limit.

Three sources: cold local, warm local (a job reads it meanwhile, and its pages must stay), and one behind FUSE that
takes 5 ms a request. MB/s count until the copy is durable; CPU seconds are the method's, not the FUSE server's; "left"
is what it left in the page cache, of source and copy together, as a share of the image; "kept" is what is still there
of the pages that were there before. Every method runs once a round, all in random order.
"""

import sys

# Not this directory, where `copy` is not the standard library's.
sys.path.insert(0, sys.path.pop(0) and __file__.rpartition("/bench/")[0])

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from bench import _common as common
from scratch_slurm.domain.errors import ScratchError, UsageError
from scratch_slurm.domain.sizes import format_bytes, parse_size
from scratch_slurm.node.origins.filesupplier import FileSupplier
from scratch_slurm.node.rawio import resident_map
from scratch_slurm.node.staging.chunks import journal_path
from scratch_slurm.node.staging.copying import CopyOptions, copy_image
from tests.kit import sources
from tests.kit.generations import generation_of

LATENCY_S = 0.005
PIECE_BYTES = 64 << 20

Method = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Run:
    """One copy, measured."""

    mb_per_s: float
    cpu_s: float
    left_share: float
    kept_share: float


@dataclass(frozen=True)
class Image:
    """A file of random bytes under the name that a source shows it by."""

    path: Path
    digest: str
    size_bytes: int


# Methods: each copies, makes durable, and ends. They run in a forked child, whose CPU time is theirs.


def stager(digest: str | None, **options: int) -> Method:
    def copy(source: Path, target: Path) -> None:
        expected = generation_of(source, digest)
        with contextlib.closing(FileSupplier.open(source, expected)) as supplier:
            copy_image(
                supplier,
                target,
                expected=expected,
                options=CopyOptions(**options),
                report=lambda _: None,
                now=time.monotonic,
            )

    return copy


def program(*call: str) -> Method:
    def copy(source: Path, target: Path) -> None:
        names = {"{source}": str(source), "{target}": str(target)}
        arguments = call
        for name, path in names.items():
            arguments = tuple(argument.replace(name, path) for argument in arguments)
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    return copy


def fio(source: Path, target: Path) -> None:
    size = source.stat().st_size
    common_options = ["--ioengine=libaio", "--direct=1", "--bs=4M", "--iodepth=8", f"--size={size}", "--thread"]
    read = ["--name=read", f"--filename={source}", "--rw=read"]
    write = ["--name=write", f"--filename={target}", "--rw=write", "--end_fsync=1"]
    program("fio", *common_options, *read, *write)(source, target)


def methods_for(image: Image, kind: str) -> dict[str, Method]:
    """Choose what is compared on a source; what is not installed is left out."""
    every: dict[str, Method] = {
        "stager": stager(image.digest),
        "stager, no manifest": stager(None),
        "cp": program("cp", "--reflink=never", "{source}", "{target}"),
        "rsync": program("rsync", "--whole-file", "{source}", "{target}"),
        "dd direct": program("dd", "if={source}", "of={target}", "bs=4M", "iflag=direct", "oflag=direct"),
        "fio": fio,
    }
    if kind == "latency":
        every = {"stager": every["stager"], "stager, 1 reader": stager(image.digest, readers=1), "cp": every["cp"]}
        every["dd"] = program("dd", "if={source}", "of={target}", "bs=4M")
    needed = {"rsync": "rsync", "fio": "fio"}
    return {name: method for name, method in every.items() if shutil.which(needed.get(name, "cp"))}


# Measuring


def resident_pages(path: Path) -> int:
    with path.open("rb") as file:
        size = path.stat().st_size
        steps = range(0, size, 1 << 30)
        return sum(sum(resident_map(file.fileno(), step, min(1 << 30, size - step))) for step in steps)


def set_cache(path: Path, *, warm: bool) -> None:
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while warm and file.read(PIECE_BYTES):
            pass


@contextlib.contextmanager
def job_reading(path: Path, wanted: bool) -> Iterator[None]:
    """A process that reads random pieces of a file, as a training job does."""
    if not wanted:
        yield
        return
    child = os.fork()
    if child == 0:
        with path.open("rb", buffering=0) as file:
            last = path.stat().st_size - (128 << 10)
            while True:
                os.pread(file.fileno(), 128 << 10, random.randrange(last))
                time.sleep(0.002)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def measure(method: Method, image: Image, target: Path, kind: str) -> Run:
    set_cache(image.path, warm=kind == "warm")
    before = resident_pages(image.path)
    with job_reading(image.path, kind == "warm"):
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                method(image.path, target)
                os._exit(0)
            except BaseException as exc:
                print(f"failed: {exc}", file=sys.stderr, flush=True)
                os._exit(1)
        _, status, usage = os.wait4(child, 0)
        seconds = time.monotonic() - began
    if status != 0:
        raise RuntimeError(f"a copy from {image.path} failed")
    after, copied = resident_pages(image.path), resident_pages(target)
    if target.stat().st_size != image.size_bytes:
        raise RuntimeError(f"{target}: has another size than {image.path}")
    target.unlink()
    journal_path(target).unlink(missing_ok=True)
    pages = -(-image.size_bytes // resource.getpagesize())
    return Run(
        mb_per_s=image.size_bytes / seconds / 1e6,
        cpu_s=usage.ru_utime + usage.ru_stime,
        left_share=(max(0, after - before) + copied) / pages,
        kept_share=min(after, before) / before if before else 1.0,
    )


def make_image(path: Path, size_bytes: int) -> Image:
    hasher = blake3()
    with path.open("wb") as file:
        for start in range(0, size_bytes, PIECE_BYTES):
            piece = os.urandom(min(PIECE_BYTES, size_bytes - start))
            hasher.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return Image(path, hasher.hexdigest(), size_bytes)


def run_all(directory: Path, size_bytes: int, rounds: int) -> common.Figures:
    """Measure every method on every source, `rounds` times."""
    runs: dict[tuple[str, str], list[Run]] = {}
    with contextlib.ExitStack() as stack:
        local = make_image(directory / "local.squashfs", size_bytes)
        images = {"cold": local, "warm": local}
        reason = sources.why_not()
        if reason is None:
            real = directory / "far"
            real.mkdir()
            far = make_image(real / "far.squashfs", max(size_bytes // 4, 1 << 20))
            served = stack.enter_context(sources.SlowSource(real, directory / "mount", latency_s=LATENCY_S))
            images["latency"] = Image(served.path / far.path.name, far.digest, far.size_bytes)
        else:
            print(f"left out: the source bound by latency: {reason}", file=sys.stderr)
        planned = [
            (kind, name, method) for kind, image in images.items() for name, method in methods_for(image, kind).items()
        ]
        for _ in range(rounds):
            random.shuffle(planned)
            for kind, name, method in planned:
                run = measure(method, images[kind], directory / "copy.part", kind)
                runs.setdefault((kind, name), []).append(run)
    figures: common.Figures = {kind: {} for kind in images}
    for kind, image in images.items():
        for name in methods_for(image, kind):
            measured = runs[kind, name]
            figures[kind][name] = {
                field: common.median([getattr(run, field) for run in measured]) for field in Run.__dataclass_fields__
            } | {"all_mb_per_s": [round(run.mb_per_s) for run in measured]}
    return figures


# Showing


def targets(figures: common.Figures) -> Iterator[tuple[str, bool]]:
    """Say each goal with its figure, and whether it is reached."""
    cold, warm = figures["cold"], figures["warm"]
    if "fio" in cold:
        share = cold["stager"]["mb_per_s"] / cold["fio"]["mb_per_s"]
        yield f"cold: {share:.2f} of fio reading and writing at once; goal 0.95", share >= 0.95
    left = max(group["stager"]["left_share"] for group in figures.values())
    yield f"page cache left behind: {left:.2%} of the image at most; goal under 1 %", left < 0.01
    kept = warm["stager"]["kept_share"]
    yield f"warm: {kept:.1%} of the job's pages are still there; goal 99 %", kept >= 0.99
    if "latency" in figures:
        far = figures["latency"]
        # Single readers that a user would start: dd gets the kernel's own read-ahead, cp asks for twice as much.
        for single in ("dd", "cp"):
            times = far["stager"]["mb_per_s"] / far[single]["mb_per_s"]
            yield f"latency: {times:.1f} times {single}; goal 10 times a single reader", times >= 10


def show(figures: common.Figures) -> str:
    parts = []
    titles = {"cold": "cold local", "warm": "warm local", "latency": f"{LATENCY_S * 1000:.0f} ms a request"}
    for kind, group in figures.items():
        base = "fio" if "fio" in group else "cp"
        rows = [
            (
                name,
                f"{one['mb_per_s']:.0f}",
                f"{min(one['all_mb_per_s'])}-{max(one['all_mb_per_s'])}",
                f"{one['mb_per_s'] / group[base]['mb_per_s']:.2f}",
                f"{one['cpu_s']:.2f}",
                f"{one['left_share']:.1%}",
                f"{one['kept_share']:.1%}" if kind == "warm" else "-",
            )
            for name, one in sorted(group.items(), key=lambda item: -item[1]["mb_per_s"])
        ]
        parts.append(common.table((titles[kind], "MB/s", "range", f"of {base}", "CPU s", "left", "kept"), rows))
    parts.append("")
    parts.extend(f"{'reached' if reached else 'MISSED '}  {text}" for text, reached in targets(figures))
    return "\n".join(parts)


def describe_disk(directory: Path) -> dict[str, str]:
    call = ["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", str(directory)]
    return {"disk": " on ".join(subprocess.run(call, capture_output=True, text=True, check=True).stdout.split())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", default="2 GiB", help="of the image; a quarter of it behind FUSE (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="on the disk to measure (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as one object")
    parser.add_argument(
        "--quick", action="store_true", help="256 MiB, 2 rounds: a trial of the benchmark, not a result"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as Ctrl-C does
    rounds = 2 if options.quick else options.rounds
    try:
        size_bytes = parse_size("256 MiB" if options.quick else options.size)
        if rounds < 1 or size_bytes < 1 << 20:
            raise UsageError("at least one round of 1 MiB")
        with tempfile.TemporaryDirectory(prefix="bench-copy-", dir=options.dir) as name:
            machine = common.describe_machine() | describe_disk(Path(name))
            for tool in ("fio", "rsync"):
                if shutil.which(tool) is None:
                    print(f"left out: {tool} is not installed", file=sys.stderr)
            figures: dict[str, Any] = run_all(Path(name), size_bytes, rounds)
    except ScratchError as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json:
        print(json.dumps({"machine": machine, "size_bytes": size_bytes, "rounds": rounds, "sources": figures}))
        return
    print((__doc__ or "").partition("\n")[0])
    print("Machine:", ", ".join(machine.values()))
    print(f"{format_bytes(size_bytes)}, medians of {rounds}", end="" if rounds >= 5 else ": too few to rely on")
    print(show(figures), flush=True)


if __name__ == "__main__":
    main()
