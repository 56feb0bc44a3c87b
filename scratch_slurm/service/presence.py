"""Release the pins of jobs that are certainly gone: a lost epilog, a purged job, a daemon that was down for a day."""

import asyncio
import logging
import random
import time
from collections.abc import Callable

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import LedgerError, SlurmError
from scratch_slurm.domain.jobs import Presence
from scratch_slurm.domain.model import Pin, job_holder
from scratch_slurm.node.ledger.ledger import Ledger
from scratch_slurm.service.nodename import NodeName
from scratch_slurm.service.rounds import Rounds
from scratch_slurm.service.slurm_calls import SlurmCalls

log = logging.getLogger(__name__)

GRACE_S = 120.0
"""A job whose pin is younger is not judged: its prolog may be ahead of what the controller tells."""
JOBS_AT_ONCE = 8
"""Jobs asked about at one time, whoever has waited longest first: the bound on what a node asks of the controller."""


class PinJudge:
    """Asks Slurm about the jobs that pin something here, at the start and once a `reconcile_interval`."""

    def __init__(
        self,
        config: Config,
        calls: SlurmCalls,
        rounds: Rounds,
        ledger: Ledger,
        name: NodeName,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._name = name
        self._monotonic = monotonic
        self._calls = calls
        self._rounds = rounds
        self._ledger = ledger
        self._asked_at: dict[int, float] = {}
        """Job id -> when it was asked about last; monotonic seconds."""

    async def run(self) -> None:
        """Judge for ever; ends only when cancelled. Asks nobody while no job pins anything."""
        while True:
            await self._judge()
            # Jitter: thousands of nodes share the controller.
            await asyncio.sleep(self._config.reconcile_interval_s * random.uniform(0.9, 1.1))  # noqa: S311 # not a secret

    async def _judge(self) -> None:
        try:
            jobs = self._choose(await asyncio.to_thread(self._ledger.pins))
            if not jobs:
                return
            presence = await self._calls.job_presence(jobs, await self._names())
            for job_id in jobs:
                self._asked_at[job_id] = self._monotonic()
                if presence[job_id] is Presence.GONE:
                    await asyncio.to_thread(self._release, job_id)
        except LedgerError as exc:
            log.warning("cannot judge pins problem=%r", exc.message)

    async def _names(self) -> tuple[str, ...]:
        """Which names a job's nodes are compared with; with none nobody is judged by them."""
        try:
            return await self._calls.confirm(self._name)
        except SlurmError:
            return ()

    def _choose(self, pins: list[Pin]) -> list[int]:
        """Choose the jobs to ask about: none with a young pin, those first that were not asked about for longest."""
        # They come in the order of asking: of a job's pins the newest counts.
        newest = {pin.job_id: pin.asked_monotonic_s for pin in pins if pin.job_id is not None}
        self._asked_at = {job_id: at for job_id, at in self._asked_at.items() if job_id in newest}
        old = [job_id for job_id, asked_s in newest.items() if self._monotonic() - asked_s >= GRACE_S]
        return sorted(old, key=lambda job_id: (self._asked_at.get(job_id, 0.0), job_id))[:JOBS_AT_ONCE]

    def _release(self, job_id: int) -> None:
        holder = job_holder(job_id)
        for dataset in self._ledger.release(holder):
            self._ledger.record("released-gone", dataset=dataset, holder=holder, detail="Slurm: the job is gone")
            log.info("released-gone dataset=%s job=%d reason=%r", dataset, job_id, "Slurm: the job is gone")
        self._rounds.nudge()
