"""The listing of the source, again and again, beside the rounds; the latest complete one is kept for the next boot."""

import asyncio
import random
import time
from collections.abc import Callable

from scratch_slurm.domain.config import Config
from scratch_slurm.service.recall import Recall
from scratch_slurm.service.source import Source

_LIMIT_S = 60.0
"""No step of a scan takes so long beyond the source's own limit."""


class Scanner:
    """Lists the source once an interval.

    Args:
        on_listed: called after each listing.
    """

    def __init__(self, config: Config, source: Source, *, on_listed: Callable[[], None]) -> None:
        self._config = config
        self._source = source
        self._on_listed = on_listed
        self._recall = Recall(config)
        source.recalled = self._recall.load()
        self._due = time.monotonic() + _LIMIT_S
        """By when it gives the next sign that it goes on, monotonic seconds."""

    async def run(self) -> None:
        """List for ever; ends only when cancelled."""
        while True:
            await self._source.scan()
            self._on_listed()
            images = self._source.remember()
            if images is not None:
                await asyncio.to_thread(self._recall.save, images)
            # Jitter: thousands of nodes share the source.
            pause_s = self._config.interval_s * random.uniform(0.9, 1.1)  # noqa: S311 # not a secret
            self._due = time.monotonic() + pause_s + _LIMIT_S
            await asyncio.sleep(pause_s)

    def stalled(self) -> str:
        """Tell that it does not go on although it should; empty when it does."""
        due = max(self._due, self._source.sign_at + self._config.source_timeout_s + _LIMIT_S)
        return "the listing of the source does not go on" if time.monotonic() > due else ""
