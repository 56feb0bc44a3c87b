"""Whose turn it is to copy: preheats first, and one worker is always left to them."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Turns:
    """A bounded number of copies at once.

    Args:
        limit: copies at once; at most one less of them for throughput, unless there is only one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._limit_throughput = max(1, limit - 1)
        self._running = 0
        self._running_throughput = 0
        self._preheats: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def take(self, *, preheat: bool) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the context lasts."""
        await self._wait(self._preheats if preheat else self._others)
        try:
            yield
        finally:
            self._running -= 1
            self._running_throughput -= not preheat
            self._give()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # given, and not taken any more
                self._running -= 1
                self._running_throughput -= queue is self._others
                self._give()
            else:
                with contextlib.suppress(ValueError):
                    queue.remove(turn)
            raise

    def _give(self) -> None:
        while self._running < self._limit:
            may_others = self._running_throughput < self._limit_throughput
            queue = self._preheats or (self._others if may_others else None)
            if not queue:
                return
            turn = queue.popleft()
            if turn.cancelled():
                continue
            self._running += 1
            self._running_throughput += queue is self._others
            turn.set_result(None)
