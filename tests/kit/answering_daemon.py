"""A node daemon with datasets but nothing below them: it answers as it is told, and remembers what it was asked."""

import contextlib
import http.server
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from scratch_slurm.domain.errors import NotFoundError, ScratchError
from scratch_slurm.domain.messages import (
    DatasetState,
    DatasetStatus,
    ErrorAnswer,
    EvictAnswer,
    EvictRequest,
    NodeStatus,
    WaitAnswer,
    WaitRequest,
)

GB = 10**9


class AnsweringDaemon:
    """Datasets by name; `on_wait` is called before each wait is answered, and may change them."""

    def __init__(self, *datasets: DatasetStatus) -> None:
        self.datasets = {dataset.name: dataset for dataset in datasets}
        self.on_wait: Callable[[WaitRequest], None] = lambda _request: None
        self.on_evict: Callable[[str], None] = lambda _dataset: None
        self.asked: list[str] = []
        self.capacity_bytes = 100 * GB

    def set(self, name: str, **changes: object) -> None:
        self.datasets[name] = msgspec.structs.replace(self.datasets[name], **changes)

    def status(self) -> NodeStatus:
        return NodeStatus(
            node="n1",
            version="0.1.0",
            pid=1,
            started_at=0.0,
            source_dir="/srv/images",
            cache_dir="/ssd/cache",
            mount_dir="/datasets",
            capacity_bytes=self.capacity_bytes,
            reserve_bytes=GB,
            used_bytes=sum(dataset.cached_bytes for dataset in self.datasets.values()),
            free_bytes=50 * GB,
            problem="",
            datasets=tuple(self.datasets.values()),
        )

    def wait(self, request: WaitRequest) -> WaitAnswer:
        self.on_wait(request)
        states = tuple(self.datasets.get(name, DatasetStatus(name, DatasetState.UNKNOWN)) for name in request.datasets)
        settled = all(
            one.state in (DatasetState.CACHED, DatasetState.UNKNOWN) or one.problem.startswith("does not fit")
            for one in states
        )
        return WaitAnswer(states, settled)

    def evict(self, request: EvictRequest) -> EvictAnswer:
        self.on_evict(request.dataset)
        if request.dataset not in self.datasets:
            raise NotFoundError(f"dataset {request.dataset!r} is unknown")
        freed_bytes = self.datasets[request.dataset].cached_bytes
        self.set(request.dataset, state=DatasetState.SOURCE, cached_bytes=0)
        return EvictAnswer(freed_bytes)

    def answer(self, method: str, path: str, body: bytes) -> msgspec.Struct:
        self.asked.append(f"{method} {path} {body.decode()}".strip())
        if (method, path) == ("GET", "/v1/status"):
            return self.status()
        if (method, path) == ("POST", "/v1/wait"):
            return self.wait(msgspec.json.decode(body, type=WaitRequest))
        if (method, path) == ("POST", "/v1/evict"):
            return self.evict(msgspec.json.decode(body, type=EvictRequest))
        raise NotFoundError(f"no such path: {method} {path}")

    @contextlib.contextmanager
    def listening(self, path: Path) -> Iterator["AnsweringDaemon"]:
        """Answer on a socket until the end of the context."""
        daemon = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                try:
                    status, answer = 200, daemon.answer(self.command, self.path, self.rfile.read(length))
                except ScratchError as exc:
                    status, answer = 409, ErrorAnswer(type(exc).__name__, exc.message, exc.hint)
                body = msgspec.json.encode(answer)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        path.parent.mkdir(parents=True, exist_ok=True)
        with Server(str(path), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()
                path.unlink()
