"""Polls over loopback: both real ends, and each end with a peer that does its worst."""

import asyncio
import contextlib
import logging
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from scratch_slurm.domain.errors import SealError, SealFault, StationError
from scratch_slurm.node.polls.client import Address, PollLimits, StationClient
from scratch_slurm.node.polls.envelope import PATH, format_question, format_reply, parse_question
from scratch_slurm.node.seal.interface import PAYLOAD_LIMIT_BYTES, SEALED_LIMIT_BYTES, Seal
from scratch_slurm.node.seal.keyfile import KeyFileSeal
from scratch_slurm.station.door import DoorLimits, PollDoor

KEY = b"k" * 32
LONG_S = 60.0
PATIENT = PollLimits(connect_s=LONG_S, answer_s=LONG_S)
GENEROUS = DoorLimits(ask_s=LONG_S, open_s=LONG_S, answer_s=LONG_S, take_s=LONG_S)
LARGEST = bytes(PAYLOAD_LIMIT_BYTES - 100)
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def reverse(body: bytes) -> bytes:
    return body[::-1]


@contextlib.asynccontextmanager
async def station(
    limits: DoorLimits = GENEROUS, seal: Seal | None = None, answer: object = reverse
) -> AsyncIterator[Address]:
    door = PollDoor(answer, seal or KeyFileSeal(KEY), limits)  # type: ignore[arg-type] # some tests give a wrong one
    port = await door.open("127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", port)
    finally:
        await door.close()


@contextlib.asynccontextmanager
async def peer(serve: Peer) -> AsyncIterator[Address]:
    """Something else than a station listens."""
    tasks = set()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def nobody() -> Iterator[Address]:
    """A port that is taken, and nobody listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield Address("127.0.0.1", holder.getsockname()[1])


async def poll(*addresses: Address, body: bytes = b"abc", key: bytes = KEY, limits: PollLimits = PATIENT) -> bytes:
    client = StationClient(addresses, KeyFileSeal(key), limits)
    try:
        return await client.poll(body)
    finally:
        client.close()


def raw(content: bytes) -> Peer:
    """Say one thing, whatever is asked, and close."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(content)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    return serve


