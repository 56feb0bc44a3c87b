"""Worker processes: real ones that hang, die, talk nonsense, or outlive their daemon."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.domain.backing import FromCopy
from scratch_slurm.domain.errors import ScratchError, SourceError
from scratch_slurm.domain.model import CachedImage, Location, SourceImage
from scratch_slurm.service import operations as op
from scratch_slurm.service import workers as workers_module
from scratch_slurm.service.operations import Scan, SwitchBacking
from scratch_slurm.service.workers import Workers
from tests.kit.generations import generation_of
from tests.kit.images import wait_until
from tests.kit.processes import children, is_killed, is_running, state
from tests.kit.sources import SlowSource

LONG_S = 60.0


@pytest.fixture
def source_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "coco.squashfs").write_text("not an image")
    return folder


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Whatever a test does, its workers are gone when the pool is closed, and none is a zombie."""
    before = children()
    yield
    wait_until(lambda: children() <= before)


@pytest.fixture
def endless(tmp_path: Path) -> SwitchBacking:
    """A request that a worker never answers: it opens a FIFO that nobody writes."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    return op.SwitchBacking("loop-none", FromCopy(CachedImage("coco", "", str(fifo), 0)))


def scan_of(folder: Path, names=None) -> Scan:
    return op.Scan(str(folder), names, (), {})


@contextlib.asynccontextmanager
async def pool(**options):
    workers = Workers(**options)
    try:
        yield workers
    finally:
        await workers.close(patience_s=10)


async def until(condition: Callable[..., Any]) -> None:
    """Wait for what no event tells: the state of another process."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def speak(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a script stand for the worker: it may say anything."""
    monkeypatch.setattr(workers_module, "_COMMAND", (sys.executable, "-I", "-S", "-c", script))


# Answers.


def test_lines_come_one_by_one_and_done_ends_them(source_dir: Path) -> None:
    async def story():
        lines: list[op.Line] = []
        async with pool() as workers:
            await workers.run(scan_of(source_dir), silence_s=LONG_S, on_line=lines.append)
        return lines

    reached, listed, scanned = asyncio.run(story())
    assert reached == op.Reached()
    assert listed == op.Listed(("coco.squashfs",))
    assert scanned.file_name == "coco.squashfs" and "no magic number" in scanned.skipped.reason


def test_a_worker_s_error_comes_back_as_its_class(source_dir: Path) -> None:
    async def story():
        async with pool() as workers:
            for _ in range(2):
                with pytest.raises(SourceError, match="cannot list the source"):
                    await workers.run(scan_of(source_dir / "missing"), silence_s=LONG_S)
            return children()

    before = children()
    asyncio.run(story())
    assert children() <= before


def test_one_process_serves_one_request_after_the_other(source_dir: Path) -> None:
    async def story():
        before = children()
        async with pool() as workers:
            seen = set()
            for folder in (source_dir, source_dir / "missing", source_dir):
                with contextlib.suppress(SourceError):
                    await workers.run(scan_of(folder), silence_s=LONG_S)
                seen |= children() - before
            return seen

    assert len(asyncio.run(story())) == 1


def test_no_more_idle_processes_are_kept_than_asked_for(source_dir: Path) -> None:
    async def story() -> None:
        before = children()
        async with pool(max_idle=1) as workers:
            await asyncio.gather(*(workers.run(scan_of(source_dir), silence_s=LONG_S) for _ in range(3)))
            await until(lambda: len(children() - before) == 1)

    asyncio.run(story())


def test_an_idle_process_ends_after_a_while(source_dir: Path) -> None:
    async def story() -> None:
        before = children()
        async with pool(idle_s=0) as workers:
            await workers.run(scan_of(source_dir), silence_s=LONG_S)
            await until(lambda: children() <= before)
            await workers.run(scan_of(source_dir), silence_s=LONG_S)

    asyncio.run(story())


