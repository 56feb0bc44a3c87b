"""What callers may send: the daemon's interface in this process, over a node without any dataset."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scratch_slurm.domain.access import Person
from scratch_slurm.domain.config import build_config
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.domain.messages import ErrorAnswer
from scratch_slurm.node.ledger.ledger import Ledger
from scratch_slurm.service.http import RefusedError, Request
from scratch_slurm.service.interface import Interface
from scratch_slurm.service.parts import make_parts
from scratch_slurm.service.slurm_side import SlurmSide
from scratch_slurm.service.workers import Workers

PATHS = {
    "/v1/status": "GET",
    "/v1/wait": "POST",
    "/v1/evict": "POST",
    "/v1/plan": "POST",
    "/v1/release": "POST",
}
ROOT = Person(0, frozenset((0,)))
STRANGER = Person(12345, frozenset((12345,)))


class Node:
    """A daemon without a socket: its rounds go on while something is asked."""

    def __init__(self, folder: Path) -> None:
        values = {f"{key}_dir": str(folder / key) for key in ("source", "cache", "mount", "state", "run")}
        self.config = build_config(
            {**values, "interval": "60", "cache_on_any_file_system": True}, origin="test", host_name="node1"
        )
        for directory in (self.config.source_dir, self.config.cache_dir, self.config.mount_dir):
            directory.mkdir(parents=True)
        self.runner = asyncio.Runner()
        self.runner.run(self._start())

    async def _start(self) -> None:
        config, workers = self.config, Workers()
        self.ledger = Ledger(config.ledger_path, boot_id="this", now=time.time)
        parts = make_parts(config, self.ledger, workers)
        self.interface = Interface(parts, SlurmSide(config, parts.rounds, self.ledger, parts.supervisor))
        self.rounds = asyncio.create_task(parts.run())
        self.workers = workers
        await parts.rounds.after_next_round()

    def ask(self, method: str, path: str, body: bytes, caller: Person = ROOT) -> msgspec.Struct:
        async def ask() -> msgspec.Struct:
            return (await self.interface._route(Request(method, path, body), caller))()

        return self.runner.run(ask())

    def close(self) -> None:
        async def end() -> None:
            self.rounds.cancel()
            await asyncio.wait([self.rounds])
            await self.workers.close(patience_s=5.0)

        self.runner.run(end())
        self.runner.close()
        self.ledger.close()


@contextmanager
def running(folder: Path) -> Iterator[Node]:
    node = Node(folder)
    try:
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(tmp_path_factory.mktemp("node")) as node:
        yield node


BAD_BODIES = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"\xff\xfe", id="no-text"),
    pytest.param(b'{"datasets":["\xff"]}', id="no-text-in-a-name"),
    pytest.param(b'{"datasets":[],"z":' + b"[" * 30_000, id="nested-deeper-than-the-stack"),
    pytest.param(b'{"datasets":["' + b"x" * 60_000 + b'"]}', id="a-long-name"),
    pytest.param(b'{"datasets":["../../etc"]}', id="a-path"),
    pytest.param(b'{"datasets":["\\ud800"]}', id="half-a-character"),
    pytest.param(b'{"datasets":["a"],"timeout_s":"soon"}', id="a-time-that-is-none"),
    pytest.param(b'{"datasets":["a"],"timeout_s":NaN}', id="not-a-number"),
    pytest.param(b'{"datasets":["a"],"timeout_s":1e999}', id="endless"),
    pytest.param(json.dumps({"datasets": ["a"] * 65}).encode(), id="too-many-names"),
    pytest.param(b"[]", id="a-list"),
    pytest.param(b"null", id="null"),
]


@pytest.mark.parametrize("body", BAD_BODIES)
def test_a_body_that_is_none_is_the_callers_error_and_no_line_of_the_log(
    node: Node, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ScratchError) as caught:
        node.ask("POST", "/v1/wait", body)
    msgspec.json.encode(caught.value.message)
    assert caught.value.exit_code == 2
    assert not caplog.records


NUMBERS = st.integers() | st.floats(allow_nan=False) | st.sampled_from([-1, 0, 2**31, 2**32, 2**63, 2**64, 1e308])
NAMES = st.text(max_size=70) | st.sampled_from(["a", "imagenet", "..", "a" * 64, "a" * 65])
FIELDS = {
    "datasets": st.lists(NAMES, max_size=4),
    "dataset": NAMES,
    "capacity": st.text(max_size=20) | st.sampled_from(["1 GB", "101%", "80%", "9" * 20 + " PiB", "0.00001"]),
    "period_s": NUMBERS,
    "horizon_s": NUMBERS,
    "timeout_s": st.just(0.0) | st.integers(max_value=0),
    "job_id": NUMBERS,
    "uid": NUMBERS | st.none(),
}
BODIES = st.binary(max_size=60) | st.fixed_dictionaries({}, optional=FIELDS).map(
    lambda value: json.dumps(value).encode("utf-8", "surrogatepass")
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(PATHS)), BODIES)
def test_whatever_is_sent_is_answered_or_is_the_callers_error(node: Node, path, body) -> None:
    try:
        answer = node.ask(PATHS[path], path, body)
    except ScratchError as exc:
        answer = ErrorAnswer(type(exc).__name__, exc.message, exc.hint)
    msgspec.json.encode(answer)


def test_only_the_paths_that_there_are_with_their_methods(node: Node) -> None:
    for method, path, status in (("GET", "/", 404), ("POST", "/v1/status", 405), ("GET", "/v1/wait", 405)):
        with pytest.raises(RefusedError) as caught:
            node.ask(method, path, b"")
        assert caught.value.status == status


@pytest.mark.parametrize("body", [b'{"dataset":"a"}', b"\xff"])
def test_a_stranger_evicts_nothing(node: Node, body: bytes) -> None:
    with pytest.raises(ScratchError, match="only root may"):
        node.ask("POST", "/v1/evict", body, STRANGER)


def test_strangers_do_not_make_the_daemon_run_rounds(node: Node) -> None:
    async def ask_for_ever() -> None:
        while True:
            await node.interface._route(Request("POST", "/v1/wait", b'{"datasets":[]}'), STRANGER)

    async def watch() -> tuple[int, float]:
        rounds = node.interface._rounds
        before, began = rounds._begun, time.monotonic()
        tasks = [asyncio.create_task(ask_for_ever()) for _ in range(20)]
        await asyncio.sleep(1.5)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return rounds._begun - before, time.monotonic() - began

    begun, seconds = node.runner.run(watch())
    assert begun <= seconds + 2
