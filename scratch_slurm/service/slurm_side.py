"""The daemon's side to Slurm: the tasks beside the rounds, where there is a Slurm."""

import asyncio
import logging
import os

from scratch_slurm.domain.config import Config
from scratch_slurm.node.ledger.ledger import Ledger
from scratch_slurm.service.features import FeatureTeller
from scratch_slurm.service.nodename import NodeName
from scratch_slurm.service.presence import PinJudge
from scratch_slurm.service.rounds import Rounds
from scratch_slurm.service.rules import RulesReader
from scratch_slurm.service.slurm_calls import SlurmCalls
from scratch_slurm.service.supervise import Supervisor
from scratch_slurm.slurm.choose import choose_slurm

log = logging.getLogger(__name__)

_LAST_WORDS_S = 2.0


class SlurmSide:
    """Keeps features and pins true. What fails here never touches the rounds."""

    def __init__(self, config: Config, rounds: Rounds, ledger: Ledger, supervisor: Supervisor) -> None:
        self._config = config
        self._name = NodeName(config)
        self._supervisor = supervisor
        self._rounds = rounds
        self._ledger = ledger
        self._calls: SlurmCalls | None = None
        self._description = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def node(self) -> str:
        """What this node is called, as far as is known."""
        return self._name.name

    def hear(self, node: str) -> None:
        """Take a hook's word on what slurmd calls this node."""
        self._name.hear(node)

    def describe(self) -> str:
        """Tell who is asked about jobs and features; empty while that is being found out."""
        if self._calls is None:
            return self._description
        return "; ".join(text for text in (self._calls.describe(), self._name.problem) if text)

    def start(self) -> None:
        """Find Slurm, and start what keeps in touch with it."""
        self._task = asyncio.create_task(self._supervisor.keep("the side to Slurm", self._run))

    async def stop(self) -> None:
        """End it; features stay as they are, for the next daemon."""
        if self._calls is not None:
            self._calls.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_LAST_WORDS_S)

    async def _run(self) -> None:
        slurm = await asyncio.to_thread(choose_slurm, os.environ)
        if slurm is None:
            self._description = "no Slurm"
            log.info("no-slurm reason=%r", "its commands are not on this daemon's PATH")
            await asyncio.Event().wait()
            return
        calls = self._calls = SlurmCalls(slurm)
        log.info("slurm name=%r node=%s features=%s", calls.describe(), self._name.name, self._config.features)
        async with asyncio.TaskGroup() as group:
            judge = PinJudge(self._config, calls, self._rounds, self._ledger, self._name)
            group.create_task(self._supervisor.keep("the question who is gone", judge.run))
            reader = RulesReader(self._config, calls)
            group.create_task(self._supervisor.keep("the reading of Slurm's settings", reader.run))
            if self._config.features:
                teller = FeatureTeller(self._config, calls, self._rounds, self._name)
                group.create_task(self._supervisor.keep("the telling of features", teller.run))
