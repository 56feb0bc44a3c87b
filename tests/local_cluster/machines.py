"""Makes a cluster's files and starts its machines: the head and the nodes, each with an init of its own."""

import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import Any, Final

from tests.local_cluster.configs import config_files
from tests.local_cluster.control import Control
from tests.local_cluster.errors import ClusterError
from tests.local_cluster.layout import CLIENT_PATH, HEAD, MAX_SOCKET_PATH_BYTES, Layout, format_layout
from tests.local_cluster.requirements import slurm_release

# PID namespace: dies with its init. Mounts: come in from the host, never go out.
_UNSHARE: Final = (
    "unshare",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount",
    "--uts",
    "--propagation=slave",
    "--mount-proc",
)


@dataclass
class Lifeline:
    """The head's init, and the pipe that keeps it alive.

    Args:
        process: `unshare`, which ends when the head's init and with it the last process is gone.
        write_fd: while it is open the cluster lives; None once detached.
    """

    process: subprocess.Popen[bytes]
    write_fd: int | None

    def cut(self) -> None:
        if self.write_fd is not None:
            os.close(self.write_fd)
            self.write_fd = None


def write_files(layout: Layout) -> None:
    """Make the cluster's directories, configuration and munge key.

    Raises: ClusterError: the directory's path is too long for unix sockets, or a common path is missing.
    """
    longest = max(map(str, layout.sockets()), key=len)
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
        raise ClusterError(
            f"{layout.directory}: path too long: the socket {longest} would have {len(longest)} bytes,"
            f" at most {MAX_SOCKET_PATH_BYTES} are possible"
        )
    layout.state_file.write_text(format_layout(layout))
    directories = [layout.log_dir, layout.machine_dir(HEAD) / "state"]
    for node in layout.node_names:
        directories += [layout.machine_dir(node) / "spool", *(own for _, own in layout.binds(node))]
    if layout.source_dir.is_relative_to(layout.directory):
        directories.append(layout.source_dir)
    for common, _ in layout.binds(layout.node_names[0]):
        if common.is_relative_to(layout.directory):
            directories.append(common)
        elif not common.is_dir():
            raise ClusterError(f"{common}: must exist, as it is outside of {layout.directory}")
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    layout.work_dir.mkdir()
    layout.work_dir.chmod(0o1777)
    files = config_files(layout, plugin_exists=layout.spank_plugin.exists(), release=slurm_release())
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if path.parent != layout.directory else 0o644)
    munge = pwd.getpwnam("munge")
    layout.munge_dir.mkdir()
    key = layout.munge_dir / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    for path in (layout.munge_dir, key):
        os.chown(path, munge.pw_uid, munge.pw_gid)


def start_head(layout: Layout, lock_fd: int) -> Lifeline:
    """Start the head's init; from here on the clean-up is its business."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    options = {
        "hostname": HEAD,
        "control": str(layout.control_socket(HEAD)),
        "binds": [],
        "lifeline": read_fd,
        "directory": str(layout.directory),
        "remove_directory": layout.remove_directory,
        "keep": layout.keep,
    }
    argv, env = _init_command(layout, options)
    try:
        with layout.log("init-head").open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(read_fd, lock_fd),
                start_new_session=True,
            )
    except BaseException:
        os.close(write_fd)
        raise
    finally:
        os.close(read_fd)
    return Lifeline(process, write_fd)


def start_node_machine(layout: Layout, node: str) -> None:
    """Start a node's init below the head's; wait for it with `Control.wait_ready`."""
    boot_id = layout.machine_dir(node) / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    layout.control_socket(node).unlink(missing_ok=True)
    options = {
        "hostname": node,
        "control": str(layout.control_socket(node)),
        "binds": [[str(common), str(own)] for common, own in reversed(layout.binds(node))],
        "boot_id": str(boot_id),
    }
    argv, env = _init_command(layout, options)
    Control(layout.control_socket(HEAD)).spawn(machine_process(node), argv, env, layout.log(f"init-{node}"))


def machine_process(node: str) -> str:
    """The name of a node's machine among the head's programs."""
    return f"machine-{node}"


def _init_command(layout: Layout, options: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    unshare = shutil.which(_UNSHARE[0], path=CLIENT_PATH) or _UNSHARE[0]
    python = [sys.executable, "-S", "-m", "tests.local_cluster.init", json.dumps(options)]
    env = {"PATH": CLIENT_PATH, "LANG": "C.UTF-8", "PYTHONPATH": str(layout.repository)}
    return [unshare, *_UNSHARE[1:], "--", *python], env