def answered(content: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{more}\r\n".encode() + content


async def say(address: Address, content: bytes, *, end: bool = False) -> bytes:
    """Send bytes to a station, and read all that comes back until the end of the connection."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(content)
            await writer.drain()
            if end:
                writer.write_eof()
        with contextlib.suppress(ConnectionResetError):
            return await reader.read()
        return b""
    finally:
        writer.transport.abort()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def sealed_post(sealed: bytes) -> bytes:
    return HEAD + f"Content-Length: {len(sealed)}\r\n\r\n".encode() + sealed


# Both real ends.


@pytest.mark.parametrize("body", [b"", b"abc", LARGEST], ids=["empty", "small", "as-large-as-may-be"])
def test_a_poll_is_answered(body: bytes) -> None:
    async def run() -> None:
        async with station() as address:
            assert await poll(address, body=body) == body[::-1]

    asyncio.run(run())


def test_many_poll_at_once_and_each_gets_its_own_answer() -> None:
    async def run() -> None:
        async with station(DoorLimits(each=50)) as address:
            bodies = [b"%d" % number for number in range(1, 51)]
            assert await asyncio.gather(*(poll(address, body=body) for body in bodies)) == [
                body[::-1] for body in bodies
            ]

    asyncio.run(run())


def test_a_body_that_is_too_large_is_not_sent() -> None:
    async def run() -> None:
        async with station() as address:
            with pytest.raises(SealError) as caught:
                await poll(address, body=bytes(PAYLOAD_LIMIT_BYTES))
            assert caught.value.fault == SealFault.TOO_LARGE

    asyncio.run(run())


def test_the_next_station_answers_where_one_does_not_run_hangs_or_has_another_key() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def run() -> None:
        async with station() as good, peer(hang) as hanging, station(seal=KeyFileSeal(KEY + b"2")) as stranger:
            with nobody() as dead:
                impatient = PollLimits(connect_s=LONG_S, answer_s=0.3)
                addresses = [dead, hanging, stranger, Address("no-such-host.invalid", 1)]
                assert await poll(*addresses, good, limits=impatient) == b"cba"
                with pytest.raises(StationError) as caught:
                    await poll(*addresses, limits=impatient)
        words = str(caught.value)
        assert f"{dead}: cannot be talked to" in words
        assert f"{hanging}: no answer within 0.3 s" in words
        assert f"{stranger}: refused with HTTP status 403: 'altered: " in words
        assert "no-such-host.invalid:1: the host is not known" in words

    asyncio.run(run())


def test_the_first_station_is_asked_again_when_it_is_back() -> None:
    async def first(_: bytes) -> bytes:
        return b"first"

    async def run() -> None:
        async with station() as second:
            with nobody() as dead:
                pass
            client = StationClient([dead, second], KeyFileSeal(KEY), PATIENT)
            assert await client.poll(b"abc") == b"cba"
            door = PollDoor(first, KeyFileSeal(KEY), GENEROUS)
            await door.open(dead.host, dead.port)
            assert await client.poll(b"abc") == b"first"
            await door.close()
            client.close()

    asyncio.run(run())


# The station lies, or somebody in its place.


def test_an_answer_to_another_question_is_refused() -> None:
    """One that was recorded, one for another node, and the question itself sent back."""
    node, other = KeyFileSeal(KEY), KeyFileSeal(KEY)

    async def run() -> None:
        question = parse_question(format_question(b"n" * 16, b"other"))
        recorded = other.seal(format_reply(question, b"for another node"))
        async with peer(raw(answered(recorded))) as address:
            with pytest.raises(StationError, match="an answer: is to another question"):
                await poll(address)

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            await raw(answered(await reader.readexactly(length)))(feed(b"\r\n\r\n"), writer)

        async with peer(echo) as address:
            with pytest.raises(StationError, match="is no answer"):
                await poll(address)
        assert node.seal(b"") != other.seal(b"")

    asyncio.run(run())


def feed(content: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(content)
    return reader


async def endless(writer: asyncio.StreamWriter, start: bytes, piece: bytes) -> None:
    writer.write(start)
    while True:
        writer.write(piece)
        await writer.drain()


async def endless_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await endless(writer, b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000)


async def endless_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await endless(writer, b"HTTP/1.1 200 OK\r\n\r\n", bytes(2**16))


async def endless_information(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await endless(writer, b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


REDIRECT = answered(b"", "302 Found", "Location: http://127.0.0.1:1/\r\n")
BAD_PEERS = [
    pytest.param(raw(b""), "without an answer", id="says-nothing"),
    pytest.param(raw(b"SSH-2.0-x\r\n\r\n"), "does not speak HTTP", id="another-service"),
    pytest.param(raw(bytes(1000)), "does not speak HTTP", id="zeros"),
    pytest.param(raw(REDIRECT), "refused with HTTP status 302", id="a-redirect"),
    pytest.param(raw(answered(b"")), "is no message sealed", id="an-empty-answer"),
    pytest.param(raw(answered(b"x" * 1000)), "is no message sealed", id="garbage"),
    pytest.param(
        raw(answered(b"x" * 1000, "403 No")), f"403: '{'x' * 200}'$|403: '{'x' * 200}'\n", id="a-long-refusal"
    ),
    pytest.param(raw(answered(b"x" * 10)[:-5]), "does not speak HTTP", id="cut-short"),
    pytest.param(endless_head, "does not speak HTTP", id="an-endless-head"),
    pytest.param(endless_body, f"more than {SEALED_LIMIT_BYTES} bytes", id="an-endless-body"),
    pytest.param(endless_information, "no answer within 1 s", id="endless-information"),
]


@pytest.mark.parametrize(("serve", "words"), BAD_PEERS)
def test_a_bad_station_is_an_error_and_costs_little_memory(serve: Peer, words: str) -> None:
    async def run() -> None:
        async with peer(serve) as address:
            with pytest.raises(StationError, match=words):
                await poll(address, limits=PollLimits(connect_s=LONG_S, answer_s=1.0 if "1 s" in words else LONG_S))

    assert peak_bytes(lambda: asyncio.run(run())) < 8 * SEALED_LIMIT_BYTES


def peak_bytes(call: Callable[[], None]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_environments_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def run() -> None:
        async with station() as address:
            assert await poll(address) == b"cba"

    asyncio.run(run())


# Strangers at the station's door.

BAD_QUESTIONS = [
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404, id="another-method-and-path"),
    pytest.param(b"hello\r\n\r\n", 400, id="not-http"),
    pytest.param(bytes(20_000), 400, id="zeros"),
    pytest.param(HEAD + b"X: y\r\n" * 5000, 431, id="a-long-head"),
    pytest.param(HEAD + b"Content-Length: %d\r\n\r\n" % (SEALED_LIMIT_BYTES + 1), 413, id="a-large-body-announced"),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"8000\r\n" + bytes(0x8000) + b"\r\n") * 23,
        413,
        id="a-large-body-in-chunks",
    ),
    pytest.param(sealed_post(b""), 403, id="an-empty-body"),
    pytest.param(sealed_post(b"x" * 1000), 403, id="garbage"),
    pytest.param(sealed_post(KeyFileSeal(b"2" * 32).seal(format_question(b"n" * 16, b""))), 403, id="another-key"),
    pytest.param(sealed_post(KeyFileSeal(KEY).seal(b"no question")), 403, id="sealed-and-no-question"),
    pytest.param(sealed_post(KeyFileSeal(KEY).seal(format_question(b"n", b""))), 403, id="a-short-nonce"),
]


@pytest.mark.parametrize(("content", "status"), BAD_QUESTIONS)
def test_a_bad_question_is_refused_and_the_next_one_answered(content: bytes, status: int) -> None:
    async def run() -> None:
        async with station() as address:
            answer = await say(address, content)
            # One that still sends while it is refused may lose the answer: its connection is reset.
            assert status_of(answer) == status if answer else status == 413
            assert await poll(address) == b"cba"

    asyncio.run(run())


def test_a_question_that_is_sent_again_is_refused_with_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        content = sealed_post(KeyFileSeal(KEY).seal(format_question(b"n" * 16, b"abc")))
        async with station() as address:
            assert status_of(await say(address, content)) == 200
            assert not caplog.messages
            refused = await say(address, content)
        assert status_of(refused) == 403
        assert b"replayed" in refused

    with caplog.at_level(logging.INFO, "scratch_slurm"):
        asyncio.run(run())
    (line,) = caplog.messages
    assert line.startswith("refused host=127.0.0.1 fault=replayed")


def test_one_that_asks_slowly_or_half_closes_is_left_and_takes_no_place() -> None:
    async def run() -> None:
        async with station(DoorLimits(ask_s=0.3, each=1)) as address:
            for content, end in ((b"", False), (HEAD, False), (sealed_post(b"x" * 50)[:-1], False), (HEAD, True)):
                assert status_of(await say(address, content, end=end) or b"x 0 ") in (0, 400)
            assert await poll(address) == b"cba"

    asyncio.run(run())


def test_one_that_does_not_take_its_answer_is_left() -> None:
    async def large(_: bytes) -> bytes:
        return LARGEST

    async def run() -> None:
        async with station(DoorLimits(take_s=0.3, each=1), answer=large) as address:
            with socket.socket() as greedy:
                greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                greedy.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(greedy, (address.host, address.port))
                question = format_question(b"n" * 16, b"")
                await loop.sock_sendall(greedy, sealed_post(KeyFileSeal(KEY).seal(question)))
                # Turned away until the greedy one has lost its place.
                while True:
                    with contextlib.suppress(StationError):
                        assert await poll(address) == LARGEST
                        break

    asyncio.run(run())


def test_too_many_connections_are_turned_away_and_the_others_served() -> None:
    async def run() -> None:
        async with station(DoorLimits(all=6, each=4, ask_s=LONG_S)) as address:
            idle = [await asyncio.open_connection(address.host, address.port) for _ in range(4)]
            with pytest.raises(StationError, match=r"503: 'too many connections'|cannot be talked to"):
                await poll(address)
            elsewhere = [
                await asyncio.open_connection(address.host, address.port, local_addr=("127.0.0.2", 0)) for _ in range(2)
            ]
            assert status_of(await elsewhere_says(address)) == 503
            for _, writer in [*idle, *elsewhere]:
                writer.transport.abort()
            while True:  # until the station has seen them go
                with contextlib.suppress(StationError):
                    assert await poll(address) == b"cba"
                    break

    asyncio.run(run())


async def elsewhere_says(address: Address) -> bytes:
    """Connect from an address that has no connections yet."""
    reader, writer = await asyncio.open_connection(address.host, address.port, local_addr=("127.0.0.3", 0))
    try:
        return await reader.read()
    finally:
        writer.transport.abort()


def test_questions_that_are_never_finished_are_held_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    """Forty strangers send all but the last byte of the largest question: 28 MiB, of which 2 are held."""
    limits = DoorLimits(held_bytes=2 * 2**20, ask_s=1.0, each=100)
    content = sealed_post(bytes(SEALED_LIMIT_BYTES))[:-1]

    async def run() -> None:
        async with station(limits) as address:
            answers = await asyncio.gather(*(say(address, content) for _ in range(40)))
            assert {status_of(answer) for answer in answers if answer} <= {503}
            assert await poll(address) == b"cba"

    asyncio.run(run())
    held = [int(line.rpartition("held_bytes=")[2]) for line in caplog.messages]
    assert held
    assert limits.held_bytes < min(held) <= max(held) < limits.held_bytes + 2**16


class HangingSeal:
    """Opens nothing until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def seal(self, payload: bytes) -> bytes:
        return payload

    def open(self, sealed: bytes) -> bytes:
        self.let_go.wait(LONG_S)
        return sealed


def test_a_sealer_that_hangs_holds_up_neither_the_loop_nor_more_threads_than_there_are() -> None:
    seal = HangingSeal()

    async def run() -> None:
        async with station(DoorLimits(open_s=0.3, each=100), seal=seal) as address:
            before = threading.active_count()
            asked = [asyncio.create_task(say(address, sealed_post(b"x"))) for _ in range(20)]
            assert status_of(await say(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) == 404
            assert await asyncio.gather(*asked) == [b""] * 20
            assert threading.active_count() <= before + 4
        seal.let_go.set()

    asyncio.run(run())
    for thread in threading.enumerate():
        if thread.name.startswith("door"):
            thread.join()


def test_a_bug_in_an_answer_is_said_and_the_station_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(body: bytes) -> bytes:
        raise ZeroDivisionError

    async def run() -> None:
        async with station(answer=fail) as address:
            for _ in range(2):
                with pytest.raises(StationError, match="500: 'an error in the station itself"):
                    await poll(address)

    asyncio.run(run())
    assert caplog.messages == ["bug in an answer"] * 2
