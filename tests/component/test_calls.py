"""A thread of its own for what may hang: nobody waits for it without a limit, and nothing else does."""

import asyncio
import functools
import threading

import pytest

from scratch_slurm.domain.errors import LedgerError
from scratch_slurm.service.calls import Calls, start_executor

SOON_S = 0.2


def make(patience_s=SOON_S):
    return Calls("/ssd/cache", error=LedgerError, patience_s=patience_s)


def test_calls_are_answered_in_order_and_their_errors_are_the_callers() -> None:
    async def scenario():
        calls = make(20)
        seen: list[int] = []

        def see(number: int) -> int:
            seen.append(number)
            return number

        results = await asyncio.gather(*(calls.run(functools.partial(see, n)) for n in range(50)))
        assert results == seen == list(range(50))
        with pytest.raises(ZeroDivisionError):
            await calls.run(lambda: 1 // 0)
        with pytest.raises(TimeoutError, match="its own"):
            await calls.run(lambda: (_ for _ in ()).throw(TimeoutError("its own")))
        assert await calls.run(lambda: "well") == "well"

    asyncio.run(scenario())


def test_what_hangs_is_given_up_on_and_what_comes_behind_it_is_refused_and_never_done() -> None:
    go_on, late = threading.Event(), []

    async def scenario():
        calls = make()
        with pytest.raises(LedgerError, match=r"/ssd/cache: gives no answer since [0-9:]{8}"):
            await calls.run(go_on.wait)
        with pytest.raises(LedgerError, match="gives no answer since"):
            await calls.run(lambda: late.append("behind"))
        go_on.set()
        answered = False
        while not answered:
            try:
                answered = await calls.run(lambda: True)
            except LedgerError:
                await asyncio.sleep(0.01)
        assert late == []

    asyncio.run(scenario())


def test_one_that_waits_behind_another_is_withdrawn_when_its_time_is_over() -> None:
    go_on, begun, late = threading.Event(), threading.Event(), []

    async def scenario():
        calls = make()

        def hang():
            begun.set()
            go_on.wait()

        first = asyncio.create_task(calls.run(hang))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        with pytest.raises(LedgerError):
            await calls.run(lambda: late.append("withdrawn"))
        go_on.set()
        with pytest.raises(LedgerError):
            await first
        patient = Calls("x", error=LedgerError, patience_s=20)
        assert await patient.run(lambda: 1) == 1
        assert late == []

    asyncio.run(scenario())


def test_a_process_ends_although_a_call_hangs() -> None:
    import subprocess
    import sys

    code = """
import asyncio, threading
from scratch_slurm.domain.errors import LedgerError
from scratch_slurm.service.calls import Calls
async def main():
    try:
        await Calls("x", error=LedgerError, patience_s=0.1).run(threading.Event().wait)
    except LedgerError:
        print("given up")
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "given up\n"


def test_an_executor_starts_no_thread_later() -> None:
    executor = start_executor(3)
    before = set(threading.enumerate())
    together = threading.Barrier(3)
    for future in [executor.submit(together.wait) for _ in range(3)]:
        future.result(timeout=20)
    assert set(threading.enumerate()) == before
    executor.shutdown()
