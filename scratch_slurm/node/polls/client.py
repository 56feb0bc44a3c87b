"""The node's end of a poll: HTTP/1.1 over TCP to one station after the other, sealed. Must not know what is asked.

One request, one connection. It follows no redirect, knows no proxy, and keeps nothing between polls.
"""

import asyncio
import concurrent.futures
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import h11

from scratch_slurm.domain.errors import SealError, StationError
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.node.polls.envelope import NONCE_BYTES, PATH, format_question, parse_reply
from scratch_slurm.node.seal.interface import SEALED_LIMIT_BYTES, Seal

_HEAD_LIMIT_BYTES = 8 * 2**10
_READ_BYTES = 64 * 2**10
_WORDS_BYTES = 200
"""So much of a refusal's text is shown: nobody vouches for it."""
_THREADS = 2
"""One may hang with the name service or the sealer, and polls come one after the other."""

T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """Where a station listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class PollLimits:
    """How long one address may take. The sealer has limits of its own."""

    connect_s: float = 2.0
    """To look the host up and to be let in."""
    answer_s: float = 10.0
    """From then on, for the question and the whole answer."""


class StationClient:
    """Polls the first station that answers.

    Args:
        addresses: tried in this order, each time.
    """

    def __init__(self, addresses: Sequence[Address], seal: Seal, limits: PollLimits | None = None) -> None:
        self._addresses = tuple(addresses)
        self._seal = seal
        self._limits = limits or PollLimits()
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="poll")

    async def poll(self, body: bytes) -> bytes:
        """Ask.

        Returns: the answer's body.
        Raises:
            StationError: no station gave an answer that is trusted; says why for each address.
            SealError: nothing can be sealed on this node, or `body` is too large.
        """
        problems = []
        for address in self._addresses:
            nonce = secrets.token_bytes(NONCE_BYTES)
            # Anew for each: a station that does not answer may have opened the one before.
            sealed = await self._in_thread(partial(self._seal.seal, format_question(nonce, body)))
            try:
                answer = await self._exchange(address, sealed)
                return parse_reply(await self._in_thread(partial(self._seal.open, answer)), nonce)
            except (StationError, SealError) as exc:
                problems.append(f"{address}: {exc.message}")
        raise StationError(
            "; ".join(problems) or "no station is named", hint="is scratch-slurm-station running there? see its log"
        )

    def close(self) -> None:
        """Let the threads go; the polls under way must have been cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _exchange(self, address: Address, sealed: bytes) -> bytes:
        """Raises: StationError."""
        writer = None
        try:
            try:
                async with asyncio.timeout(self._limits.connect_s):
                    reader, writer = await self._connect(address)
            except TimeoutError as exc:
                raise StationError(f"lets nobody in within {self._limits.connect_s:g} s") from exc
            try:
                async with asyncio.timeout(self._limits.answer_s):
                    return await _ask(reader, writer, address, sealed)
            except TimeoutError as exc:
                raise StationError(f"no answer within {self._limits.answer_s:g} s") from exc
        except socket.gaierror as exc:
            raise StationError(f"the host is not known: {exc.strerror}") from exc
        except OSError as exc:
            raise StationError(f"cannot be talked to: {word_os_error(exc)}") from exc
        except h11.RemoteProtocolError as exc:
            raise StationError(f"what listens there does not speak HTTP/1.1: {exc}") from exc
        finally:
            if writer is not None:
                writer.transport.abort()  # what is not sent yet, nobody waits for

    async def _connect(self, address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first of the host's addresses that lets us in."""
        find = partial(socket.getaddrinfo, address.host, address.port, type=socket.SOCK_STREAM)
        problem: OSError | None = None
        for *_, place in await self._in_thread(find):
            try:
                return await asyncio.open_connection(str(place[0]), address.port, limit=_READ_BYTES)
            except OSError as exc:
                problem = exc
        raise problem or OSError("the host has no address")


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address, sealed: bytes) -> bytes:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_LIMIT_BYTES)
    headers = [
        ("Host", str(address)),
        ("Content-Type", "application/octet-stream"),
        ("Content-Length", str(len(sealed))),
        ("Connection", "close"),
    ]
    events = (h11.Request(method="POST", target=PATH, headers=headers), h11.Data(data=sealed), h11.EndOfMessage())
    writer.write(b"".join(connection.send(event) or b"" for event in events))
    status, body = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            piece = await reader.read(_READ_BYTES)
            if not piece and not status:
                raise StationError("ended the connection without an answer")
            connection.receive_data(piece)
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > SEALED_LIMIT_BYTES:
                raise StationError(f"an answer of more than {SEALED_LIMIT_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            break
    if status != 200:
        words = bytes(body[:_WORDS_BYTES]).decode(errors="replace").strip()
        raise StationError(f"refused with HTTP status {status}: {words!r}")
    return bytes(body)
