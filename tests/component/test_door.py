"""Callers that are let in, for how long, and what is held for them: a real socket, and callers of two users."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scratch_slurm.domain.errors import DeniedError, NotFoundError, PinnedError, ScratchError, UsageError
from scratch_slurm.domain.messages import EvictRequest
from scratch_slurm.service.door import Door, Limits
from tests.kit.people import NOBODY, reachable_directory

pytestmark = pytest.mark.root

GET = b"GET /x HTTP/1.0\r\n\r\n"
# For what must come; nothing is measured with it.
PATIENCE_S = 20.0

# A caller of another user: connects so often, sends, and tells what came back of each. Ends when its input does.
_CALLER = """
import socket, sys
path, number, sent = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
callers = []
for _ in range(number):
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(path)
    callers.append(caller)
    if sent:
        try:
            caller.sendall(sent)
        except OSError:
            pass
print("connected", flush=True)
if sys.argv[4] == "read":
    for caller in callers:
        told = b""
        try:
            while piece := caller.recv(65536):
                told += piece
        except OSError:
            pass
        print(told.split(b" ")[1].decode() if told else "closed", flush=True)
sys.stdin.read()
"""


class Stranger:
    """A process of another user that holds connections; `read` lets it read what comes."""

    def __init__(self, path: Path, number: int, sent: bytes = b"", *, read: bool = True) -> None:
        self._arguments = (_CALLER, str(path), str(number), sent.hex(), "read" if read else "hold")

    async def __aenter__(self) -> "Stranger":
        self._process = await asyncio.create_subprocess_exec(
            "/usr/bin/python3", "-I", "-c", *self._arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, user=NOBODY, group=NOBODY, extra_groups=[],
        )  # fmt: skip
        assert await self.line() == "connected"
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_S)).decode().strip()


async def ask(path: Path, sent: bytes = GET) -> bytes:
    """Ask as root; returns all that comes back."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    with contextlib.closing(writer):
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), PATIENCE_S)


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0.005)


