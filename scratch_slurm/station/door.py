"""The station's end of a poll: a listening TCP socket that anybody in the network may reach, within bounds.

One request, one answer, one connection. Whatever a stranger's connection takes has a bound: how many there are, in all
and for each address; the bytes that wait to be opened, together; the time to ask, to be opened, to be answered, to take
the answer. Must not know what is asked.
"""

import asyncio
import collections
import concurrent.futures
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from scratch_slurm.domain.errors import SealError, SealFault
from scratch_slurm.node.polls.envelope import PATH, Question, format_reply, parse_question
from scratch_slurm.node.seal.interface import SEALED_LIMIT_BYTES, Seal
from scratch_slurm.service.http import RefusedError, RequestReader, format_answer

log = logging.getLogger(__name__)

_READ_BYTES = 16 * 2**10
_BACKLOG = 512
_THREADS = 4
"""That open and seal: as many as may hang with the sealer."""
_LAST_WORDS_S = 1.0

Answer = Callable[[bytes], Awaitable[bytes]]
"""Gives the answer's body to the body of a question from somebody who may ask."""
T = TypeVar("T")


@dataclass(frozen=True)
class DoorLimits:
    """What callers may take. Beyond the counts they are turned away with status 503; a node comes again."""

    all: int = 1024
    """Connections."""
    each: int = 64
    """Connections of one IP address; many nodes may stand behind one."""
    held_bytes: int = 64 * 2**20
    """Of questions that are read and not opened yet, together."""
    ask_s: float = 5.0
    """For sending the whole question."""
    open_s: float = 15.0
    """For opening it, and again for sealing the answer: the threads may be busy."""
    answer_s: float = 10.0
    """Until the answer is known."""
    take_s: float = 5.0
    """For taking the answer."""


class PollDoor:
    """Lets pollers in, and answers each of them once.

    A message that is not trusted is refused with status 403 and one line in the log, which `service.logs` bounds.

    Args:
        answer: called on the loop, one call a poll; what it raises is a bug, answered with status 500.
    """

    def __init__(self, answer: Answer, seal: Seal, limits: DoorLimits | None = None) -> None:
        self._answer = answer
        self._seal = seal
        self._limits = limits or DoorLimits()
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="door")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_host: collections.Counter[str] = collections.Counter()
        self._held_bytes = 0

    async def open(self, host: str | None, port: int) -> int:
        """Listen.

        Args:
            host: the address to listen at; None: all of this machine's.
            port: 0: any free one.
        Returns: the port.
        Raises: OSError: it cannot be had.
        """
        self._server = await asyncio.start_server(self._let_in, host, port, limit=_READ_BYTES, backlog=_BACKLOG)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        """Let nobody in any more, and end the polls under way."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_WORDS_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        host = str(peer[0]) if peer else ""
        if len(self._tasks) >= self._limits.all or self._by_host[host] >= self._limits.each:
            log.warning("turned away host=%s connections=%d of=%d", host, self._by_host[host], len(self._tasks))
            writer.write(_refusal(503, "too many connections"))
            writer.close()
            return
        self._by_host[host] += 1
        task = asyncio.create_task(self._serve(reader, writer, host))
        self._tasks.add(task)
        task.add_done_callback(partial(self._left, writer, host))

    def _left(self, writer: asyncio.StreamWriter, host: str, task: asyncio.Task[None]) -> None:
        writer.transport.abort()
        self._by_host[host] -= 1
        if not self._by_host[host]:
            del self._by_host[host]
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()):
            log.error("bug in a connection", exc_info=bug)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        """Answer one caller; one that does not ask in time, goes away, or does not take the answer is left."""
        try:
            answer = await self._find_answer(reader, host)
        except (TimeoutError, ConnectionError):
            return
        except RefusedError as exc:
            answer = _refusal(exc.status, exc.message)
        except Exception:
            log.exception("bug in an answer")
            answer = _refusal(500, "an error in the station itself; see its log")
        if answer:
            await self._tell(writer, answer)

    async def _find_answer(self, reader: asyncio.StreamReader, host: str) -> bytes:
        """Returns: what to send back; empty: the caller has gone before its question was whole."""
        question = await self._hear(reader, host)
        if question is None:
            return b""
        async with asyncio.timeout(self._limits.answer_s):
            body = await self._answer(question.body)
        async with asyncio.timeout(self._limits.open_s):
            try:
                sealed = await self._in_thread(partial(self._seal.seal, format_reply(question, body)))
            except SealError as exc:
                log.error("cannot seal an answer host=%s problem=%r", host, exc.message)
                raise RefusedError(503, "the station cannot seal its answer; see its log") from exc
        return format_answer(200, sealed, content_type="application/octet-stream")

    async def _hear(self, reader: asyncio.StreamReader, host: str) -> Question | None:
        """Read and open a question; None: the caller has gone before it was whole.

        Raises: RefusedError: it is none that is taken.
        """
        held_bytes = 0
        try:
            async with asyncio.timeout(self._limits.ask_s):
                request_reader, request = RequestReader(body_limit_bytes=SEALED_LIMIT_BYTES), None
                while request is None:
                    piece = await reader.read(_READ_BYTES)
                    held_bytes += len(piece)
                    self._held_bytes += len(piece)
                    if self._held_bytes > self._limits.held_bytes:
                        log.warning("turned away host=%s held_bytes=%d", host, self._held_bytes)
                        raise RefusedError(503, "too much is being sent by all")
                    request = request_reader.feed(piece)
                    if request is None and not piece:
                        return None
            if (request.method, request.path) != ("POST", PATH):
                raise RefusedError(404, f"only POST {PATH} is answered")
            async with asyncio.timeout(self._limits.open_s):
                return await self._in_thread(partial(self._open, request.body, host))
        finally:
            self._held_bytes -= held_bytes

    def _open(self, sealed: bytes, host: str) -> Question:
        try:
            return parse_question(self._seal.open(sealed))
        except SealError as exc:
            log.warning("refused host=%s fault=%s problem=%r", host, exc.fault, exc.message)
            status = 503 if exc.fault is SealFault.UNAVAILABLE else 403
            raise RefusedError(status, f"{exc.fault}: {exc.message}") from exc

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _tell(self, writer: asyncio.StreamWriter, answer: bytes) -> None:
        """Send an answer and have it taken: `drain` returns when the kernel has it all."""
        writer.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.timeout(self._limits.take_s):
                writer.write(answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError):
            return


def _refusal(status: int, words: str) -> bytes:
    return format_answer(status, words.encode(errors="replace"), content_type="text/plain; charset=utf-8")
