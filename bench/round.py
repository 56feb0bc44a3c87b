"""One of the daemon's rounds over many datasets: CPU and wall time, resident memory.

The daemon's own code runs: the reading of mounts, devices, counters, cache directory and ledger, the plan, the status.
Only the kernel's files are written by the benchmark, for nodes with more loop devices than one would make here. A
third of the datasets is cached, and read; a third is read and does not fit; a third is idle. Between two rounds every
counter of the first two goes on. Each number of datasets runs in a process of its own, for its memory.

`--against TREE [PAIRS]` compares with the code of another work tree, in turns. The one worker process is this code's in
both: it runs apart from the environment.
"""

import sys

sys.path.insert(0, sys.path.pop(0).rpartition("/")[0])  # bench/copy.py is not the standard library's

import asyncio
import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

import scratch_slurm.service.main  # noqa: F401 - what the daemon imports counts in its memory
from bench import _common as common
from scratch_slurm.domain.config import Config, build_config
from scratch_slurm.domain.model import Generation, Location, SourceImage
from scratch_slurm.domain.names import device_tag
from scratch_slurm.node.ledger.ledger import Ledger
from scratch_slurm.node.staging.cache import Cache
from scratch_slurm.service import observe, operations, status
from scratch_slurm.service.ledger_side import LedgerSide
from scratch_slurm.service.rounds import Rounds
from scratch_slurm.service.source import Source
from scratch_slurm.service.worker_hands import WorkerHands
from scratch_slurm.service.workers import Workers

SIZES = (10, 100, 1000, 5000)
COMPARED = (1000, 5000)
TARGET_DATASETS, TARGET_CPU_MS, TARGET_MIB = 1000, 20.0, 60.0
PINS = 20
# No device of this machine has such a number, and the one worker process reads the cache: nothing real is touched.
FIRST_DEVICE = 1_000_000


class Clock:
    """The monotonic clock, which may stand for a while."""

    def __init__(self) -> None:
        self.stands_at: float | None = None

    def __call__(self) -> float:
        return time.monotonic() if self.stands_at is None else self.stands_at


class TagReaders(Workers):
    """Tells the tags of devices at once, and has the cache read as ever; a round that changes nothing needs no more."""

    def __init__(self, tags: dict[str, str]) -> None:
        super().__init__()
        self._tags = tags

    async def run(self, request: operations.Request, **how: Any) -> None:
        if isinstance(request, operations.LookAtCache):
            await super().run(request, **how)
            return
        if not isinstance(request, operations.ReadTag):
            raise RuntimeError(f"the round was not to act: {request}")
        how["on_line"](operations.Tag(self._tags[request.device]))

    def cpu_s(self) -> float:
        """What the idle worker processes have used so far, in seconds. Source: proc_pid_stat(5)"""
        stats = [Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split() for process, _ in self._idle]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


