"""Starts Slurm's daemons, munged and the node daemons on a cluster's machines."""

import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.local_cluster.client import run_client
from tests.local_cluster.control import Control
from tests.local_cluster.errors import ClusterError
from tests.local_cluster.layout import CLIENT_PATH, HEAD, Layout

_DAEMON_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.02
_LOG_TAIL_LINES: Final = 12


def start_munged(layout: Layout) -> None:
    munge = layout.munge_dir
    argv = ["setpriv", "--reuid=munge", "--regid=munge", "--init-groups", "--", "munged", "--foreground"]
    argv += [f"--socket={layout.munge_socket}", f"--key-file={munge / 'key'}", f"--pid-file={munge / 'pid'}"]
    # The default origin looks the host name up, which nobody knows.
    argv += [f"--seed-file={munge / 'seed'}", "--origin=127.0.0.1"]
    control = Control(layout.control_socket(HEAD))
    control.spawn("munged", argv, {"PATH": CLIENT_PATH}, layout.log("munged"))
    await_program(layout, control, "munged", lambda: accepts_unix(layout.munge_socket))


def start_slurmctld(layout: Layout) -> None:
    control = Control(layout.control_socket(HEAD))
    argv = ["slurmctld", "-D", "-f", str(layout.slurm_conf)]
    control.spawn("slurmctld", argv, layout.daemon_environment(), layout.log("slurmctld-stderr"))
    await_program(layout, control, "slurmctld", lambda: accepts_tcp(layout.controller_port))


def spawn_slurmd(layout: Layout, node: str) -> None:
    argv = ["slurmd", "-D", "-N", node, "-f", str(layout.slurm_conf)]
    control = Control(layout.control_socket(node))
    control.spawn("slurmd", argv, layout.daemon_environment(), layout.log(f"slurmd-{node}-stderr"))


def await_slurmd(layout: Layout, node: str) -> None:
    port = layout.node_ports[layout.node_names.index(node)]
    control = Control(layout.control_socket(node))
    await_program(layout, control, "slurmd", lambda: accepts_tcp(port))


def await_idle(layout: Layout, nodes: Sequence[str]) -> None:
    """Wait until Slurm may give every one of `nodes` to a job.

    Raises: ClusterError: some are not up in 20 s; with the end of the logs.
    """
    deadline = time.monotonic() + _DAEMON_TIMEOUT_S
    argv = ["sinfo", "--noheader", "--Node", "--format=%N %t", f"--nodes={','.join(nodes)}"]
    while True:
        found = run_client(layout, argv, check=False)
        states = dict(line.split() for line in found.stdout.splitlines() if line)
        if all(states.get(node) in ("idle", "alloc", "mix", "comp") for node in nodes):
            return
        if time.monotonic() > deadline:
            raise ClusterError(
                f"nodes not up after {_DAEMON_TIMEOUT_S:g} s: {states} {found.stderr}{log_tails(layout, 'slurm')}"
            )
        time.sleep(_POLL_S)


def spawn_daemon(layout: Layout, node: str) -> None:
    """Start a node's scratch-slurmd.

    Raises: ClusterError: it is not installed.
    """
    if not layout.daemon_script.exists():
        raise ClusterError(f"{layout.daemon_script}: is not installed; `pip install -e .` installs it")
    control = Control(layout.control_socket(node))
    control.spawn("daemon", [str(layout.daemon_script)], layout.daemon_environment(), daemon_log(layout, node))


def await_daemon(layout: Layout, node: str) -> None:
    control = Control(layout.control_socket(node))
    await_program(layout, control, "daemon", lambda: accepts_unix(layout.daemon_socket(node)))


def daemon_log(layout: Layout, node: str) -> Path:
    return layout.log(f"daemon-{node}")


def unmount_datasets(layout: Layout) -> None:
    """Run `scratch-slurmd --unmount` on every node that lives; init clears up whatever it leaves."""
    if not layout.daemon_script.exists():
        return
    controls = []
    for node in layout.node_names:
        control = Control(layout.control_socket(node))
        try:
            control.end("daemon", signal.SIGTERM, timeout_s=5.0)
            argv = [str(layout.daemon_script), "--unmount", "--force"]
            control.spawn("unmount", argv, layout.daemon_environment(), daemon_log(layout, node))
        except ClusterError as exc:
            print(f"warning: {exc}", file=sys.stderr)
            continue
        controls.append(control)
    for control in controls:
        try:
            code = control.wait_end("unmount", timeout_s=10.0)
        except ClusterError as exc:
            print(f"warning: {exc}", file=sys.stderr)
            continue
        if code != 0:
            print(f"warning: {control.machine}: scratch-slurmd --unmount ended with {code}", file=sys.stderr)


def await_program(layout: Layout, control: Control, name: str, is_ready: Callable[[], bool]) -> None:
    """Wait until a program that was spawned is ready.

    Raises: ClusterError: it ended, or is not ready in 20 s; with the end of its log.
    """
    deadline = time.monotonic() + _DAEMON_TIMEOUT_S
    while not is_ready():
        if not control.running(name):
            raise ClusterError(f"{name} on {control.machine}: ended at its start{log_tails(layout, name)}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{name} on {control.machine}: not ready after {_DAEMON_TIMEOUT_S:g} s{log_tails(layout, name)}"
            )
        time.sleep(_POLL_S)


def log_tails(layout: Layout, prefix: str) -> str:
    """The last lines of the logs whose name begins with `prefix`, to end a message with."""
    tails = ""
    for path in sorted(layout.log_dir.glob(f"{prefix}*.log")):
        lines = path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        if lines:
            tails += f"\n--- {path.name}\n" + "\n".join(lines)
    return tails


def accepts_unix(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) == 0


def accepts_tcp(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
