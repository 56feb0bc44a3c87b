"""A munged of the test's own: own key, own socket, run as the user munge, gone with the test."""

import contextlib
import os
import pwd
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.kit.people import reachable_directory

_START_S = 30.0


class Munged:
    """One munged, in a directory that everybody may enter.

    Args:
        key: shared with another one, they open each other's credentials; None: a new one.
    """

    def __init__(self, directory: Path, key: bytes | None = None) -> None:
        self.socket_path = directory / "socket"
        key_path = directory / "key"
        key_path.write_bytes(key or secrets.token_bytes(1024))
        key_path.chmod(0o400)
        user = pwd.getpwnam("munge")
        for path in (directory, key_path):
            os.chown(path, user.pw_uid, user.pw_gid)
        # A test that is killed takes it along.
        argv = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "--pdeathsig=KILL", "--"]
        argv += ["munged", "--foreground", f"--socket={self.socket_path}", f"--key-file={key_path}"]
        argv += [f"--pid-file={directory / 'pid'}", f"--seed-file={directory / 'seed'}"]
        argv += ["--origin=127.0.0.1"]  # the default looks the host name up
        self._log_path = directory / "log"
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._await_start()
        except BaseException:
            self.end()
            raise

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """Kill it, and return when it is gone."""
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it hang: it takes connections and says nothing."""
        self.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send_signal(signal.SIGCONT)

    def _await_start(self) -> None:
        give_up_at = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < give_up_at:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.socket_path))
                return
            time.sleep(0.01)  # nothing tells that it listens
        raise RuntimeError(f"munged did not start: {self._log_path.read_text()}")


@contextlib.contextmanager
def own_munged(key: bytes | None = None) -> Iterator[Munged]:
    """Run a munged for as long as it is wanted."""
    with reachable_directory() as directory:
        munged = Munged(directory, key)
        try:
            yield munged
        finally:
            munged.end()
