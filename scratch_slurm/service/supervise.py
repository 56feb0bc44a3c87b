"""What must run for ever does: after an error it is begun anew, and is missed meanwhile."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from scratch_slurm.domain import backoff

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LAST_PAUSE_S = 60.0
_WELL_S = 10.0
"""What has run for so long is well again."""


class Supervisor:
    """Runs tasks for ever, even over errors in them, and tells which of them failed.

    Args:
        sleep, monotonic: seconds.
    """

    def __init__(
        self,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep = sleep
        self._monotonic = monotonic
        self._failed: dict[str, tuple[str, float | None]] = {}
        """Task -> what it failed with, and when it was begun anew."""

    @property
    def problem(self) -> str:
        """What does not run, or has failed a moment ago; empty when all is well."""
        now = self._monotonic()
        return "; ".join(
            f"{name}: {what}"
            for name, (what, again_at) in self._failed.items()
            if again_at is None or now - again_at < _WELL_S
        )

    async def keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a task for ever; ends only when cancelled.

        Args:
            name: what it does, for people: "the listing of the source".
        """
        attempts, pause_s = 0, 0.0
        while True:
            began_at = self._monotonic()
            try:
                if pause_s:
                    await self._sleep(pause_s)
                    began_at = self._monotonic()
                    self._failed[name] = (self._failed[name][0], began_at)
                await run()
                what = "ended by itself"
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                what = "was given up by what it waited for"  # nobody ended it: that must not end it unnoticed
            except Exception as exc:
                what = f"{type(exc).__name__}: {exc}".rstrip(": ")
                with contextlib.suppress(Exception):  # a shortage of memory may strike the log as well
                    log.exception("bug task=%r", name)
            if self._monotonic() - began_at >= _WELL_S:
                attempts = 0
            attempts += 1
            pause_s = backoff.pause_s(attempts, _FIRST_PAUSE_S, _LAST_PAUSE_S)
            self._failed[name] = (what, None)
            with contextlib.suppress(Exception):
                log.error("failed task=%r problem=%r again_in_s=%g", name, what, pause_s)
