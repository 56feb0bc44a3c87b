"""HTTP as far as one request and one answer on a connection need it, by h11. No I/O.

A second request is not read; encodings of the body, and what is longer than the limits, are refused. So what a caller
sends cannot grow by being read.
"""

from dataclasses import dataclass

import h11

HEAD_LIMIT_BYTES = 8 * 1024
BODY_LIMIT_BYTES = 64 * 1024

_TOO_LARGE = 413


class RefusedError(Exception):
    """A request that is not taken.

    Args:
        status: of HTTP.
        message: what is wrong with it, for the caller.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Request:
    """One whole request."""

    method: str
    path: str
    """Without a query."""
    body: bytes


class RequestReader:
    """Takes the bytes of one connection until they are a whole request.

    Args:
        body_limit_bytes: the longest body.
    """

    def __init__(self, *, body_limit_bytes: int = BODY_LIMIT_BYTES) -> None:
        self._body_limit_bytes = body_limit_bytes
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT_BYTES)
        self._head: h11.Request | None = None
        self._body = bytearray()

    def feed(self, content: bytes) -> Request | None:
        """Take what came next; empty: no more will come.

        Returns: the request; None: it is not whole yet, or will never be.
        Raises: RefusedError: it is no request, or not one that is taken.
        """
        try:
            self._connection.receive_data(content)
            return self._read_events()
        except h11.RemoteProtocolError as exc:
            raise RefusedError(exc.error_status_hint, f"not a request of HTTP/1.1: {exc}") from exc

    def _read_events(self) -> Request | None:
        while True:
            match self._connection.next_event():
                case h11.Request() as head:
                    _check_head(head, self._body_limit_bytes)
                    self._head = head
                case h11.Data() as piece:
                    self._body += piece.data
                    if len(self._body) > self._body_limit_bytes:
                        raise RefusedError(_TOO_LARGE, f"a request's body has {self._body_limit_bytes} bytes at most")
                case h11.EndOfMessage():
                    assert self._head is not None, "a request ends after it has begun"
                    path, _, _ = self._head.target.decode("ascii").partition("?")
                    return Request(self._head.method.decode("ascii"), path, bytes(self._body))
                case _:
                    return None


def _check_head(head: h11.Request, body_limit_bytes: int) -> None:
    if not head.target.startswith(b"/"):
        raise RefusedError(400, f"{head.target[:40]!r}: is not a path")
    for name, value in head.headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            raise RefusedError(415, "Content-Encoding: send the body as it is")
        if name == b"content-length" and int(value) > body_limit_bytes:
            raise RefusedError(
                _TOO_LARGE, f"a request's body has {body_limit_bytes} bytes at most, not {value.decode()}"
            )


def format_answer(status: int, body: bytes, *, content_type: str = "application/json") -> bytes:
    """Write an answer. It ends with its connection."""
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Connection", "close")]
    connection = h11.Connection(h11.SERVER)
    events = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
    return b"".join(connection.send(event) or b"" for event in events)