class FakeNode:
    """A directory with what the kernel would show of `count` mounted datasets, and the cache with its images."""

    def __init__(self, root: Path, count: int) -> None:
        rng = random.Random(count)
        self.root = root
        self.kernel = observe.KernelFiles(
            mountinfo=root / "mountinfo", diskstats=root / "diskstats", block_devices=root / "block"
        )
        self.cache = Cache(root / "cache")
        self.cache.prepare()
        self.images = [self._make_image(rng, number) for number in range(count)]
        self.cached = self.images[: count // 3]
        self.read = self.images[: 2 * count // 3]
        self.sectors = dict.fromkeys((image.dataset for image in self.images), 0)
        for image in self.cached:
            path = self.cache.image_path(image.dataset, image.generation.id)
            with path.open("wb") as file:
                file.truncate(image.size_bytes)
        for number, image in enumerate(self.images):
            self._make_device(number, image)
        lines = ["29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"]
        lines += [
            f"{100 + number} 29 7:{FIRST_DEVICE + number} / {root}/mnt/{image.dataset} ro,nosuid,nodev,relatime"
            f" shared:{number} - squashfs /dev/loop{FIRST_DEVICE + number} ro,errors=continue"
            for number, image in enumerate(self.images)
        ]
        self.kernel.mountinfo.write_text("".join(line + "\n" for line in lines))

    def _make_image(self, rng: random.Random, number: int) -> SourceImage:
        size_bytes = round(min(2**41, max(2**28, rng.lognormvariate(24.5, 1.3))))
        generation = Generation(f"{1000 + number:016x}", size_bytes)
        at = Location(f"{self.root}/source", f"dataset-{number:04}.squashfs")
        return SourceImage(f"dataset-{number:04}", at, generation, "squashfs")

    def _make_device(self, number: int, image: SourceImage) -> None:
        cached = number < len(self.cached)
        backing = self.cache.image_path(image.dataset, image.generation.id) if cached else image.at
        device = self.kernel.block_devices / f"loop{FIRST_DEVICE + number}/loop"
        device.mkdir(parents=True)
        (device / "backing_file").write_text(f"{backing}\n")

    def go_on(self, seconds: float) -> None:
        """Let time pass for the counters: the cached third is read most, for its size."""
        for number, image in enumerate(self.read):
            share = 2e-3 if number < len(self.cached) else 0.9e-3
            self.sectors[image.dataset] += round(image.size_bytes * share * seconds / 512)
        lines = (
            f"   7 {number} loop{FIRST_DEVICE + number} {sectors // 256} 0 {sectors} 99 0 0 0 0 0 99 99 0 0 0 0 0 0\n"
            for number, sectors in enumerate(self.sectors.values())
        )
        self.kernel.diskstats.write_text("".join(lines))


def run_rounds(root: Path, count: int, rounds: int) -> common.Figures:
    """Run rounds over a fake node, in this process."""
    node = FakeNode(root, count)
    config = build_config(
        {
            "source_dir": f"{root}/source",
            "cache_dir": f"{root}/cache",
            "mount_dir": f"{root}/mnt",
            "state_dir": f"{root}/state",
            "capacity": str(sum(image.size_bytes for image in node.cached) + 2**24),
            "reserve": "0",
        },
        origin="bench",
        host_name="node",
    )
    (root / "state").mkdir(mode=0o700)
    with Ledger(config.ledger_path, boot_id="bench", now=time.time) as ledger:
        for number, image in enumerate(node.cached[:PINS]):
            ledger.pin(f"job:{number + 1}", [image.dataset], uid=1000)
        return asyncio.run(_run_rounds(node, config, ledger, rounds))


async def _run_rounds(node: FakeNode, config: Config, ledger: Ledger, rounds: int) -> common.Figures:
    images = enumerate(node.images)
    workers = TagReaders({f"loop{FIRST_DEVICE + number}": device_tag(image.generation.id) for number, image in images})
    source = Source(config.source_dir, workers, silence_s=30)
    for image in node.images:
        name = image.at.key
        source.take(operations.Scanned(name, there=True, stamp=image.generation.id, image=image))
    clock = Clock()
    hands = WorkerHands(config, workers, kernel=node.kernel)
    daemon = Rounds(config, hands, LedgerSide(ledger), lambda: source.catalog, monotonic=clock)
    node.go_on(1)
    await daemon.run_once()
    await asyncio.sleep(0.1)  # the devices are identified
    # As if the window were full: its samples are in the memory and in the sums.
    step_s = config.period_s / 60
    began = clock() - 62 * step_s
    for step in range(62):
        node.go_on(step_s)
        clock.stands_at = began + step * step_s
        daemon.cards, _ = daemon.observe(await daemon.look(), source.catalog, clock())
    clock.stands_at = None
    round_ms: list[tuple[float, float]] = []
    worker_began_s = workers.cpu_s()
    status_ms: list[tuple[float, float]] = []
    for _ in range(rounds):
        node.go_on(1)
        begun = time.perf_counter(), time.process_time()
        await daemon.run_once()
        round_ms.append(_since(begun))
        begun = time.perf_counter(), time.process_time()
        assert daemon.snapshot is not None
        view = status.StatusView(daemon.cards, daemon.snapshot, daemon.counters.by_dataset, config.mount_dir, clock())
        body = msgspec.json.encode([view.dataset(name) for name in view.names()])
        status_ms.append(_since(begun))
        if daemon.problem or daemon.snapshot.plan.actions:
            raise RuntimeError(f"the round was not to act: {daemon.problem} {daemon.snapshot.plan.actions[:1]}")
    worker_ms = 1000 * (workers.cpu_s() - worker_began_s) / rounds
    await workers.close(patience_s=1.0)
    return {
        "datasets": len(node.images),
        "rounds": rounds,
        "wall_ms": common.median([wall for wall, _ in round_ms]),
        # The worker's in the mean: the kernel counts it in hundredths of a second.
        "cpu_ms": common.median([cpu for _, cpu in round_ms]) + worker_ms,
        "worst_wall_ms": max(wall for wall, _ in round_ms),
        "status_cpu_ms": common.median([cpu for _, cpu in status_ms]),
        "status_bytes": len(body),
        "resident_mib": _resident_kib() / 1024,
    }


def _since(begun: tuple[float, float]) -> tuple[float, float]:
    return 1000 * (time.perf_counter() - begun[0]), 1000 * (time.process_time() - begun[1])


def _resident_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def measure(quick: bool) -> common.Figures:
    rows = []
    for count in SIZES[:3] if quick else SIZES:
        rows.append(_run_child(Path(__file__), count, 5 if quick else 25))
    return {"rows": rows, "target": {"datasets": TARGET_DATASETS, "cpu_ms": TARGET_CPU_MS, "mib": TARGET_MIB}}


def _run_child(script: Path, count: int, rounds: int) -> common.Figures:
    """Run the rounds of one number of datasets in a process of its own, with the code beside that script."""
    command = [sys.executable, str(script), "--child", str(count), str(rounds)]
    # The package that is installed for development must not stand for the other one.
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    figures: common.Figures = json.loads(told.stdout)
    return figures


def compare(against: Path, pairs: int, rounds: int) -> str:
    """Run this code and an earlier one in turns, so that both meet the same machine; tell medians and their ratio.

    Args:
        against: a work tree of the earlier code.
    """
    lines = []
    for count in COMPARED:
        before, now = [], []
        for _ in range(pairs):
            before.append(_run_child(against / "bench" / "round.py", count, rounds)["cpu_ms"])
            now.append(_run_child(Path(__file__), count, rounds)["cpu_ms"])
        ratios = [new / old for old, new in zip(before, now, strict=True)]
        lines.append(
            (count, common.median(before), common.median(now), common.median(ratios), min(ratios), max(ratios))
        )
    header = ("datasets", "CPU ms before", "CPU ms now", "ratio", "least", "most")
    return (
        common.table(header, lines)
        + f"\nMedians of {pairs} pairs of runs in turns, each the median of {rounds} rounds."
    )


def show(figures: common.Figures) -> str:
    rows = figures["rows"]
    lines = [
        (
            row["datasets"],
            row["cpu_ms"],
            1000 * row["cpu_ms"] / row["datasets"],
            row["wall_ms"],
            row["worst_wall_ms"],
            row["status_cpu_ms"],
            row["resident_mib"],
            row["resident_mib"] / rows[0]["resident_mib"],
        )
        for row in rows
    ]
    header = (
        "datasets", "CPU ms", "CPU µs each", "wall ms", "worst ms", "status ms", "resident MiB", "x smallest",
    )  # fmt: skip
    target = next(row for row in rows if row["datasets"] == TARGET_DATASETS)
    met = target["cpu_ms"] < TARGET_CPU_MS and target["resident_mib"] < TARGET_MIB
    return common.table(header, lines) + (
        f"\nTo reach at {TARGET_DATASETS}: under {TARGET_CPU_MS:g} ms CPU and {TARGET_MIB:g} MiB: "
        f"{'met' if met else 'NOT MET'}. Medians of {rows[0]['rounds']} rounds."
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        with tempfile.TemporaryDirectory(prefix="scratch-slurm-bench-") as folder:
            print(json.dumps(run_rounds(Path(folder).resolve(), int(sys.argv[2]), int(sys.argv[3]))))
    elif sys.argv[1:2] == ["--against"]:
        print(compare(Path(sys.argv[2]).resolve(), pairs=int((sys.argv[3:] or ["5"])[0]), rounds=15))
    else:
        common.main(__doc__, measure, show)
