"""A listening socket whose callers are known, counted and bounded: one request, one answer, one connection.

Anybody on the node may come, and hold as many connections as the kernel gives a user. So whatever a connection takes of
the daemon has a bound: how many there are, in all and for each user; how long each may take to ask, to be answered, and
to take its answer; the answers that wait to be taken: one for each user. Must not know what is asked.
"""

import asyncio
import contextlib
import logging
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec

from scratch_slurm.domain.access import ROOT, Person
from scratch_slurm.domain.errors import DaemonError, DeniedError, NotFoundError, PinnedError, ScratchError, UsageError
from scratch_slurm.domain.messages import ErrorAnswer
from scratch_slurm.service.http import RefusedError, Request, RequestReader, format_answer
from scratch_slurm.service.seats import Seats

log = logging.getLogger(__name__)

_BACKLOG = 512
_ACCEPTED_AT_ONCE = 64
_READ_BYTES = 4096
_PAUSE_S = 0.5
"""How long nobody is let in when the node has no descriptor, or no memory, for another connection."""
_LAST_WORDS_S = 1.0
_ANSWERS_AT_ONCE = 16
"""Answers of strangers that are made and not taken yet: the memory that they may have together."""
_OTHERS_SHARE = 9
"""So many times as long as a user's answer took to be made, the user's next one waits."""
_PEER = struct.Struct("iII")
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h
_GROUPS_BYTES = 1024  # the most that Python's getsockopt takes
_STATUSES = {DeniedError: 403, NotFoundError: 404, PinnedError: 409, UsageError: 400}

Make = Callable[[], msgspec.Struct]
"""Makes an answer; called when its user's turn has come."""
Handler = Callable[[Request, Person], Awaitable[Make]]


@dataclass(frozen=True)
class Limits:
    """What callers may take.

    Counts are of connections. With `all` of them open the next callers wait in the kernel's queue; a user that
    has `each` open is turned away with status 503. Root is not counted against `each`.
    """

    all: int
    each: int
    ask_s: float = 5.0
    """For sending the whole request."""
    answer_s: float = 90.0
    """Until the answer can be made: the longest wait that may be asked for, and some more."""
    take_s: float = 5.0
    """For taking the answer."""


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


