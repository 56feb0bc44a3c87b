"""Process 1 of a machine of the local cluster: the head, or a node.

`unshare` starts it in PID, mount and UTS namespaces of its own. It sets the machine up, starts programs
on request, and reaps them. When it ends, the kernel kills whatever still runs in its PID namespace, the
nodes' namespaces within the head's too, and drops their mounts: that is what makes the clean-up certain.

The head's init also holds the read end of a pipe, the lifeline. When the process that started the cluster
ends, however it ends, the pipe closes, and init clears up and ends too.

Requests are one line of JSON on a unix socket that only root can open, answered by one line.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.local_cluster import kernel

_REQUEST_TIMEOUT_S: Final = 2.0
_REAP_TIMEOUT_S: Final = 10.0


class Init:
    """The state of one init.

    Args:
        options: `hostname`, `control` (path of the socket), `binds` (pairs: common path, own directory),
            `boot_id` (file or null), and for the head `lifeline` (descriptor or null), `directory`,
            `keep` and `remove_directory`.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.pids: dict[str, int] = {}
        self.exit_codes: dict[str, int] = {}
        self.stopping = False
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve until told to stop or until the lifeline ends."""
        os.umask(0o022)
        self._watch_children()
        listener = None
        try:
            # The lifeline may have ended before this process began.
            lifeline = self.options.get("lifeline")
            if lifeline is not None:
                self.selector.register(lifeline, selectors.EVENT_READ, "lifeline")
            self._set_up()
            listener = _listen(self.options["control"])
            self.selector.register(listener, selectors.EVENT_READ, "request")
            while not self.stopping:
                for key, _ in self.selector.select():
                    if key.data == "request":
                        self._serve(listener)
                    elif key.data == "lifeline":
                        _say("the process that started this cluster has ended")
                        self.stopping = True
                    else:
                        self._reap()
        finally:
            self._clear_up()

    def _watch_children(self) -> None:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self.wakeup = (reader, writer)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self.selector.register(reader, selectors.EVENT_READ, "signal")

    def _on_sigterm(self, *_: object) -> None:
        self.stopping = True

    def _set_up(self) -> None:
        socket.sethostname(self.options["hostname"])
        # As on a machine with systemd. The namespace is a slave of the host's: nothing gets out.
        kernel.mount("none", "/", kernel.MS_REC | kernel.MS_SHARED)
        for common, own in self.options["binds"]:
            kernel.mount(own, common, kernel.MS_BIND)
        if self.options.get("boot_id"):
            kernel.mount(self.options["boot_id"], "/proc/sys/kernel/random/boot_id", kernel.MS_BIND)

    def _serve(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_REQUEST_TIMEOUT_S)
            try:
                request = json.loads(connection.makefile("rb").readline())
                reply = {"ok": self._do(request)}
            except (OSError, ValueError, KeyError) as exc:
                reply = {"error": f"{type(exc).__name__}: {exc}"}
            connection.sendall(json.dumps(reply).encode() + b"\n")

    def _do(self, request: dict[str, Any]) -> Any:
        self._reap()
        name = request.get("name", "")
        match request["do"]:
            case "spawn":
                return self._spawn(name, request["argv"], request["env"], request["log"])
            case "signal":
                pid = self.pids.get(name)
                if pid is not None:
                    os.kill(pid, request["signal"])
                return pid is not None
            case "status":
                return {"running": name in self.pids, "exit_code": self.exit_codes.get(name)}
            case "detach":
                if self.options.get("lifeline") is not None:
                    self.selector.unregister(self.options["lifeline"])
                return None
            case "stop":
                _say("asked to stop")
                self.stopping = True
                return None
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")

    def _spawn(self, name: str, argv: list[str], env: dict[str, str], log: str) -> int:
        if name in self.pids:
            raise ValueError(f"{name} runs already")
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawnp(
            argv[0],
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them: they would stay ignored
        )
        self.pids[name] = pid
        self.exit_codes.pop(name, None)
        return pid

    def _reap(self) -> bool:
        """Collect the children that ended; tell whether any are left."""
        with contextlib.suppress(BlockingIOError):
            self.wakeup[0].recv(4096)
        names = {pid: name for name, pid in self.pids.items()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid in names:
                name = names.pop(pid)
                del self.pids[name]
                self.exit_codes[name] = os.waitstatus_to_exitcode(status)

    def _clear_up(self) -> None:
        """End every process of this PID namespace; the head also clears what outlives processes."""
        directory = Path(self.options["directory"]) if "directory" in self.options else None
        # Before the mounts go, as the kernel words the paths of backing files through them.
        loops = kernel.loops_under(directory) if directory else []
        deadline = time.monotonic() + _REAP_TIMEOUT_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        while self._reap() and time.monotonic() < deadline:
            time.sleep(0.005)
        _say(f"processes ended, left: {sorted(self.pids)}")
        if directory is None:
            return
        left = kernel.unmount_all(directory)
        bound = kernel.release_loops(loops)
        _say(f"mounts left: {left}, devices left: {bound}")
        if left:
            _say("the files stay, as something is mounted there")
        elif not self.options["keep"]:
            kernel.remove_files(directory)
            if self.options["remove_directory"]:
                with contextlib.suppress(FileNotFoundError):  # a start that failed removes it too
                    directory.rmdir()


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    Path(path).unlink(missing_ok=True)
    os.umask(0o077)
    listener.bind(path)
    os.umask(0o022)
    listener.listen(16)
    return listener


def _say(text: str) -> None:
    """Log for whoever finds a cluster that did not end."""
    print(f"{time.time():.3f} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    Init(json.loads(sys.argv[1])).run()
