"""What the prolog and the epilog cost a job: one that asked for nothing, and one whose datasets are cached.

The stubs run as Slurm runs them, with the real hook and a real daemon. The package lies in a virtual environment as pip
installs it (an editable one starts 30 ms later). Cold: after dropping the page cache, as on a node that has just done
something else with its memory. CPU is that of the stub and all its children, not the daemon's.
"""

import sys

sys.path.insert(0, sys.path.pop(0).rpartition("/")[0])  # bench/copy.py is not the standard library's

import compileall
import itertools
import os
import random
import shutil
import subprocess
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

import scratch_slurm
from bench import _common as common
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.images import apart, clean_up

ROOT = Path(scratch_slurm.__file__).parents[1]
PROLOG, EPILOG = ROOT / "prolog.d/50-scratch-slurm", ROOT / "epilog.d/50-scratch-slurm"
DATASETS = ("imagenet", "coco")
TARGET_NOTHING_MS, TARGET_CACHED_MS = 3.0, 60.0
CONSOLE_SCRIPT = r"""#!{python}
import re
import sys
from scratch_slurm.hooks.main import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\.pyw|\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""

Timed = tuple[float, float]


class Site:
    """The hook as a site has it, and the environment that Slurm and the administrator give it."""

    def __init__(self, folder: Path, daemon: RunningDaemon) -> None:
        self.daemon = daemon
        self.bin = folder / "venv/bin"
        self.python = self.bin / "python3"
        venv.create(folder / "venv", symlinks=True)
        packages = folder / "venv/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        shutil.copytree(ROOT / "scratch_slurm", packages / "scratch_slurm")
        compileall.compile_dir(packages, quiet=2)
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        script = self.bin / "scratch-slurm-hook"
        script.write_text(CONSOLE_SCRIPT.format(python=self.python))
        script.chmod(0o755)
        self.jobs = itertools.count(1)

    def environment(self, job: int, *, datasets: bool) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_UID": "1000",
            "SCRATCH_SLURM_CONFIG": str(self.daemon.folder / "config.yaml"),
            "SCRATCH_SLURM_RUN_DIR": str(self.daemon.run_dir),
            "SCRATCH_SLURM_BIN": str(self.bin),
            **({"SPANK_DATASETS": ",".join(DATASETS)} if datasets else {}),
        }

    def run_job(self, prepare: Callable[[], None], *, datasets: bool) -> tuple[Timed, Timed]:
        """Run both stubs of one job. Returns: (wall, CPU) milliseconds of the prolog, and of the epilog."""
        job = next(self.jobs)
        environment = self.environment(job, datasets=datasets)
        prepare()
        prolog = run([str(PROLOG)], environment)
        if datasets:
            report = (self.daemon.run_dir / "jobs" / str(job)).read_text()
            if report.count(":cached") != len(DATASETS) or "message=" in report:
                raise RuntimeError(f"the datasets were to be cached:\n{report}")
        prepare()
        return prolog, run([str(EPILOG)], environment)


def run(command: list[str], environment: dict[str, str]) -> Timed:
    began = time.perf_counter()
    pid = os.posix_spawn(command[0], command, environment)
    _, status, usage = os.wait4(pid, 0)
    wall_s = time.perf_counter() - began
    if status != 0:
        raise RuntimeError(f"{command}: status {status}")
    return 1000 * wall_s, 1000 * (usage.ru_utime + usage.ru_stime)


def measure(quick: bool) -> common.Figures:
    if os.geteuid() != 0:
        raise SystemExit("the daemon needs root")
    with apart(), tempfile.TemporaryDirectory(prefix="scratch-slurm-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        try:
            with RunningDaemon(folder, interval="30") as daemon:
                for dataset in DATASETS:
                    make_version(daemon.source_dir, dataset)
                daemon.pin(1_000_000, *DATASETS)
                daemon.until(lambda: daemon.is_cached(*DATASETS), "the datasets are cached")
                daemon.release(1_000_000)
                return {"rows": measure_all(Site(folder, daemon), quick)}
        finally:
            clean_up(folder)


def measure_all(site: Site, quick: bool) -> list[common.Figures]:
    ready, aside = site.daemon.run_dir / "hook.json", site.daemon.run_dir / "hook.json.aside"

    def warm() -> None:
        if aside.exists():
            aside.rename(ready)

    def cold() -> None:
        warm()
        common.drop_caches()

    def unprepared() -> None:
        if ready.exists():
            ready.rename(aside)

    times: dict[str, list[Timed]] = {}

    def job(kind: str, prepare: Callable[[], None], *, datasets: bool) -> None:
        for hook, timed in zip(("prolog", "epilog"), site.run_job(prepare, datasets=datasets), strict=True):
            times.setdefault(f"{hook}, {kind}", []).append(timed)

    def floor(kind: str, command: list[str], prepare: Callable[[], None]) -> None:
        prepare()
        times.setdefault(kind, []).append(run(command, {}))

    steps: list[tuple[int, Callable[[], None]]] = [
        (31, lambda: job("nothing asked, warm", warm, datasets=False)),
        (31, lambda: job("all cached, warm", warm, datasets=True)),
        (15, lambda: job("all cached, warm, without hook.json", unprepared, datasets=True)),
        (9, lambda: job("nothing asked, cold", cold, datasets=False)),
        (9, lambda: job("all cached, cold", cold, datasets=True)),
        (31, lambda: floor("/bin/true, warm", ["/bin/true"], warm)),
        (31, lambda: floor("python3 -c pass, warm", [str(site.python), "-c", "pass"], warm)),
        (9, lambda: floor("python3 -c pass, cold", [str(site.python), "-c", "pass"], cold)),
    ]
    todo = [step for count, step in steps for _ in range(3 if quick else count)]
    random.shuffle(todo)
    for _, step in steps:
        step()
    times.clear()
    for step in todo:
        step()
    subprocess.run(["sync"], check=True)
    return [
        {
            "what": what,
            "runs": len(times[what]),
            "wall_ms": common.median([wall for wall, _ in times[what]]),
            "least_wall_ms": min(wall for wall, _ in times[what]),
            "cpu_ms": common.median([cpu for _, cpu in times[what]]),
        }
        for what in sorted(times, key=lambda what: (what.startswith(("/", "python")), "cold" in what, what))
    ]


def show(figures: common.Figures) -> str:
    by_what = {row["what"]: row for row in figures["rows"]}
    python_ms = by_what["python3 -c pass, warm"]["wall_ms"]
    lines = [
        (row["what"], row["runs"], row["wall_ms"], row["least_wall_ms"], row["cpu_ms"], row["wall_ms"] / python_ms)
        for row in figures["rows"]
    ]
    verdicts = []
    for kind, target_ms in (("nothing asked", TARGET_NOTHING_MS), ("all cached", TARGET_CACHED_MS)):
        for state in ("warm", "cold"):
            worst_ms = max(by_what[f"{hook}, {kind}, {state}"]["wall_ms"] for hook in ("prolog", "epilog"))
            word = "met" if worst_ms < target_ms else "NOT MET"
            verdicts.append(f"{kind}, {state}, under {target_ms:g} ms: {word} ({worst_ms:.1f})")
    header = ("hook", "runs", "wall ms", "least ms", "CPU ms", "x python3")
    return common.table(header, lines) + "\nTo reach: " + "; ".join(verdicts)


if __name__ == "__main__":
    common.main(__doc__, measure, show)