class Door:
    """Lets callers in, and answers each of them once.

    Args:
        handler: finds out how to make the answer to a request. The ScratchErrors of either are answers as well.
        limits: what callers may take.
    """

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self._handler = handler
        self._limits = limits
        self._seats = Seats(limits.each)
        self._rendering = asyncio.Semaphore(_ANSWERS_AT_ONCE)
        self._listener: socket.socket | None = None
        self._place: tuple[Path, tuple[int, int] | None] | None = None
        self._hears = False
        self._pause: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, path: Path, *, mode: int) -> None:
        """Listen at `path`, with the permissions `mode`; a socket left by an earlier daemon is replaced.

        May be called again when somebody removed the socket.

        Raises: OSError: it cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # A private name first, then rename: nobody ever meets a socket that does not listen or has other
            # permissions. Before listen() nobody can connect, whatever they are.
            private = path.with_name(path.name + ".new")
            private.unlink(missing_ok=True)
            listener.bind(str(private))
            private.chmod(mode)
            listener.listen(_BACKLOG)
            identity = _identity(private)
            private.rename(path)
        except BaseException:
            listener.close()
            raise
        self._stop_listening()
        self._listener = listener
        self._place = (path, identity)
        self._hear()

    def is_at_its_path(self) -> bool:
        """Whether the socket that callers find is the one that is listened at."""
        return self._place is None or _identity(self._place[0]) == self._place[1]

    async def close(self) -> None:
        """Let nobody in any more, and end the requests under way."""
        self._stop_listening()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_WORDS_S)

    def _stop_listening(self) -> None:
        self._do_not_hear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _hear(self) -> None:
        self._pause = None
        if self._listener is not None and not self._hears:
            self._hears = True
            asyncio.get_running_loop().add_reader(self._listener, self._let_in)

    def _do_not_hear(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._listener is not None and self._hears:
            asyncio.get_running_loop().remove_reader(self._listener)
        self._hears = False

    def _let_in(self) -> None:
        """Accept the callers that wait, as far as there is room; the others stay in the kernel's queue."""
        assert self._listener is not None
        for _ in range(_ACCEPTED_AT_ONCE):
            if len(self._tasks) >= self._limits.all:
                self._do_not_hear()  # until somebody leaves
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except (OSError, MemoryError) as exc:
                # The caller is still in the queue: to try again at once would be a tight circle.
                self._do_not_hear()
                self._pause = asyncio.get_running_loop().call_later(_PAUSE_S, self._hear)
                log.warning("cannot let callers in problem=%r", str(exc))
                return
            self._seat(connection)

    def _seat(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            person = peer(connection)
        except OSError:
            connection.close()
            return
        if self._seats.take(person.uid):
            try:
                task = asyncio.create_task(self._serve(connection, person))
            except MemoryError:
                self._seats.leave(person.uid)
                connection.close()
                return
            self._tasks.add(task)
            task.add_done_callback(partial(self._left, connection, person))
            return
        most = self._limits.each
        log.warning("turned away uid=%d connections=%d", person.uid, most)
        error = DaemonError(f"user {person.uid} has {most} connections open, which is the most", hint="try again")
        with contextlib.suppress(OSError):
            connection.send(_format_error(503, error))
        connection.close()

    def _left(self, connection: socket.socket, person: Person, task: asyncio.Task[None]) -> None:
        connection.close()
        self._seats.leave(person.uid)
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()):
            log.error("bug in a connection", exc_info=bug)
        if self._pause is None:
            self._hear()

    async def _serve(self, connection: socket.socket, person: Person) -> None:
        """Answer one caller; one that does not ask in time, goes away, or does not take the answer is left."""
        try:
            async with asyncio.timeout(self._limits.ask_s):
                request = await _read_request(connection)
            if request is None:
                return
            async with asyncio.timeout(self._limits.answer_s):
                with _while_there(connection):
                    make = await self._handler(request, person)
        except (TimeoutError, ConnectionError):
            return
        except Exception as exc:
            make = partial(_fail, exc)
        if person.uid == ROOT:
            await self._tell(connection, make)
            return
        async with self._seats.turn(person.uid):
            async with self._rendering:
                took_s = await self._tell(connection, make)
            connection.close()
            await asyncio.sleep(_OTHERS_SHARE * took_s)

    async def _tell(self, connection: socket.socket, make: Make) -> float:
        """Make an answer and have it taken. Returns: the seconds that it took to be made."""
        began = time.monotonic()
        content = _render(make)
        took_s = time.monotonic() - began
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(self._limits.take_s):
                await asyncio.get_running_loop().sock_sendall(connection, content)
        return took_s


def peer(connection: socket.socket) -> Person:
    """Tell what user is at the other end, by the kernel's word. Source: SO_PEERCRED and SO_PEERGROUPS in unix(7).

    Raises: OSError: the kernel does not tell.
    """
    _, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:  # ERANGE: more groups than Python has room for; ENOPROTOOPT before Linux 4.13
        return Person(uid, None)
    return Person(uid, frozenset((gid, *(number for (number,) in struct.iter_unpack("I", groups)))))


async def _read_request(connection: socket.socket) -> Request | None:
    """Read a request; None: the caller has gone before it was whole.

    Raises: RefusedError: it is none that is taken.
    """
    loop = asyncio.get_running_loop()
    reader = RequestReader()
    while True:
        piece = await loop.sock_recv(connection, _READ_BYTES)
        request = reader.feed(piece)
        if request is not None or not piece:
            return request


@contextlib.contextmanager
def _while_there(connection: socket.socket) -> Iterator[None]:
    """Cancel what the current task does when the caller goes away: nobody waits for the answer any more."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    poll = select.poll()
    poll.register(connection, 0)

    def look() -> None:
        # Readable is more than gone: more than one request was sent, or no more will be. unix(7), poll(2)
        if poll.poll(0):
            task.cancel()
        loop.remove_reader(connection)

    loop.add_reader(connection, look)
    try:
        yield
    finally:
        loop.remove_reader(connection)


def _fail(error: Exception) -> NoReturn:
    raise error


def _render(make: Make) -> bytes:
    """Turn an answer, or the exception in its place, into bytes: the one place."""
    try:
        return format_answer(200, msgspec.json.encode(make()))
    except RefusedError as exc:
        return _format_error(exc.status, UsageError(exc.message))
    except ScratchError as exc:
        return _format_error(_STATUSES.get(type(exc), 500), exc)
    except Exception:
        log.exception("bug in an answer")
        return _format_error(500, ScratchError("an error in the daemon itself; see its log"))


def _format_error(status: int, error: ScratchError) -> bytes:
    return format_answer(status, msgspec.json.encode(ErrorAnswer(type(error).__name__, error.message, error.hint)))
