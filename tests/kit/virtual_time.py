"""An event loop whose time passes at once: it jumps to the next thing that is due. Hours take milliseconds."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_REAL_S = 20.0
"""Where nothing is due, a thread may still answer; after so long nobody does."""


class _Selector(selectors.DefaultSelector):
    """Waits for no time: it moves the loop's clock instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            found = super().select(_REAL_S)
            assert found, "all wait, and nothing is due: for ever"
            return found
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module. `time()` begins at 1000, as a node that booted a while ago has it."""

    def __init__(self) -> None:
        self._clock = _Selector()
        self._clock.now = 1000.0
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in such a loop."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def now() -> float:
    """The running loop's time, seconds: what `monotonic` is for what runs in it."""
    return asyncio.get_running_loop().time()
