"""HTTP as far as one request and one answer on a connection need it. Pure.

Requests of HTTP/1.0 and 1.1 with a body of a told length, or none. Nothing else is taken: no chunks, no encodings, no
second request, so what a caller sends can never grow by being read. Source: RFC 9112.
"""

import re
from dataclasses import dataclass

HEAD_LIMIT_BYTES = 8 * 1024
BODY_LIMIT_BYTES = 64 * 1024

_END_OF_HEAD = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]{0,1000}) HTTP/1\.[0-9]")
_HEADER = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,9}")
_WORDS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


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
class Head:
    """What a request says before its body."""

    method: str
    path: str
    """Without a query."""
    body_bytes: int
    """The length of the body that follows."""


@dataclass(frozen=True)
class Request:
    """One whole request."""

    method: str
    path: str
    body: bytes


def split_head(content: bytes) -> tuple[Head, bytes] | None:
    """Read the head of a request, of which `content` are the first bytes.

    Returns: the head, and what came of the body so far; None: the head is not whole yet.
    Raises: RefusedError: it is no request, or not one that is taken.
    """
    end = content.find(_END_OF_HEAD, 0, HEAD_LIMIT_BYTES)
    if end < 0:
        if len(content) >= HEAD_LIMIT_BYTES:
            raise RefusedError(431, f"a request's head has {HEAD_LIMIT_BYTES} bytes at most")
        return None
    return _parse_head(content[:end]), content[end + len(_END_OF_HEAD) :]


def _parse_head(text: bytes) -> Head:
    first, *lines = text.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise RefusedError(400, f"not a request of HTTP/1.1: {first[:40]!r}")
    headers: dict[bytes, bytes] = {}
    for each in lines:
        header = _HEADER.fullmatch(each)
        if header is None:
            raise RefusedError(400, f"not a header: {each[:40]!r}")
        name = header[1].lower()
        if name == b"content-length" and headers.get(name, header[2]) != header[2]:
            raise RefusedError(400, "Content-Length: told twice")
        headers[name] = header[2]
    if b"transfer-encoding" in headers:
        raise RefusedError(411, "Transfer-Encoding: say Content-Length instead")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RefusedError(415, "Content-Encoding: send the body as it is")
    length = headers.get(b"content-length", b"0")
    if not _LENGTH.fullmatch(length):
        raise RefusedError(400, f"Content-Length: {length[:40]!r} is not a number of bytes")
    if int(length) > BODY_LIMIT_BYTES:
        raise RefusedError(413, f"a request's body has {BODY_LIMIT_BYTES} bytes at most, not {int(length)}")
    path, _, _ = line[2].partition(b"?")
    return Head(line[1].decode("ascii"), path.decode("ascii"), int(length))


def format_answer(status: int, body: bytes) -> bytes:
    """Write an answer; `body` is JSON. It ends with its connection."""
    head = (
        f"HTTP/1.0 {status} {_WORDS[status]}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
