"""spank/hook.c: the plugin runs the hooks for Slurm, which drains a node for whatever goes wrong there."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.images import wait_until
from tests.kit.spank_library import build, run_hook

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory):
    return build(tmp_path_factory.mktemp("spank"))


@pytest.fixture
def hook(tmp_path: Path) -> Callable[..., Any]:
    """Write the hook: `hook(lines)`."""

    def write(lines: str, first: str = "#!/bin/sh") -> str:
        path = tmp_path / "50-scratch-slurm"
        path.write_text(f"{first}\n{lines}\n")
        path.chmod(0o755)
        return str(path)

    return write


LIMITS = [
    pytest.param(0, 0, id="none"),
    pytest.param(1, 500, id="a-second-leaves-half"),
    pytest.param(3, 1500, id="a-short-one-leaves-half"),
    pytest.param(4, 2000, id="four-seconds"),
    pytest.param(1200, 1_198_000, id="a-long-one-leaves-two-seconds"),
    pytest.param(65533, 65_531_000, id="the-longest"),
]


@pytest.mark.parametrize(("timeout_s", "limit_ms"), LIMITS)
def test_the_limit_is_below_slurms(library, timeout_s: int, limit_ms: int) -> None:
    library.hook_limit_ms.restype = ctypes.c_long
    assert library.hook_limit_ms(timeout_s) == limit_ms


@pytest.mark.parametrize("code", [0, 1, 143])
def test_a_hook_runs_to_its_end_whatever_it_returns(
    library, hook: Callable[..., Any], tmp_path: Path, code: int
) -> None:
    assert run_hook(library, hook(f"echo $$ >{tmp_path}/ran; exit {code}")) == ""
    assert (tmp_path / "ran").exists()


def test_a_hook_has_the_environment_but_no_input_no_output_and_no_signal_ignored_or_blocked(
    library, hook: Callable[..., Any], tmp_path: Path
) -> None:
    """As a process of its own sees it: what slurmstepd blocks or ignores would else be blocked in the job's hook."""
    lines = f"exec >{tmp_path}/seen; echo $ASKED; readlink /proc/self/fd/0; grep -E '^Sig(Blk|Ign)' /proc/self/status"
    program = (
        "import ctypes, signal, sys\n"
        "from tests.kit.spank_library import run_hook\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD])\n"
        "assert run_hook(ctypes.CDLL(sys.argv[1]), sys.argv[2]) == ''\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN\n"
        "assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
    )
    command = [sys.executable, "-c", program, library._name, hook(lines)]
    done = subprocess.run(
        command, env={"ASKED": "a,b", "PYTHONPATH": str(ROOT)}, input="no", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    asked, stdin, blocked, ignored = (tmp_path / "seen").read_text().splitlines()
    assert (asked, stdin) == ("a,b", "/dev/null")
    assert int(blocked.split()[1], 16) == 0
    assert int(ignored.split()[1], 16) & 1 << signal.SIGTERM - 1 == 0


def missing(path: Path) -> None:
    path.unlink()


def not_executable(path: Path) -> None:
    path.chmod(0o644)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def without_its_shell(path: Path) -> None:
    path.write_text("#!/no/such/shell\n")


def no_program(path: Path) -> None:
    path.write_bytes(b"\x7fELF")


BROKEN = [
    pytest.param(missing, "No such file or directory", id="missing"),
    pytest.param(not_executable, "Permission denied", id="not-executable"),
    pytest.param(a_directory, "Permission denied", id="directory"),
    pytest.param(without_its_shell, "No such file or directory", id="without-its-shell"),
    pytest.param(no_program, "Exec format error", id="no-program"),
]


@pytest.mark.parametrize(("spoil", "reason"), BROKEN)
def test_a_hook_that_cannot_be_run_is_a_reason_and_nothing_more(
    library, hook: Callable[..., Any], spoil: Callable[..., Any], reason: str
) -> None:
    path = hook("exit 0")
    spoil(Path(path))
    assert run_hook(library, path) == reason


@pytest.mark.parametrize("ignored", ["", "trap '' TERM"], ids=["ends-at-sigterm", "ignores-sigterm"])
def test_a_hook_that_takes_too_long_is_left(library, hook: Callable[..., Any], tmp_path: Path, ignored: str) -> None:
    os.mkfifo(tmp_path / "gate")
    assert run_hook(library, hook(f"{ignored}\nread _ <{tmp_path}/gate"), 100) == "it took more than 100 ms"


def test_sigterm_meanwhile_ends_the_process_at_once_with_exit_code_0(
    library, hook: Callable[..., Any], tmp_path: Path
) -> None:
    """So slurmd ends what has outlived PrologEpilogTimeout, also where the signal was blocked."""
    os.mkfifo(tmp_path / "gate")
    path = hook(f"trap '' TERM\necho >{tmp_path}/started\nread _ <{tmp_path}/gate")
    program = (
        "import ctypes, signal, sys\n"
        "from tests.kit.spank_library import run_hook\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "run_hook(ctypes.CDLL(sys.argv[1]), sys.argv[2])\n"
        "sys.exit(3)\n"
    )
    command = [sys.executable, "-c", program, library._name, path]
    running = subprocess.Popen(command, env={"PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        wait_until((tmp_path / "started").exists)
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(30) == 0
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(10)