class Desk:
    """What is behind the door: counts, and answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.made: list[int] = []
        self.given_up = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.answer: Callable[[], msgspec.Struct] = lambda: EvictRequest("x")
        self.refusal: Exception | None = None

    async def handle(self, request, person):
        self.asked.append(person.uid)
        if self.refusal:
            raise self.refusal
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise

        def make():
            self.made.append(person.uid)
            return self.answer()

        return make


def told(story: Callable[[Path, Desk, Door], Coroutine[Any, Any, None]], **limits: Any) -> None:
    """Let a story happen at an open door."""

    async def tell(path: Path) -> None:
        desk = Desk()
        door = Door(desk.handle, Limits(**{"all": 64, "each": 3, "ask_s": 60.0, "take_s": 60.0} | limits))
        door.open(path, mode=0o666)
        try:
            async with asyncio.timeout(3 * PATIENCE_S):
                await story(path, desk, door)
        finally:
            desk.may_answer.set()
            await door.close()

    with reachable_directory() as folder:
        asyncio.run(tell(folder / "door.sock"))


def test_a_caller_is_known_asked_once_and_answered_once() -> None:
    async def story(path, desk, door):
        assert (await ask(path)).endswith(b'\r\n\r\n{"dataset":"x"}')
        assert (await ask(path, GET * 50)).count(b"HTTP/1.1 200") == 1
        assert desk.asked == [0, 0]
        async with Stranger(path, 1, GET) as stranger:
            assert await stranger.line() == "200"
        assert desk.asked == [0, 0, NOBODY]

    told(story)


ERRORS = [
    pytest.param(DeniedError("no"), b"403", b"DeniedError", id="denied"),
    pytest.param(NotFoundError("no"), b"404", b"NotFoundError", id="not-found"),
    pytest.param(PinnedError("no"), b"409", b"PinnedError", id="pinned"),
    pytest.param(UsageError("no"), b"400", b"UsageError", id="usage"),
    pytest.param(ZeroDivisionError("secret"), b"500", b"see its log", id="a-bug"),
]


@pytest.mark.parametrize(("error", "status", "word"), ERRORS)
@pytest.mark.parametrize("early", [True, False], ids=["in-the-handler", "in-the-making"])
def test_an_exception_becomes_an_answer(error, status, word, early, caplog) -> None:
    async def story(path, desk, door):
        def fail():
            raise error

        if early:
            desk.refusal = error
        desk.answer = fail
        content = await ask(path)
        assert content.startswith(b"HTTP/1.1 " + status) and word in content
        assert b"secret" not in content

    told(story)
    assert bool(caplog.records) is not isinstance(error, ScratchError)


def test_a_request_that_is_none_is_refused_without_a_word_in_the_log(caplog) -> None:
    async def story(path, desk, door):
        assert (await ask(path, b"\xff\xfe\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        packed = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n\r\n"
        assert (await ask(path, packed)).startswith(b"HTTP/1.1 415 ")
        assert not desk.asked

    told(story)
    assert not caplog.records


def test_a_user_with_as_many_connections_as_one_may_have_is_turned_away_and_nobody_else() -> None:
    async def story(path, desk, door):
        async with Stranger(path, 3, read=False), Stranger(path, 2) as second:
            assert [await second.line() for _ in range(2)] == ["503", "503"]
            for _ in range(20):
                assert b" 200 " in await ask(path)

    told(story)


def test_a_seat_is_free_again_when_its_connection_ends() -> None:
    async def story(path, desk, door):
        for _ in range(4):
            async with Stranger(path, 3, GET) as stranger:
                assert [await stranger.line() for _ in range(3)] == ["200"] * 3
            await until(lambda: not door._tasks)

    told(story)


@pytest.mark.parametrize("sent", [b"", GET[:-2], b"POST /x HTTP/1.0\r\nContent-Length: 9\r\n\r\n12"])
def test_a_caller_that_does_not_ask_in_time_is_left(sent) -> None:
    async def story(path, desk, door):
        async with Stranger(path, 3, sent) as stranger:
            assert [await stranger.line() for _ in range(3)] == ["closed"] * 3
        assert not desk.asked

    told(story, ask_s=0.2)


def test_an_answer_that_is_not_taken_holds_up_its_user_alone_and_only_one_is_held() -> None:
    async def story(path, desk, door):
        desk.answer = lambda: EvictRequest("x" * 2_000_000)
        async with Stranger(path, 3, GET, read=False):
            await until(lambda: desk.asked.count(NOBODY) == 3)
            for _ in range(5):
                assert len(await ask(path)) > 2_000_000
            assert desk.made.count(NOBODY) == 1

    told(story)


def test_an_answer_that_is_not_taken_in_time_is_thrown_away() -> None:
    async def story(path, desk, door):
        desk.answer = lambda: EvictRequest("x" * 2_000_000)
        async with Stranger(path, 3, GET, read=False):
            await until(lambda: desk.made.count(NOBODY) == 3)
            await until(lambda: not door._tasks)

    told(story, take_s=0.1)


def test_nobody_waits_for_an_answer_longer_than_is_right() -> None:
    async def story(path, desk, door):
        desk.may_answer.clear()
        assert await ask(path) == b""
        assert desk.given_up == 1

    told(story, answer_s=0.1)


def test_what_a_caller_asked_for_is_given_up_when_it_goes_away() -> None:
    async def story(path, desk, door):
        desk.may_answer.clear()
        async with Stranger(path, 3, GET * 20, read=False):
            await until(lambda: len(desk.asked) == 3)
        async with Stranger(path, 3, GET, read=False):
            await until(lambda: len(desk.asked) == 6)
        await until(lambda: desk.given_up >= 3)

    told(story)


def test_a_caller_that_has_said_all_and_reads_on_gets_the_answer() -> None:
    async def story(path, desk, door):
        desk.may_answer.clear()
        reader, writer = await asyncio.open_unix_connection(str(path))
        with contextlib.closing(writer):
            writer.write(GET)
            writer.write_eof()
            await until(lambda: desk.asked)
            desk.may_answer.set()
            assert b" 200 " in await asyncio.wait_for(reader.read(), PATIENCE_S)

    told(story)


def test_with_all_places_taken_the_next_waits_outside_and_comes_in_when_one_leaves() -> None:
    async def story(path, desk, door):
        async with Stranger(path, 2, read=False):
            await until(lambda: len(door._tasks) == 2)
            waiting = asyncio.create_task(ask(path))
            for _ in range(300):
                await asyncio.sleep(0)
            assert not desk.asked and not waiting.done()
        assert b" 200 " in await waiting

    told(story, all=2)


def test_without_descriptors_nobody_is_let_in_for_a_while_and_it_is_said_once(caplog) -> None:
    async def story(path, desk, door):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        caller = socket.socket(socket.AF_UNIX)
        caller.setblocking(False)
        ballast = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 300), hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    ballast.append(os.dup(0))
            caller.connect(str(path))
            caller.sendall(GET)
            await until(lambda: caplog.records)
            for _ in range(100):
                await asyncio.sleep(0)
        finally:
            for each in ballast:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        content = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(caller, 65536), PATIENCE_S)
        caller.close()
        assert b" 200 " in content

    with caplog.at_level(logging.WARNING):
        told(story)
    assert [record.getMessage()[:26] for record in caplog.records] == ["cannot let callers in prob"]


def test_a_socket_that_somebody_removed_is_made_again() -> None:
    async def story(path, desk, door):
        path.unlink()
        door.open(path, mode=0o600)
        assert path.stat().st_mode & 0o777 == 0o600
        assert b" 200 " in await ask(path)
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    told(story)


def test_nothing_is_left_open_when_it_closes() -> None:
    async def story(path, desk, door):
        desk.may_answer.clear()
        async with Stranger(path, 3, GET):
            await until(lambda: len(desk.asked) == 3)
            await door.close()
            assert desk.given_up == 3
            assert not door._tasks
        with pytest.raises(ConnectionRefusedError):
            await ask(path)
        desk.may_answer.set()

    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    told(story)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
