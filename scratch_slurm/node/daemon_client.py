"""Talk to the node daemon over its socket: one request, one connection. Must not decide what to ask.

What waits here waits to be heard: for a place in the kernel's queue, and, where too many connections of the caller's
user are open, for one of them to end. What the daemon has heard is never asked again.

Not http.client, which costs a hook 20 ms to import: HTTP/1.0 asks for one answer and then the end of the connection,
so neither chunks nor keep-alive can come back.
"""

import contextlib
import json
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

from scratch_slurm.domain.errors import DaemonError, ScratchError, error_by_name

if TYPE_CHECKING:  # the hooks do without pathlib
    from pathlib import Path

_MAX_ANSWER_BYTES = 64 * 2**20
_READ_BYTES = 2**16
_TURNED_AWAY = 503
_PAUSE_S = 0.1
_QUEUE_PAUSE_S = 0.01
_PEER = struct.Struct("=iII")  # struct ucred: pid, uid, gid; unix(7)


def request(socket_path: "str | Path", method: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
    """Ask the daemon.

    Args:
        socket_path: where it listens; whoever listens there must be root, or the caller's own user.
        body: JSON; None: no body.
        timeout_s: for everything together.
    Returns: the answer's body.
    Raises:
        DaemonError: the daemon does not run, gives no answer in time, or none that can be read.
        ScratchError: what the daemon answered instead, in its class.
    """
    give_up_at = time.monotonic() + timeout_s
    while True:
        status, content = _ask_once(socket_path, method, path, body, timeout_s, give_up_at)
        if status != _TURNED_AWAY or time.monotonic() + _PAUSE_S >= give_up_at:
            break
        time.sleep(_PAUSE_S)
    if status >= 400:
        raise _told_error(status, content, socket_path)
    return content


def _ask_once(
    socket_path: "str | Path", method: str, path: str, body: bytes | None, timeout_s: float, give_up_at: float
) -> tuple[int, bytes]:
    """Ask over a new connection. Returns: the status, and the answer's body."""
    head = f"{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body or b'')}\r\n\r\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            _connect(connection, str(socket_path), give_up_at)
            _check_peer(connection, socket_path)
            # A caller that is turned away is told so before anything is read of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(head.encode("ascii") + (body or b""))
            answer = _read_to_end(connection, give_up_at)
    except TimeoutError as exc:
        raise DaemonError(
            f"{socket_path}: the daemon gave no answer within {timeout_s:g} s", hint="see its log, or restart it"
        ) from exc
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise DaemonError(
            f"{socket_path}: the daemon does not run", hint="start it: systemctl start scratch-slurmd"
        ) from exc
    except OSError as exc:
        raise DaemonError(f"{socket_path}: cannot talk to the daemon: {exc.strerror or exc}") from exc
    return _parse_answer(answer, socket_path)


def _connect(connection: socket.socket, path: str, give_up_at: float) -> None:
    """Connect; a full queue of the kernel's is waited out. Source: EAGAIN in connect(2)."""
    while True:
        _limit(connection, give_up_at)
        try:
            connection.connect(path)
        except BlockingIOError:
            time.sleep(_QUEUE_PAUSE_S)
        else:
            return


def _limit(connection: socket.socket, give_up_at: float) -> None:
    left_s = give_up_at - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    connection.settimeout(left_s)


def _check_peer(connection: socket.socket, socket_path: "str | Path") -> None:
    """Refuse a listener of another user, who got hold of the path before the daemon did."""
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if uid not in (0, os.geteuid()):
        raise DaemonError(f"{socket_path}: uid {uid} listens there, not root", hint="stop that program")


def _read_to_end(connection: socket.socket, give_up_at: float) -> bytes:
    answer = bytearray()
    while True:
        _limit(connection, give_up_at)
        try:
            piece = connection.recv(_READ_BYTES)
        except ConnectionResetError:  # it did not read all of what was sent; all that it sent has come
            piece = b""
        if not piece:
            return bytes(answer)
        answer += piece
        if len(answer) > _MAX_ANSWER_BYTES:
            raise OSError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")


def _parse_answer(answer: bytes, socket_path: "str | Path") -> tuple[int, bytes]:
    """Split an answer into its status and its body."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    words = status_line.split(b" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length = headers.get(b"content-length", b"%d" % len(body))
    if not blank or len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise DaemonError(f"{socket_path}: the answer is cut short or not HTTP: {answer[:40]!r}")
    if length != b"%d" % len(body):
        raise DaemonError(f"{socket_path}: the answer is cut short: {len(body)} bytes of {length.decode('latin-1')}")
    return int(words[1]), body


def _told_error(status: int, content: bytes, socket_path: "str | Path") -> ScratchError:
    """Make the error that an ErrorAnswer (domain.messages) tells; without msgspec, which the hooks need not import."""
    try:
        told = json.loads(content)
        texts = [told["error"], told["message"], told.get("hint") or ""]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        texts = [None]
    if not all(isinstance(text, str) for text in texts):
        return DaemonError(f"{socket_path}: the daemon answered with HTTP status {status}")
    error, message, hint = texts
    return error_by_name(error, message, hint or None)