def test_an_idle_process_that_was_killed_is_not_used_again(source_dir: Path) -> None:
    async def story() -> None:
        before = children()
        async with pool() as workers:
            await workers.run(scan_of(source_dir), silence_s=LONG_S)
            (pid,) = children() - before
            os.kill(pid, signal.SIGKILL)
            # The event loop learns of it a moment after the process table.
            await until(lambda: workers._idle[0][0].returncode is not None)
            await workers.run(scan_of(source_dir), silence_s=LONG_S)

    asyncio.run(story())


# What goes wrong.


def test_a_worker_that_is_killed_is_an_error_and_the_next_request_goes_well(
    source_dir: Path, endless: SwitchBacking
) -> None:
    async def story() -> None:
        before = children()
        async with pool() as workers:
            task = asyncio.create_task(workers.run(endless, silence_s=LONG_S))
            await until(lambda: children() - before)
            (pid,) = children() - before
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(SourceError, match="ended with -9 in switching loop-none"):
                await task
            assert children() <= before
            await workers.run(scan_of(source_dir), silence_s=LONG_S)

    asyncio.run(story())


def test_a_silent_worker_is_killed(source_dir: Path, endless: SwitchBacking) -> None:
    async def story() -> None:
        before, hangs = children(), []
        async with pool() as workers:
            with pytest.raises(SourceError, match="no sign of life for 0 s in switching loop-none"):
                await workers.run(endless, silence_s=0.2, on_hang=lambda: hangs.append("hung"))
            assert hangs == ["hung"]
            assert children() <= before
            await workers.run(scan_of(source_dir), silence_s=LONG_S)

    asyncio.run(story())


TALK_THEN_DIE = """
import sys
sys.stdin.readline()
for number in range(40):
    print('{"type":"Copied","bytes_done":%d,"phase":"copying"}' % number, flush=True)
    sys.stdin.read(0)
print('{"type":"Failed","error":"NoSpaceError","message":"full","hint":"make room"}', flush=True)
sys.stdin.readline()
"""


