"""A node daemon written by hand: it listens on a Unix socket in a thread, and answers or misbehaves as told."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Answer = Callable[[Request], bytes | None]
"""From a request ({"method", "path", "body"}) to the bytes to send; None: hang."""


def http(value: object, status: int = 200) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.0 %d Word\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


def states(*datasets: Mapping[str, object], settled: bool = True) -> Answer:
    """Answer every /v1/wait with these datasets; after the time asked for, unless they are settled."""

    def answer(request: Request) -> bytes:
        if not settled:
            time.sleep(request["body"]["timeout_s"])
        return http({"datasets": datasets if request["body"]["datasets"] else [], "settled": settled})

    return answer


class FakeDaemon:
    def __init__(self, path: Path, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self._over = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> "FakeDaemon":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_one, args=(connection,), daemon=True).start()

    def _serve_one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            content = b""
            while b"\r\n\r\n" not in content:
                content += connection.recv(65536)
            head, _, body = content.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            method, path, _ = lines[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            while len(body) < int(headers["content-length"]):
                body += connection.recv(65536)
            request = {"method": method, "path": path, "body": json.loads(body) if body else None}
            self.requests.append(request)
            answer = self.answer(request)
            if answer is None:
                self._over.wait(60)
            else:
                connection.sendall(answer)
