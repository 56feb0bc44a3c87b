"""A node under random operations, and a model of what must be true after each of them.

The node is looked at past the code under test: mounts and devices in /proc and /sys, images in the cache directory.
"""

import contextlib
import functools
import os
import random
import re
import resource
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from scratch_slurm.domain.errors import DaemonError
from scratch_slurm.domain.messages import DatasetState
from tests.kit.daemon import RunningDaemon, read_held
from tests.kit.datasets import Version, make_version
from tests.kit.diskuse import DiskWatch
from tests.kit.images import backings_below, in_child
from tests.kit.processes import children_of
from tests.kit.sources import SlowSource

NAMES = tuple(f"set{number}" for number in range(7))
CAPACITY_BYTES = 6_000_000
RESERVE_BYTES = 12_000_000
# Of each dataset's file, in all its versions: libfuse knows files by name, so that a replaced one which somebody has
# open is given the length of the new one.
_SIZES = dict(zip(NAMES, (200_000, 500_000, 500_000, 1_200_000, 1_200_000, 2_500_000, 9_000_000), strict=True))
_CACHED = re.compile(r"(?P<dataset>.+)@[0-9a-f]{16}\.image( \(deleted\))?")
_MEMORY_LIMIT_KB = 60_000
_MOST_PROCESSES = 16
_PATIENCE_S = 30.0


@dataclass
class Job:
    """A holder of pins, and the version that each of its datasets had when it first read it."""

    job_id: int
    versions: dict[str, int | None]


@dataclass
class Held:
    """A file that somebody opened and never closes, for now."""

    dataset: str
    fd: int
    data: bytes


