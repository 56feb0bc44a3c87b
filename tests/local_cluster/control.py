"""Asks the init of a machine (head or node) to do something; see init.py for the other end."""

import json
import signal
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.local_cluster.errors import ClusterError

_REPLY_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.01


@dataclass(frozen=True)
class Control:
    """The way to one machine's init.

    Args:
        socket_path: the init's control socket.
    """

    socket_path: Path

    @property
    def machine(self) -> str:
        return self.socket_path.parent.name

    def init_pid(self) -> int:
        """The init's process id as this machine sees it.

        Raises: ClusterError: there is no init.
        """
        with self._connect() as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def wait_ready(self, timeout_s: float) -> int:
        """Wait for a new init to listen, and return its process id.

        Raises: ClusterError: it does not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.init_pid()
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    def spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Start a program in the machine's namespaces, in a session of its own.

        Raises: ClusterError: a program of that name runs already, or the program is not there.
        """
        self._ask(do="spawn", name=name, argv=list(argv), env=dict(env), log=str(log))

    def send_signal(self, name: str, number: signal.Signals) -> bool:
        """Send a signal to a program; False when it does not run."""
        return bool(self._ask(do="signal", name=name, signal=int(number)))

    def running(self, name: str) -> bool:
        return bool(self._ask(do="status", name=name)["running"])

    def wait_end(self, name: str, timeout_s: float) -> int | None:
        """Wait until a program has ended; return its exit code (negative: signal), None if it never ran.

        Raises: ClusterError: it still runs after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self._ask(do="status", name=name)
            if not status["running"]:
                code = status["exit_code"]
                return None if code is None else int(code)
            if time.monotonic() > deadline:
                raise ClusterError(f"{name} on {self.machine}: still runs after {timeout_s:g} s")
            time.sleep(_POLL_S)

    def end(self, name: str, number: signal.Signals, timeout_s: float) -> int | None:
        """Signal a program and wait for its end; None when it did not run."""
        return self.wait_end(name, timeout_s) if self.send_signal(name, number) else None

    def detach(self) -> None:
        """Let the cluster outlive the process that started it."""
        self._ask(do="detach")

    def stop(self) -> None:
        """Make init end; the kernel then ends everything in its PID namespace."""
        self._ask(do="stop")

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_REPLY_TIMEOUT_S)
        try:
            connection.connect(str(self.socket_path))
        except OSError as exc:
            connection.close()
            raise ClusterError(f"{self.machine}: does not run ({self.socket_path}: {exc})") from exc
        return connection

    def _ask(self, **request: Any) -> Any:
        with self._connect() as connection:
            try:
                connection.sendall(json.dumps(request).encode() + b"\n")
                line = connection.makefile("rb").readline()
            except OSError as exc:
                raise ClusterError(f"{self.machine}: no answer to {request['do']}: {exc}") from exc
        if not line:
            raise ClusterError(f"{self.machine}: ended before it answered {request['do']}")
        reply = json.loads(line)
        if "error" in reply:
            raise ClusterError(f"{self.machine}: cannot {request['do']}: {reply['error']}")
        return reply["ok"]
