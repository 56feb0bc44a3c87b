"""Users who do their worst to the daemon, while root's hooks get their answers and nothing grows without a bound.

`make stress` runs the long form: SCRATCH_STRESS_SECONDS (600) from SCRATCH_STRESS_SEED, as in test_stress.
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.attackers import KINDS, attack
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.images import apart, clean_up
from tests.kit.people import reachable_directory

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
UIDS = (12345, 12346, 12347)
SHORT_S = 5.0
_LEAST_JOBS = 5
MEMORY_LIMIT_KB = 60_000
LOG_LIMIT_BYTES_PER_S = 20_000
LOG_LIMIT_BYTES = 2_000_000
"""What the lines of all causes may take at once."""
DESCRIPTORS = 700


@pytest.fixture(scope="module", autouse=True)
def _namespace() -> Iterator[None]:
    with apart():
        yield


@pytest.fixture
def folder():
    with reachable_directory() as path:
        yield path
        clean_up(path)


def run_hook(daemon: RunningDaemon, which: str, job_id: int) -> str:
    """Run a stub as slurmd does. Returns: the states that the job is told."""
    environment = {
        "SLURM_JOB_ID": str(job_id),
        "SLURM_JOB_UID": "1000",
        "SPANK_DATASETS": "a",
        "SPANK_DATASETS_WAIT": "all",
        "SCRATCH_SLURM_CONFIG": str(daemon.folder / "config.yaml"),
        "SCRATCH_SLURM_RUN_DIR": str(daemon.run_dir),
        "SCRATCH_SLURM_BIN": str(Path(sys.executable).parent),
    }
    subprocess.run([str(ROOT / f"{which}.d" / "50-scratch-slurm")], env=environment, check=True, timeout=120)
    report = daemon.run_dir / "jobs" / str(job_id)
    lines = report.read_text().splitlines() if report.exists() else []
    return next((line.partition("=")[2] for line in lines if line.startswith("SCRATCH_DATASETS_STATE=")), "")


def resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def run(folder: Path, seed: int, duration_s: float, change_s: float) -> tuple[int, int]:
    """Returns: how many jobs were served, and how many attackers there were."""
    rng = random.Random(seed)
    daemon = RunningDaemon(folder, interval="1")
    # Many of them, so that an answer is large.
    for number in range(1000):
        (daemon.source_dir / f"set{number:04d}.squashfs").write_bytes(b"x" * 512)
    for name in ("a", "b"):
        make_version(daemon.source_dir, name)
    with daemon, contextlib.ExitStack() as attackers:
        daemon.until(lambda: daemon.is_mounted("a", "b"))
        assert run_hook(daemon, "prolog", 1) == "a:cached"
        run_hook(daemon, "epilog", 1)
        log_bytes = daemon.log_path.stat().st_size
        socket_path, kinds, count = daemon.run_dir / "daemon.sock", [], 0
        began, changed, jobs = time.monotonic(), -1e9, 1
        while jobs < _LEAST_JOBS or time.monotonic() - began < duration_s:
            if time.monotonic() - changed > change_s:
                attackers.close()
                # All kinds at once first, some of them afterwards.
                kinds = rng.sample(KINDS, rng.randint(2, len(KINDS))) if count else list(KINDS)
                for kind in kinds:
                    attackers.enter_context(attack(socket_path, kind, uid=rng.choice(UIDS), seed=seed))
                count, changed = count + len(kinds), time.monotonic()
            jobs += 1
            told = run_hook(daemon, "prolog", jobs)
            run_hook(daemon, "epilog", jobs)
            grown = daemon.log_path.stat().st_size - log_bytes
            allowed = LOG_LIMIT_BYTES + LOG_LIMIT_BYTES_PER_S * (time.monotonic() - began)
            descriptors = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
            seconds, memory_kb = time.monotonic() - began, resident_kb(daemon.pid)
            state = f"{seconds:.0f} s, job {jobs}, {kinds}, seed {seed}: {told!r}, {memory_kb} kB, {grown} bytes of log"
            assert told == "a:cached", state
            assert memory_kb < MEMORY_LIMIT_KB, state
            assert descriptors < DESCRIPTORS, state
            assert grown < allowed, state
        attackers.close()
        assert not daemon.logged("bug"), daemon.logged("bug")[:3]
        assert not daemon.logged("out of system resource")
        return jobs, count


def test_hooks_get_their_answers_while_users_do_their_worst(folder: Path) -> None:
    _, count = run(folder, 1, SHORT_S, 1e9)
    assert count == len(KINDS)


@pytest.mark.stress
def test_hooks_get_their_answers_while_users_do_their_worst_for_long(folder: Path) -> None:
    seed = int(os.environ.get("SCRATCH_STRESS_SEED") or random.SystemRandom().randrange(10**6))
    jobs, count = run(folder, seed, float(os.environ.get("SCRATCH_STRESS_SECONDS") or 600), 20.0)
    print(f"seed {seed}: {jobs} jobs beside {count} attackers")