def test_a_worker_s_hint_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, TALK_THEN_DIE)

    async def story():
        lines: list[op.Line] = []
        async with pool() as workers:
            with pytest.raises(ScratchError, match="full") as caught:
                await workers.run(op.ReadTag("loop0"), silence_s=LONG_S, on_line=lines.append)
        return lines, caught.value

    lines, error = asyncio.run(story())
    assert [line.bytes_done for line in lines] == list(range(40))
    assert (type(error).__name__, error.hint) == ("NoSpaceError", "make room")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("input(); print('Traceback'); input()", id="no-json"),
        pytest.param('input(); print(\'{"type":"Unheard"}\'); input()', id="no-such-line"),
        pytest.param("input(); print('[]'); input()", id="no-object"),
        pytest.param("input(); print('x' * 40_000_000); input()", id="endless-line"),
    ],
)
def test_nonsense_is_an_error_and_ends_the_process(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    speak(monkeypatch, script)

    async def story() -> None:
        before = children()
        async with pool() as workers:
            with pytest.raises(SourceError, match="answered nonsense in reading the tag of loop0"):
                await workers.run(op.ReadTag("loop0"), silence_s=LONG_S)
            assert children() <= before

    asyncio.run(story())


def test_what_a_library_prints_is_no_answer(monkeypatch: pytest.MonkeyPatch, source_dir: Path) -> None:
    """In the worker, standard output is not where the answers go."""
    speak(
        monkeypatch,
        f"import os, sys; sys.path[:0] = {sys.path!r}\n"
        "from scratch_slurm.service import worker\n"
        "serve = worker._serve\n"
        "def chatty(request, say): print('hello', flush=True); os.write(1, b'there'); serve(request, say)\n"
        "worker._serve = chatty\n"
        "worker.main()",
    )

    async def story():
        lines: list[op.Line] = []
        async with pool() as workers:
            await workers.run(scan_of(source_dir), silence_s=LONG_S, on_line=lines.append)
        return lines

    assert [type(line) for line in asyncio.run(story())] == [op.Reached, op.Listed, op.Scanned]


def test_a_worker_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_COMMAND", ("/nowhere/python",))

    async def story() -> None:
        async with pool() as workers:
            with pytest.raises(ScratchError, match="cannot start a worker process: No such file"):
                await workers.run(op.ReadTag("loop0"), silence_s=LONG_S)

    asyncio.run(story())


def test_an_error_in_the_listener_ends_the_process(source_dir: Path) -> None:
    """Else it would be neither idle nor known to be running."""

    async def story() -> None:
        before = children()

        def refuse(line) -> None:
            raise LookupError("bug")

        async with pool() as workers:
            with pytest.raises(LookupError):
                await workers.run(scan_of(source_dir), silence_s=LONG_S, on_line=refuse)
            assert children() <= before

    asyncio.run(story())


# Stopping.


def test_cancelling_kills_the_process(endless: SwitchBacking) -> None:
    async def story() -> None:
        before = children()
        async with pool() as workers:
            task = asyncio.create_task(workers.run(endless, silence_s=LONG_S))
            await until(lambda: children() - before)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert children() <= before

    asyncio.run(story())


def test_cancelling_before_the_process_is_there_leaves_none(endless: SwitchBacking) -> None:
    async def story() -> None:
        before = children()
        async with pool() as workers:
            for rounds in range(6):
                task = asyncio.create_task(workers.run(endless, silence_s=LONG_S))
                for _ in range(rounds):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until(lambda: children() <= before)

    asyncio.run(story())


BEGIN_AND_HANG = """
print('{"type":"Copied","bytes_done":1,"phase":"copying"}', flush=True)
while True:
    input()
"""


def test_close_ends_idle_and_working_processes(monkeypatch: pytest.MonkeyPatch, source_dir: Path) -> None:
    speak(monkeypatch, BEGIN_AND_HANG)

    async def story() -> None:
        before, workers = children(), Workers()
        begun: asyncio.Queue[op.Line] = asyncio.Queue()
        tasks = [
            asyncio.create_task(workers.run(op.ReadTag("loop0"), silence_s=LONG_S, on_line=begun.put_nowait))
            for _ in range(2)
        ]
        for _ in tasks:
            await begun.get()
        monkeypatch.undo()
        await workers.run(scan_of(source_dir), silence_s=LONG_S)
        assert len(children() - before) == 3
        await workers.close(patience_s=10)
        assert children() <= before
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [SourceError, SourceError]

    asyncio.run(story())


def test_slots_bound_the_number_of_processes(endless: SwitchBacking) -> None:
    async def story() -> None:
        before = children()
        async with pool(slots=2) as workers:
            tasks = [asyncio.create_task(workers.run(endless, silence_s=LONG_S)) for _ in range(5)]
            beside = asyncio.create_task(workers.run(endless, silence_s=LONG_S, takes_slot=False))
            await until(lambda: len(children() - before) == 3)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(children() - before) == 3
            for task in (*tasks, beside):
                task.cancel()
            await asyncio.gather(*tasks, beside, return_exceptions=True)

    asyncio.run(story())


def test_a_worker_whose_daemon_is_gone_already_does_nothing() -> None:
    """Between fork and prctl(2) the daemon may have died: then nobody would end the worker."""
    done = subprocess.run(
        [sys.executable, "-I", "-m", "scratch_slurm.service.worker", str(os.getpid() + 1)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the daemon is gone" in done.stderr


# The kernel holds a worker.


@pytest.fixture
def slow(source_dir: Path, tmp_path: Path) -> Iterator[SlowSource]:
    pytest.importorskip("mfusepy", reason="mfusepy is not installed")
    with SlowSource(source_dir, tmp_path / "slow") as source:
        yield source


@pytest.mark.root
def test_a_worker_that_the_kernel_holds_is_waited_for_without_its_slot(source_dir: Path, slow: SlowSource) -> None:
    async def story() -> None:
        before = children()
        hung = asyncio.Event()
        async with pool(slots=1) as workers:
            await workers.run(scan_of(source_dir), silence_s=LONG_S)
            slow.set(hang_all=True)
            task = asyncio.create_task(workers.run(scan_of(slow.path), silence_s=1.0, on_hang=hung.set))
            await hung.wait()
            (pid,) = children() - before
            assert is_running(pid), "killed, but still held"
            await workers.run(scan_of(source_dir), silence_s=LONG_S)
            assert not task.done(), "nothing else may be tried on the same object meanwhile"
            await asyncio.to_thread(slow.set, hang_all=False)
            with pytest.raises(SourceError, match="no sign of life"):
                await task
            assert state(pid) == ""

    asyncio.run(story())


@pytest.mark.root
def test_a_copy_from_a_slow_source_is_not_silent_until_the_source_hangs(
    source_dir: Path, tmp_path: Path, slow: SlowSource
) -> None:
    """The one range of this image takes longer than a worker may be silent."""
    (source_dir / "coco.squashfs").write_bytes(os.urandom(1_000_000))
    image = slow.path / "coco.squashfs"
    generation = generation_of(image)
    request = op.CopyImage(
        SourceImage("coco", Location(str(slow.path), image.name), generation, "squashfs"),
        str(tmp_path / "coco.part"),
        16,
        None,
    )

    async def story() -> None:
        async with pool() as workers:
            slow.set(bytes_per_s=200_000.0)
            await workers.run(request, silence_s=3.0)
            assert (tmp_path / "coco.part").read_bytes() == (source_dir / "coco.squashfs").read_bytes()
            (tmp_path / "coco.part").unlink()
            begun = asyncio.Event()
            task = asyncio.create_task(workers.run(request, silence_s=3.0, on_line=lambda line: begun.set()))
            await begun.wait()
            slow.set(hang=True)
            with pytest.raises(SourceError, match="no sign of life for 3 s in copying"):
                await task
            slow.set(hang=False)

    asyncio.run(story())


@pytest.mark.root
def test_close_does_not_wait_for_what_the_kernel_holds(slow: SlowSource) -> None:
    async def story() -> None:
        before = children()
        workers = Workers()
        slow.set(hang_all=True)
        task = asyncio.create_task(workers.run(scan_of(slow.path), silence_s=LONG_S))
        await until(lambda: slow.blocked() > 0)
        await workers.close(patience_s=0.1)
        (pid,) = children() - before
        assert is_running(pid)
        await asyncio.to_thread(slow.set, hang_all=False)
        with pytest.raises(SourceError, match="ended with -9"):
            await task

    asyncio.run(story())


DAEMON = """
import asyncio, sys
from pathlib import Path
from scratch_slurm.service import operations as op
from scratch_slurm.service.workers import Workers

def children():
    return [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]

async def main(*folders):
    workers, begun = Workers(), asyncio.Queue()
    scans = [op.Scan(folder, None, (), {}) for folder in folders]
    tasks = [asyncio.create_task(workers.run(scan, silence_s=600, on_line=begun.put_nowait)) for scan in scans]
    for _ in tasks:
        await begun.get()
    print(*children(), flush=True)
    await asyncio.gather(*tasks)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.root
def test_workers_die_with_the_daemon(tmp_path: Path, slow: SlowSource) -> None:
    """A worker that outlived it could still switch or mount, beside the next daemon's."""
    slow.set(hang=True)
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(slow.path), str(slow.path)], stdout=subprocess.PIPE, text=True
    )
    assert daemon.stdout is not None
    try:
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        wait_until(lambda: slow.blocked() > 0)
        assert len(pids) == 2 and all(is_running(pid) for pid in pids)
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
    wait_until(lambda: all(is_killed(pid) for pid in pids))
