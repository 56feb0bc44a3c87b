"""Threads that may be lost: what may block for ever in this process has one of its own, and is given up on in time."""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from scratch_slurm.domain.errors import ScratchError

T = TypeVar("T")


class Calls:
    """One thread that does calls one after another; nobody waits for one without a limit.

    The thread is there from the beginning and no other one is started: where memory or processes are short, to start
    one fails, or waits for ever. It is daemonic: the process ends without it.

    Args:
        name: of what is called, for the message when it gives no answer.
        error: what is raised then.
        patience_s: the longest wait for an answer.
        monotonic: seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        error: type[ScratchError],
        patience_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._error = error
        self._patience_s = patience_s
        self._monotonic = monotonic
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any], asyncio.AbstractEventLoop]]
        self._queue = queue.SimpleQueue()
        self._began: tuple[float, float] | None = None
        """The call under way: monotonic seconds, and epoch seconds to be shown."""
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    async def run(self, call: Callable[[], T]) -> T:
        """Do a call in the thread.

        Raises: what the call raises, or `error`: it, or the one before it, gives no answer. One that has not begun by
            then is not done at all.
        """
        self._refuse_behind_what_hangs(self._patience_s)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._queue.put((call, answer, loop))
        try:
            return await asyncio.wait_for(answer, self._patience_s)
        except TimeoutError:
            if not answer.cancelled():
                raise  # the call's own
            self._refuse_behind_what_hangs(0.0)
            raise self._error(f"{self._name}: gave no answer for {self._patience_s:g} s") from None

    def _refuse_behind_what_hangs(self, patience_s: float) -> None:
        began = self._began
        if began is not None and self._monotonic() - began[0] >= patience_s:
            clock = time.strftime("%H:%M:%S", time.localtime(began[1]))
            raise self._error(f"{self._name}: gives no answer since {clock}")

    def _serve(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # no memory for a moment; whoever waits gives up
                self._serve_one()

    def _serve_one(self) -> None:
        call, answer, loop = self._queue.get()
        if answer.cancelled():
            return
        self._began = (self._monotonic(), time.time())
        result, error = None, None
        try:
            result = call()
        except Exception as exc:
            error = exc
        finally:
            self._began = None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, answer, result, error)


def _settle(answer: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


def start_executor(threads: int) -> ThreadPoolExecutor:
    """Make an executor for `asyncio.to_thread` all of whose threads run already, for the reason above."""
    executor = ThreadPoolExecutor(threads, thread_name_prefix="call")
    together = threading.Barrier(threads + 1)
    for _ in range(threads):
        executor.submit(together.wait)
    together.wait()
    return executor