@dataclass
class World:
    """See the module; `step()` does one operation and checks everything.

    Args:
        filler: a file on the cache's file system that another program fills it with.
    """

    daemon: RunningDaemon
    source: SlowSource
    watch: DiskWatch
    filler: Path
    rng: random.Random
    running: bool = True
    hanging: bool = False
    steps: int = 0
    history: list[str] = field(default_factory=list)
    published: dict[str, Version] = field(default_factory=dict)
    known: dict[str, dict[str, Version]] = field(default_factory=lambda: {name: {} for name in NAMES})
    """Dataset -> BLAKE3 of its file -> version; of all versions there ever were."""
    jobs: dict[int, Job] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    must_stay: dict[str, Path] = field(default_factory=dict)
    """Dataset that is pinned and read from the cache -> that image."""

    def step(self) -> None:
        operations: list[tuple[int, Callable[[], str]]] = [
            (12, self.publish),
            (3, self.remove),
            (14, self.pin),
            (12, self.release),
            (25, self.read),
            (5, self.hold),
            (5, self.let_go),
            (3, self.kill),
            (2, self.restart),
            (4 if not self.hanging else 12, self.hang_or_heal),
            (4, self.fill_or_free),
            (2, self.corrupt),
            (2, self.reload),
            (2, self.freeze),
            (2, self.clean),
            (2, self.starve),
            (4, self.wait),
        ]
        weights, functions = zip(*operations, strict=True)
        self.steps += 1
        self.history.append(f"{self.steps} {self.rng.choices(functions, weights)[0]()}")
        self.check()

    # What people and machines do.

    def publish(self) -> str:
        name = self.rng.choice(NAMES)
        number = len(self.known[name]) + 1
        version = make_version(self.source.directory, name, number, file_bytes=_SIZES[name])
        self.published[name] = version
        self.known[name][blake3(version.data).hexdigest()] = version
        return f"publish {name} {number} {version.size_bytes}"

    def remove(self) -> str:
        if len(self.published) < 3:  # an empty source is not believed
            return "remove nothing"
        name = self.rng.choice(sorted(self.published))
        self.published.pop(name).image.unlink()
        return f"remove {name}"

    def pin(self) -> str:
        job_id = self.rng.randrange(1, 6)
        names = self.rng.sample(NAMES, self.rng.randrange(1, 3))
        self.daemon.pin(job_id, *names)
        job = self.jobs.setdefault(job_id, Job(job_id, {}))
        for name in names:
            job.versions.setdefault(name, None)
        if not self.hanging:
            for name in names:
                self._read(name)
        return f"pin job {job_id} {names}"

    def release(self) -> str:
        job_id = self.rng.randrange(1, 6)
        for name in self.jobs.pop(job_id, Job(job_id, {})).versions:
            if not self._pinned(name):
                self.must_stay.pop(name, None)
        self.daemon.release(job_id)
        return f"release job {job_id}"

    def read(self) -> str:
        name = self.rng.choice(NAMES)
        return f"read {name} {self._read(name)}"

    def hold(self) -> str:
        name = self.rng.choice(NAMES)
        if self.hanging or len(self.held) > 4:
            return "hold nothing"
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self.daemon.path(name), os.O_RDONLY | os.O_CLOEXEC)
            data = in_child(read_held, fd)
            assert blake3(data).hexdigest() in self.known[name], f"{name}: bytes that were never published"
            self.held.append(Held(name, fd, data))
            return f"hold {name}"
        return f"hold nothing of {name}"

    def let_go(self) -> str:
        if self.hanging or not self.held:
            return "let go of nothing"
        held = self.held.pop(self.rng.randrange(len(self.held)))
        try:
            assert in_child(read_held, held.fd) == held.data, f"{held.dataset}: an open file has changed"
        finally:
            os.close(held.fd)
        return f"let go of {held.dataset}"

    def kill(self) -> str:
        """Kill -9; sometimes it stays down for some steps."""
        if self.running:
            self.daemon.kill()
            self.running = False
            if self.rng.random() < 0.5:
                return "kill -9, and stay down"
        return "kill -9, " + self._start()

    def restart(self) -> str:
        if self.running:
            self.daemon.stop()
            self.running = False
        return "restart, " + self._start()

    def hang_or_heal(self) -> str:
        self.hanging = not self.hanging
        if not self.hanging:
            self.source.set(hang=False, hang_open=False, hang_all=False, only=())
            return "heal"
        only = tuple(f"{name}.squashfs" for name in self.rng.sample(NAMES, 2))
        how = self.rng.choice(({"hang": True}, {"hang_open": True}, {"hang": True, "hang_all": True}))
        self.source.set(**how, only=only)
        return f"hang {how} {only}"

    def fill_or_free(self) -> str:
        if self.filler.exists():
            self.filler.unlink()
            return "free the disk"
        disk = os.statvfs(self.filler.parent)
        size_bytes = disk.f_bavail * disk.f_frsize - RESERVE_BYTES + self.rng.choice((-1_000_000, 1_000_000, 5_000_000))
        if size_bytes > 0:
            with self.filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
        return f"fill the disk with {size_bytes}"

    def corrupt(self) -> str:
        """Flip bytes of what a killed daemon left half copied."""
        if self.running:
            self.daemon.kill()
            self.running = False
        parts = [path for path in (self.daemon.cache_dir / ".staging").glob("*.part") if path.stat().st_size]
        for part in parts:
            with part.open("r+b") as file:
                file.seek(self.rng.randrange(part.stat().st_size))
                file.write(b"corrupt!")
        return f"corrupt {len(parts)} copies, {self._start()}"

    def reload(self) -> str:
        """SIGHUP: the same process, with everything anew."""
        if not self.running:
            return "reload nothing"
        before = len(self.daemon.logged("serving socket="))
        self.daemon.reload(self.daemon.config)
        self.daemon.until(lambda: len(self.daemon.logged("serving socket=")) > before, "it serves again", _PATIENCE_S)
        return "reload"

    def freeze(self) -> str:
        """Whoever writes in the cache meanwhile is held by the kernel."""
        disk = str(self.daemon.cache_dir)
        subprocess.run(["fsfreeze", "-f", disk], check=True)
        try:
            if self.running:
                self.daemon.wait(*NAMES, timeout_s=self.rng.choice((0.0, 0.3)))
        finally:
            subprocess.run(["fsfreeze", "-u", disk], check=True)
        return "freeze the cache's disk for a moment"

    def clean(self) -> str:
        """Somebody's cleaner: what is empty goes, or a socket."""
        if self.rng.random() < 0.5:
            with contextlib.suppress(OSError):
                (self.daemon.cache_dir / ".staging").rmdir()
                return "remove the empty staging directory"
            return "remove nothing"
        if not self.running:
            return "remove no socket"
        before = len(self.daemon.logged("run_dir made again"))
        (self.daemon.run_dir / self.rng.choice(("daemon.sock", "root.sock"))).unlink()
        self.daemon.until(lambda: len(self.daemon.logged("run_dir made again")) > before, "it is heard", _PATIENCE_S)
        return "remove a socket"

    def starve(self) -> str:
        """No descriptor, and no worker, for a moment."""
        if not self.running:
            return "starve nobody"
        pid = self.daemon.pid
        old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        count = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count + self.rng.randrange(4), old[1]))
        for child in children_of(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(DaemonError):
            self.daemon.wait(NAMES[0], timeout_s=0.2)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, old)
        return "no descriptors for a moment"

    def wait(self) -> str:
        if self.running:
            self.daemon.wait(*NAMES, timeout_s=0.5)
        return "wait"

    # What must be true.

    def check(self) -> None:
        """Check every promise. Raises: AssertionError."""
        assert self.watch.most_bytes <= CAPACITY_BYTES, f"{self.watch.most_bytes} bytes on the disk"
        self._check_cache()
        self._check_pinned()
        if self.running:
            self._check_daemon()
        if not self.hanging:
            bound = len(NAMES) + len(self.held) + 2  # one that comes and one that goes
            self.daemon.until(lambda: len(self._devices()) <= bound, "loop devices go", _PATIENCE_S)

    def settle(self) -> None:
        """End every hardship, and see that the node becomes what it should be."""
        if self.hanging:
            self.hang_or_heal()
        self.filler.unlink(missing_ok=True)
        if not self.running:
            self._start()
        while self.held:
            self.let_go()
        for job_id in list(self.jobs):
            self.jobs.pop(job_id)
            self.daemon.release(job_id)
        self.must_stay.clear()
        self.daemon.until(self._is_settled, "all is well in the end", _PATIENCE_S)
        for name in self.published:
            self.daemon.until(functools.partial(self._serves_newest, name), f"the newest {name}", _PATIENCE_S)
        try:
            self.daemon.until(lambda: len(self._devices()) == len(self.published), "no device too many", _PATIENCE_S)
        except AssertionError as exc:
            exc.add_note(f"devices {self._devices()}\nmounts {Path('/proc/self/mountinfo').read_text()}")
            raise
        self.daemon.until(lambda: len(children_of(self.daemon.pid)) <= 4, "no worker too many", _PATIENCE_S)
        self.check()

    def _is_settled(self) -> bool:
        status = self.daemon.status()
        mounted = {each.name for each in status.datasets if each.path}
        waiting = [each for each in status.datasets if each.update_waiting]
        return mounted == self.published.keys() and not waiting and not status.problem

    def _serves_newest(self, name: str) -> bool:
        version = self.known[name].get(blake3(self.daemon.read(name)).hexdigest())
        return version is not None and version.number == self.published[name].number

    def _check_cache(self) -> None:
        images = {(version.size_bytes, version.digest) for name in NAMES for version in self.known[name].values()}
        for path in self.daemon.cached_files():
            with contextlib.suppress(FileNotFoundError):
                data = path.read_bytes()
                assert (len(data), blake3(data).hexdigest()) in images, f"{path.name}: is no image that was published"
                assert _CACHED.fullmatch(path.name), path.name

    def _check_pinned(self) -> None:
        backings = self._cached_backings()
        for name, path in self.must_stay.items():
            assert path.exists(), f"{name}: the cached image of a pinned dataset is gone"
            if path not in backings and self.running and not self.hanging:
                # Its eviction had begun when it was pinned: it is switched back.
                self.daemon.until(functools.partial(self._is_read, path), f"{path} is read", _PATIENCE_S)
        for name in NAMES:
            if self._pinned(name) and name not in self.must_stay and self._is_cached(name):
                mine = [path for path in backings if path.name.startswith(f"{name}@") and path.exists()]
                if len(mine) == 1:
                    self.must_stay[name] = mine[0]

    def _is_read(self, path: Path) -> bool:
        return path in self._cached_backings()

    def _check_daemon(self) -> None:
        status_lines = Path(f"/proc/{self.daemon.pid}/status").read_text()
        (resident_kb,) = re.findall(r"VmRSS:\s+(\d+) kB", status_lines)
        assert int(resident_kb) < _MEMORY_LIMIT_KB, f"the daemon has {resident_kb} kB"
        assert len(children_of(self.daemon.pid)) <= _MOST_PROCESSES
        self.daemon.wait(NAMES[0])
        counts = {each.name: each.use_count for each in self.daemon.status().datasets}
        for name in NAMES:
            holders = sum(name in job.versions for job in self.jobs.values())
            assert counts.get(name, 0) == holders, f"{name}: used {counts.get(name, 0)} times, {holders} jobs hold it"

    def _devices(self) -> dict[str, str]:
        return backings_below(self.daemon.source_dir) | backings_below(self.daemon.cache_dir)

    def _cached_backings(self) -> set[Path]:
        return {Path(path) for path in backings_below(self.daemon.cache_dir).values()}

    def _start(self) -> str:
        if not self.running:
            self.daemon.start()
            self.running = True
        return "start"

    def _pinned(self, name: str) -> bool:
        return any(name in job.versions for job in self.jobs.values())

    def _is_cached(self, name: str) -> bool:
        return self.running and self.daemon.state(name) is DatasetState.CACHED

    def _read(self, name: str) -> str:
        """Read a dataset as all who pin it would; while the source hangs only if it is read from the cache."""
        if self.hanging and name not in self.must_stay:
            return "not while the source hangs"
        try:
            data = self.daemon.read(name)
        except FileNotFoundError:
            seen = [job.job_id for job in self.jobs.values() if job.versions.get(name) is not None]
            assert not seen, f"{name}: is gone under jobs {seen}"
            return "nothing there"
        version = self.known[name].get(blake3(data).hexdigest())
        assert version is not None, f"{name}: bytes that were never published"
        for job in self.jobs.values():
            if name in job.versions:
                first = job.versions[name] = job.versions[name] or version.number
                assert version.number == first, f"{name}: job {job.job_id} began with {first}, reads {version.number}"
        return f"version {version.number}"
