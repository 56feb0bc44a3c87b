"""What must run for ever is begun anew after whatever ends it, and is missed meanwhile."""

import asyncio

import pytest

from scratch_slurm.service.supervise import Supervisor


class Clock:
    """Seconds that pass when somebody sleeps, and when somebody says so."""

    def __init__(self):
        self.at = 1000.0
        self.pauses = []

    async def sleep(self, seconds):
        self.pauses.append(seconds)
        self.at += seconds
        await asyncio.sleep(0)


def keep(run, clock, *, until):
    """Keep a task running until the condition holds; returns the supervisor."""
    supervisor = Supervisor(sleep=clock.sleep, monotonic=lambda: clock.at)

    async def scenario():
        task = asyncio.create_task(supervisor.keep("the work", run))
        while not until(supervisor):
            assert not task.done()
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    return supervisor


ENDS = [
    pytest.param(RuntimeError("can't start new thread"), "RuntimeError: can't start new thread", id="no-thread"),
    pytest.param(MemoryError(), "MemoryError", id="no-memory"),
    pytest.param(BlockingIOError(11, "no process"), "BlockingIOError: [Errno 11] no process", id="no-process"),
    pytest.param(asyncio.CancelledError(), "was given up by what it waited for", id="what-it-waited-for-was-cancelled"),
    pytest.param(None, "ended by itself", id="it-returns"),
]


@pytest.mark.parametrize(("error", "words"), ENDS)
def test_whatever_ends_a_task_it_is_begun_anew_and_told(error, words) -> None:
    clock, told = Clock(), list[str]()
    runs: list[float] = []

    async def run():
        told.append(supervised[0].problem if supervised else "")
        runs.append(clock.at)
        if len(runs) < 4:
            if error is not None:
                raise error
            return
        clock.at += 11
        await asyncio.Event().wait()

    supervised: list[Supervisor] = []

    def until(supervisor):
        supervised[:] = [supervisor]
        return len(runs) == 4

    supervisor = keep(run, clock, until=until)
    assert told[1:] == [f"the work: {words}"] * 3
    assert supervisor.problem == "", "it has been running for a while"


def test_pauses_grow_to_a_minute_and_begin_anew_after_a_good_while() -> None:
    clock, runs = Clock(), []

    async def run():
        runs.append(clock.at)
        if len(runs) == 9:
            clock.at += 3600
        raise ValueError("again")

    keep(run, clock, until=lambda _: len(runs) == 11)
    assert clock.pauses[:10] == [1, 2, 4, 8, 16, 32, 60, 60, 1, 2]


def test_one_that_is_told_to_end_ends() -> None:
    clock, ended = Clock(), []

    async def run():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    supervisor = keep(run, clock, until=lambda _: True)
    assert supervisor.problem == ""
