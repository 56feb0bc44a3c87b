"""Do something for many, but not too often: callers that come before it begins share it."""

import asyncio
import time
from collections.abc import Awaitable, Callable


class Paced:
    """Something that anybody may ask for.

    Args:
        do: what is done.
        pause_s: the least time between two beginnings.
        monotonic: seconds.
    """

    def __init__(
        self, do: Callable[[], Awaitable[None]], pause_s: float, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._do = do
        self._pause_s = pause_s
        self._monotonic = monotonic
        self._coming: asyncio.Task[None] | None = None
        self._not_before = 0.0

    def ask(self) -> "asyncio.Task[None]":
        """Have it done once more, begun after this call."""
        if self._coming is None:
            self._coming = asyncio.create_task(self._run())
        return self._coming

    async def done(self) -> None:
        """Return when it was done once, begun after this call."""
        await asyncio.shield(self.ask())

    async def _run(self) -> None:
        await asyncio.sleep(max(0.0, self._not_before - self._monotonic()))
        self._coming = None
        self._not_before = self._monotonic() + self._pause_s
        await self._do()
