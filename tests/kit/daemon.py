"""The real daemon, as a process of this test's mount namespace, with directories of its own.

    with apart(), RunningDaemon(tmp_path, capacity="10 MB") as daemon:
        daemon.pin(1, "coco")
        daemon.until(lambda: daemon.is_cached("coco"))
        daemon.kill()                      # -9; the mounts go on serving
        daemon.start()                     # takes them over

Leaving the block ends the daemon by its process id. The mounts and devices are `clean_up(folder)`'s, after whatever
made the source hang has gone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from scratch_slurm.domain.errors import DaemonError
from scratch_slurm.domain.messages import (
    DatasetState,
    DatasetStatus,
    EvictAnswer,
    EvictRequest,
    NodeStatus,
    PlanAnswer,
    PlanRequest,
    WaitAnswer,
    WaitRequest,
)
from scratch_slurm.domain.model import job_holder
from scratch_slurm.node import daemon_client
from scratch_slurm.node.ledger.ledger import Ledger, read_boot_id
from tests.kit.images import in_child

PATIENCE_S = 20.0
"""For what must come; nothing is measured with it."""
_ANSWER_S = 20.0
_POLL_S = 0.03


class RunningDaemon:
    """A daemon and its node. Started by `with`, unless `start=False`.

    Args:
        folder: everything lies below it: source, cache, datasets (the mounts), state, run.
        environment: more variables for the daemon.
        config: keys of the configuration file; rounds are short unless it says otherwise.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, **config: Any) -> None:
        self.folder = folder
        self._environment = {**os.environ, **(environment or {})}
        self.source_dir = folder / "source"
        self.cache_dir = folder / "cache"
        self.mount_dir = folder / "datasets"
        self.run_dir = folder / "run"
        self.log_path = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._config = folder / "config.yaml"
        self._values = {
            "source_dir": str(self.source_dir),
            "cache_dir": str(self.cache_dir),
            "mount_dir": str(self.mount_dir),
            "state_dir": str(folder / "state"),
            "run_dir": str(self.run_dir),
            "capacity": "1 GB",
            "reserve": "0",
            "period": "5",
            "horizon": "1h",
            "interval": "0.5",
            # Wherever a machine has its temporary files.
            "cache_on_any_file_system": True,
            "source_timeout": "15",
            **config,
        }
        if "cache_dirs" in config:
            del self._values["cache_dir"]
        self.source_dir.mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill_if_running()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the daemon does not run"
        return self._process.pid

    def start(self, **config: Any) -> None:
        """Start it, with other values of the configuration if given; returns when it serves."""
        assert self._process is None, "the daemon runs already"
        self._values.update(config)
        self._config.write_text(json.dumps(self._values))  # which is YAML as well
        before = len(self.log())
        command = [sys.executable, "-m", "scratch_slurm.service.main", "--config", str(self._config)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        try:
            self.until(lambda: any("serving socket=" in line for line in self.log()[before:]), "the daemon serves")
        except BaseException:
            self.kill()
            raise

    @property
    def config(self) -> dict[str, Any]:
        """The keys of its configuration file."""
        return dict(self._values)

    def reload(self, config: Mapping[str, Any]) -> None:
        """Write another configuration file, and tell the daemon as systemctl does; it is answered in its time."""
        self._values = dict(config)
        self._config.write_text(json.dumps(self._values))  # which is YAML as well
        os.kill(self.pid, signal.SIGHUP)

    def started(self, **config: Any) -> Self:
        """Say more of the configuration; for `with`."""
        self._values.update(config)
        return self

    def stop(self) -> None:
        """End it as a service manager does; it must end well, and soon."""
        self._end(signal.SIGTERM, 0)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL, -signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def has_ended(self) -> bool:
        """Whether the process has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def forget(self) -> None:
        """Let go of a process that has ended by itself."""
        assert self.has_ended()
        self._process = None

    def kill_if_running(self) -> None:
        if self._process is not None:
            self.kill()

    def _end(self, number: signal.Signals, code: int) -> None:
        assert self._process is not None, "the daemon does not run"
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            ended = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the daemon does not end on {number.name}") from None
        assert ended in (code, -signal.SIGKILL), f"the daemon ended with {ended}:\n{self.log_path.read_text()}"

    def log(self) -> list[str]:
        """Read the log lines of all daemons of this folder."""
        return self.log_path.read_text().splitlines() if self.log_path.exists() else []

    def logged(self, *words: str) -> list[str]:
        """Read the log lines that hold all these words."""
        return [line for line in self.log() if all(word in line for word in words)]

    def status(self) -> NodeStatus:
        return msgspec.json.decode(self._ask("GET", "/v1/status"), type=NodeStatus)

    def dataset(self, name: str) -> DatasetStatus:
        """Read one dataset's status; its state is UNKNOWN when the node does not know it."""
        unknown = DatasetStatus(name, DatasetState.UNKNOWN)
        return next((each for each in self.status().datasets if each.name == name), unknown)

    def wait(self, *names: str, timeout_s: float = 0.0) -> WaitAnswer:
        """Ask as the prolog does; returns after one round at least."""
        body = msgspec.json.encode(WaitRequest(names, timeout_s))
        return msgspec.json.decode(self._ask("POST", "/v1/wait", body, timeout_s + _ANSWER_S), type=WaitAnswer)

    def evict(self, name: str, timeout_s: float = _ANSWER_S) -> int:
        """Evict as the administrator does. Raises: ScratchError: it was not done, or not in time."""
        body = msgspec.json.encode(EvictRequest(name))
        return msgspec.json.decode(self._ask("POST", "/v1/evict", body, timeout_s), type=EvictAnswer).freed_bytes

    def plan(self) -> PlanAnswer:
        return msgspec.json.decode(self._ask("POST", "/v1/plan", msgspec.json.encode(PlanRequest())), type=PlanAnswer)

    def _ask(self, method: str, path: str, body: bytes | None = None, timeout_s: float = _ANSWER_S) -> bytes:
        return daemon_client.request(self.run_dir / "daemon.sock", method, path, body, timeout_s)

    def pin(self, job_id: int, *names: str) -> None:
        """Pin as the prolog does; the daemon need not run."""
        with self.ledger() as ledger:
            ledger.pin(job_holder(job_id), names, uid=0)
        self._nudge()

    def release(self, job_id: int) -> None:
        """Release as the epilog does; the daemon need not run."""
        with self.ledger() as ledger:
            ledger.release(job_holder(job_id))
        self._nudge()

    def ledger(self) -> Ledger:
        return Ledger(self.folder / "state" / "ledger.sqlite", boot_id=read_boot_id(), now=time.time)

    def _nudge(self) -> None:
        if self._process is not None:
            with contextlib.suppress(DaemonError):
                self.wait()

    def path(self, name: str, file: str = "data") -> Path:
        return self.mount_dir / name / file

    def read(self, name: str, file: str = "data") -> bytes:
        """Read a file of a dataset from its device, past what memory holds, in a child that may be lost."""
        return in_child(_read_cold, self.path(name, file))

    def state(self, name: str) -> DatasetState:
        return self.dataset(name).state

    def is_cached(self, *names: str) -> bool:
        return all(self.state(name) is DatasetState.CACHED for name in names)

    def is_mounted(self, *names: str) -> bool:
        return all(self.dataset(name).path for name in names)

    def cached_files(self) -> list[Path]:
        """List what the first level of the cache directory holds, images or not, oldest name first."""
        return sorted(path for path in self.cache_dir.iterdir() if path.name not in (".staging", "lost+found"))

    def until(self, is_so: Callable[[], object], what: str = "", timeout_s: float = PATIENCE_S) -> None:
        """Wait for what must come; fails with the log's end when it does not, or when the daemon has died."""
        deadline = time.monotonic() + timeout_s
        while not self._asked(is_so):
            dead = self._process is not None and self._process.poll() is not None
            if dead or time.monotonic() > deadline:
                why = "the daemon died" if dead else f"not within {timeout_s:g} s"
                raise AssertionError(f"{why}: {what}\n" + "\n".join(self.log()[-40:]) + f"\n{self._last_status()}")
            time.sleep(_POLL_S)

    def _asked(self, is_so: Callable[[], object]) -> bool:
        try:
            return bool(is_so())
        except DaemonError:
            return False  # whether it died or was only slow, `until` sees

    def _last_status(self) -> str:
        with contextlib.suppress(DaemonError):
            status = self.status()
            lines = [f"{status.problem!r} used={status.used_bytes} of {status.capacity_bytes}"]
            return "\n".join([*lines, *(str(each) for each in status.datasets)])
        return "no status"


def _read_cold(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_held(fd)
    finally:
        os.close(fd)


def read_held(fd: int) -> bytes:
    """Read a whole open file from its device, past what memory holds of it."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    pieces = []
    at = 0
    while piece := os.pread(fd, 1 << 20, at):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)
