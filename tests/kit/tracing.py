"""strace(1): what a program does, and death at a system call of choice."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.processes import children_of


def need_strace() -> None:
    if shutil.which("strace") is None:
        assert os.environ.get("CI") != "true", "needs strace; with CI=true nothing is skipped"
        pytest.skip("needs strace")


def trace(calls: str, command: list[str], log: Path, *, env: dict[str, str] | None = None) -> list[str]:
    """Run a command to its end; returns the lines of these system calls, of all its processes."""
    need_strace()
    subprocess.run(["strace", "-f", "-qq", "-o", log, "-e", f"trace={calls}", *command], check=True, env=env)
    return log.read_text(errors="replace").splitlines()


@contextlib.contextmanager
def delayed(pid: int, call: str, seconds: int = 30, *, when: str = "1+") -> Iterator[None]:
    """Let a system call of a process, its threads and its children begin later; what waits at the end goes on.

    Args:
        when: which ones, counted in each process.
    """
    need_strace()
    options = ["-e", f"trace={call}", "-e", f"inject={call}:delay_enter={seconds}s:when={when}"]
    pids = [option for each in (pid, *children_of(pid)) for option in ("-p", str(each))]
    command = ["strace", "-f", "-o", "/dev/null", *options, *pids]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        try:
            assert strace.stderr is not None
            assert "attached" in strace.stderr.readline()
            yield
        finally:
            strace.terminate()


def run_killed_at(calls: str, number: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command, and kill it as it enters the `number`th of these system calls."""
    need_strace()
    inject = [f"inject={call}:signal=KILL:when={number}" for call in calls.split(",")]
    options = [option for one in inject for option in ("-e", one)]
    return subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", *options, *command],
        capture_output=True,
        text=True,
        check=False,
    )
