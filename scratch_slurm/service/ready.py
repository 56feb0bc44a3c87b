"""When the daemon is ready: what can be mounted is, so that the jobs that start from now on find their datasets."""

import asyncio
import logging
import time

from scratch_slurm.service.rounds import Rounds
from scratch_slurm.service.source import Source

log = logging.getLogger(__name__)

LONGEST_S = 120.0
"""The service manager starts slurmd after us, and gives us a little more (TimeoutStartSec in the unit)."""


async def until_ready(rounds: Rounds, source: Source, *, limit_s: float = LONGEST_S) -> None:
    """Return when the source has told what it holds, or that it cannot, and each of its images was tried once.

    What hangs or fails holds nobody up longer than its own time limit, and all of it no longer than `limit_s` seconds.
    """
    began = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            await source.has_told.wait()
            await rounds.after_next_round()
            while not rounds.has_mounted_all():
                await rounds.wait_for_change()
    except TimeoutError:
        log.warning("ready although not all is mounted reason=%r", f"jobs cannot wait longer than {limit_s:.0f} s")
    mounted = sum(card.mounted is not None for card in rounds.cards.values())
    log.info("ready mounted=%d seconds=%.1f", mounted, time.monotonic() - began)
