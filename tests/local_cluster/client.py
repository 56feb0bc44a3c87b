"""Runs commands inside a machine of the cluster, as a person logged in there would."""

import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.local_cluster.control import Control
from tests.local_cluster.errors import ClusterError
from tests.local_cluster.layout import HEAD, Layout


def enter_argv(
    layout: Layout,
    machine: str,
    argv: Sequence[str],
    *,
    user: str | int | None = None,
    cwd: Path | None = None,
) -> list[str]:
    """Word the command that runs `argv` in a machine's PID, mount and UTS namespaces.

    Raises: ClusterError: the machine does not run, or there is no such user.
    """
    pid = Control(layout.control_socket(machine)).init_pid()
    words = ["nsenter", f"--target={pid}", "--mount", "--uts", "--pid"]
    words += [f"--wdns={cwd or layout.work_dir}", "--"]
    if user is not None:
        account = find_user(user)
        words += ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups", "--"]
    return [*words, *argv]


def find_user(user: str | int) -> pwd.struct_passwd:
    """Look a user up by name or number.

    Raises: ClusterError: there is none.
    """
    try:
        return pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        raise ClusterError(f"there is no user {user!r}") from None


def client_environment(
    layout: Layout, user: str | int | None = None, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The clean environment of a user's commands: nothing of the caller's reaches the jobs."""
    account = find_user(0 if user is None else user)
    names = {"USER": account.pw_name, "LOGNAME": account.pw_name, "HOME": account.pw_dir}
    return {**layout.client_environment(), **names, **(extra or {})}


def run_client(
    layout: Layout,
    argv: Sequence[str],
    *,
    machine: str = HEAD,
    user: str | int | None = None,
    timeout_s: float = 60.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; whatever it started in its session is killed when it takes too long.

    Raises: ClusterError: it ended with another code than 0 and `check` is set, or it took too long.
    """
    process = subprocess.Popen(
        enter_argv(layout, machine, argv, user=user, cwd=cwd),
        env=client_environment(layout, user, env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    words = " ".join(argv)
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout_s)
    except BaseException as exc:
        _kill(process)
        stdout, stderr = process.communicate()
        if isinstance(exc, subprocess.TimeoutExpired):
            raise ClusterError(
                f"{words}: took longer than {timeout_s:g} s\nstdout: {stdout}\nstderr: {stderr}"
            ) from None
        raise
    if check and process.returncode != 0:
        raise ClusterError(f"{words}: exit code {process.returncode}\nstdout: {stdout}\nstderr: {stderr}")
    return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)


def _kill(nsenter: subprocess.Popen[str]) -> None:
    """Kill a command and what it started in its session.

    The command first and alone: then nsenter reaps it, and ends. An orphan of nsenter would stay a zombie
    until process 1 of the machine reaps it, and the cluster's PID namespace cannot end before that.
    """
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        pids = Path(f"/proc/{nsenter.pid}/task/{nsenter.pid}/children").read_text().split()
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        if pids:
            nsenter.wait(timeout=2.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(nsenter.pid, signal.SIGKILL)
