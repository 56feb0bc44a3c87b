"""Questions to Slurm from the daemon: one at a time, in a thread, and what is known of who answers."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.features import NodeFeatures, plan_features
from scratch_slurm.domain.jobs import Presence
from scratch_slurm.domain.prolog import PrologRules
from scratch_slurm.service.nodename import NodeName
from scratch_slurm.slurm.choose import choose_slurm
from scratch_slurm.slurm.interface import Slurm

log = logging.getLogger(__name__)

# `--unmount` waits for it, and whoever took the daemon down waits for that.
_TAKE_BACK_TIMEOUT_S = 4.0

T = TypeVar("T")


class SlurmCalls:
    """Asks Slurm without blocking the loop, and says in the log when it falls silent and when it is back.

    Args:
        slurm: who is asked.
    """

    def __init__(self, slurm: Slurm) -> None:
        self._slurm = slurm
        self._turn = asyncio.Lock()
        self._silent_since: float | None = None
        """Epoch seconds, to be shown."""
        self._silent_from_s = 0.0
        """The same in monotonic seconds."""
        self._was_heard = False
        self._unclear: frozenset[int] = frozenset()

    def describe(self) -> str:
        """Tell who is asked, and whether it answers."""
        if self._silent_since is None:
            return self._slurm.name
        since = time.strftime("%H:%M:%S", time.localtime(self._silent_since))
        return f"{self._slurm.name}; no answer since {since}"

    async def job_presence(self, job_ids: Collection[int], nodes: Collection[str]) -> dict[int, Presence]:
        found = await self._call(lambda: self._slurm.job_presence(job_ids, nodes))
        unclear = frozenset(job_id for job_id, presence in found.items() if presence is Presence.UNKNOWN)
        if unclear - self._unclear:
            jobs = ",".join(map(str, sorted(unclear)))
            log.info("pins-stay jobs=%s reason=%r", jobs, "Slurm gave no clear answer")
        self._unclear = unclear
        return found

    async def read_features(self, node: str) -> NodeFeatures | None:
        return await self._heard(lambda: self._slurm.read_features(node))

    async def write_features(self, node: str, features: NodeFeatures) -> None:
        await self._heard(lambda: self._slurm.write_features(node, features))

    async def confirm(self, name: NodeName) -> tuple[str, ...]:
        """Find out what this node is called; see `NodeName.confirm`."""
        return await self._heard(lambda: name.confirm(self._slurm))

    async def read_prolog_rules(self) -> PrologRules:
        return await self._heard(self._slurm.read_prolog_rules)

    def close(self) -> None:
        """End the call under way, and let no other begin."""
        self._slurm.close()

    async def _call(self, ask: Callable[[], T]) -> T:
        # One at a time: a controller that hangs must not take the threads that the rounds need.
        async with self._turn:
            return await asyncio.to_thread(ask)

    async def _heard(self, ask: Callable[[], T]) -> T:
        try:
            answer = await self._call(ask)
        except SlurmError as exc:
            if self._silent_since is None:
                self._silent_since, self._silent_from_s = time.time(), time.monotonic()
                # One that never answered may be none: commands that are installed and not configured.
                level = logging.WARNING if self._was_heard else logging.INFO
                log.log(level, "slurm-silent problem=%r", exc.message)
            raise
        if self._silent_since is not None:
            log.info("slurm-answers after_s=%.0f", time.monotonic() - self._silent_from_s)
        self._silent_since, self._was_heard = None, True
        return answer


def take_features_back(config: Config) -> list[str]:
    """Take all features of this node back: the daemon leaves for good, and nothing is mounted any more.

    Returns: a line for people, if there was anything to say.
    """
    slurm = choose_slurm(os.environ, timeout_s=_TAKE_BACK_TIMEOUT_S) if config.features else None
    if slurm is None:
        return []
    try:
        node = next(iter(NodeName(config).confirm(slurm)), None)
        now = slurm.read_features(node) if node else None
        planned = plan_features(now, (), prefix=config.feature_prefix) if now else None
        if node is None or planned is None:
            return []
        slurm.write_features(node, planned)
    except SlurmError as exc:
        log.info("features-stay node=%s problem=%r", config.node_name, exc.message)
        return []
    return [f"features of node {node}: taken back"]
