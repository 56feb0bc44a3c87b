"""Run a program with a time limit and a clean environment; whoever waits for it can be let go."""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

from scratch_slurm.domain.errors import SlurmError

# What Slurm's commands need to know; the rest of the environment (SQUEUE_FORMAT, SLURM_CLUSTERS) would mislead them.
_KEPT = ("PATH", "SLURM_CONF", "LD_LIBRARY_PATH")
_LONGEST_WORDS = 200


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Keep of an environment what says where Slurm is."""
    return {**{name: environ[name] for name in _KEPT if name in environ}, "LANG": "C", "LC_ALL": "C"}


class Programs:
    """Runs programs, each to its end or its time limit.

    Args:
        environment: all that they get.
        timeout_s: the longest that one may take.
    """

    def __init__(self, environment: Mapping[str, str], *, timeout_s: float) -> None:
        self.environment = dict(environment)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._closed = False

    def run(self, argv: Sequence[str], *, stdin: str = "") -> str:
        """Run a program.

        Returns: its output.
        Raises: SlurmError: it is not there, ended with another code than 0, took too long, or `close` was called.
        """
        process = self._start(argv)
        try:
            out, err = process.communicate(stdin, timeout=self._timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise SlurmError(f"{argv[0]}: no answer within {self._timeout_s:g} s") from exc
        finally:
            with self._lock:
                self._running.discard(process)
            _end(process)
        if process.returncode != 0:
            words = " ".join((err or out).split())[:_LONGEST_WORDS]
            raise SlurmError(f"{argv[0]}: exit code {process.returncode}: {words}")
        return out

    def close(self) -> None:
        """Kill what runs; nothing more is started."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def _start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        with self._lock:
            if self._closed:
                raise SlurmError(f"{argv[0]}: not started any more")
            try:
                process = subprocess.Popen(
                    argv,
                    env=self.environment,
                    cwd="/",
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
            except OSError as exc:
                raise SlurmError(f"{argv[0]}: cannot start it: {exc.strerror}") from exc
            self._running.add(process)
            return process


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
