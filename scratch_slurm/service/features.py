"""Keep Slurm's features of this node in step with the cache. Beside the rounds: never holds a round up."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

from scratch_slurm.domain import backoff
from scratch_slurm.domain.access import is_public
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.dataset import Card
from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.features import feature_name, is_extra_ours, plan_features
from scratch_slurm.domain.model import Backing
from scratch_slurm.service.nodename import NodeName
from scratch_slurm.service.rounds import Rounds
from scratch_slurm.service.slurm_calls import SlurmCalls

log = logging.getLogger(__name__)

GATHER_S = 2.0
"""What changes within so long is told together."""
SPACING_S = 5.0
"""The least time between two tellings of a cache that goes on changing."""

_FIRST_RETRY_S = 5.0
_LAST_RETRY_S = 300.0


class FeatureTeller:
    """Tells Slurm what is cached: when that changes, and when Slurm may have forgotten it.

    Slurm forgets features at `scontrol reconfigure` and at a restart of its controller, and tells nobody. So they are
    read again once a `reconcile_interval`, sooner when a job comes with datasets (its node is being scheduled), and
    as soon as a controller that was silent answers. A node that Slurm does not know yet, as a dynamic one is before
    its slurmd has registered, is asked about again within seconds, ever more seldom, and when a job comes.

    Args:
        retry_s: the pause after a first question that was in vain; it doubles with each.
    """

    def __init__(
        self, config: Config, calls: SlurmCalls, rounds: Rounds, name: NodeName, *, retry_s: float = _FIRST_RETRY_S
    ) -> None:
        self._config = config
        self._name = name
        self._calls = calls
        self._rounds = rounds
        self._retry_s = retry_s
        self._gather_s = min(GATHER_S, config.reconcile_interval_s)
        self._spacing_s = min(SPACING_S, config.reconcile_interval_s)
        self._told: frozenset[str] | None = None
        self._changed_at: float | None = None
        self._check_at = 0.0
        self._read_at = 0.0
        self._written_at = 0.0
        self._attempts = 0
        self._is_quiet = False
        """Slurm is silent or does not know this node: a change of the cache waits until the next check."""
        self._is_stranger = False
        self._jobs: frozenset[str] = frozenset()
        self._said: set[str] = set()

    async def run(self) -> None:
        """Tell for ever; ends only when cancelled."""
        while True:
            await self._until_due()
            await self._tell()

    async def _until_due(self) -> None:
        while (pause_s := self._due_at() - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._rounds.wait_for_change(), pause_s)

    def _due_at(self) -> float:
        """When to ask Slurm next, by what the latest round saw; monotonic seconds."""
        now = time.monotonic()
        if self._rounds.snapshot is None:
            return now + self._config.interval_s
        due_at = self._check_at
        if self._is_quiet:
            # Slurm knows a node on which it starts a job.
            is_known_now = self._is_stranger and self._job_pins() - self._jobs
            return min(due_at, self._read_at + self._gather_s) if is_known_now else due_at
        if self._to_tell(lambda name: name in (self._told or ())) == self._told:
            self._changed_at = None
        elif self._told is not None:
            self._changed_at = self._changed_at or now
            due_at = min(due_at, max(self._changed_at + self._gather_s, self._written_at + self._spacing_s))
        if self._job_pins() - self._jobs:
            due_at = min(due_at, self._read_at + self._config.reconcile_interval_s / 5)
        return due_at

    def _to_tell(self, is_told: Callable[[str], bool]) -> frozenset[str]:
        """What is served from the cache, is to stay there, and may be told: everybody on the cluster reads it.

        Args:
            is_told: whether a dataset is told already: it stays so until it is known who may read it.
        """
        served = [card for card in self._rounds.cards.values() if _is_served(card) and not card.is_leaving]
        if self._config.private_features:
            return frozenset(card.name for card in served)
        return frozenset(
            card.name for card in served if (is_public(card.permissions) if card.permissions else is_told(card.name))
        )

    def _job_pins(self) -> frozenset[str]:
        """The jobs whose claims count."""
        claims = (claim for card in self._rounds.cards.values() for claim in card.claims)
        return frozenset(str(claim.holder) for claim in claims if claim.is_job and claim.counts)

    async def _tell(self) -> None:
        prefix = self._config.feature_prefix
        self._jobs = self._job_pins()
        try:
            node = self._name.given or next(iter(await self._calls.confirm(self._name)), None)
            now = await self._calls.read_features(node) if node else None
            if node is None or now is None:
                self._name.doubt()
                self._say_once("no-features node=%s reason=%r", self._name.name, "Slurm does not know this node")
                self._read_at = time.monotonic()
                self._try_later(is_stranger=True)
                return
            if not is_extra_ours(now.extra or ""):
                self._say_once("extra-left-alone node=%s reason=%r", node, "it holds something of the administrator's")
            has = frozenset(now.available)
            cached = self._to_tell(lambda name: feature_name(name, prefix) in has)
            planned = plan_features(now, cached, prefix=prefix)
            if planned is not None:
                await self._calls.write_features(node, planned)
                self._written_at = time.monotonic()
                reason = "Slurm had other ones" if cached == self._told else "the cache changed"
                log.info("features node=%s datasets=%s reason=%r", node, ",".join(sorted(cached)), reason)
        except SlurmError:
            self._try_later(is_stranger=False)
            return
        self._settle(cached, self._config.reconcile_interval_s)

    def _try_later(self, *, is_stranger: bool) -> None:
        self._is_quiet, self._is_stranger = True, is_stranger
        self._attempts += 1
        pause_s = backoff.pause_s(self._attempts, self._retry_s, max(_LAST_RETRY_S, self._retry_s))
        self._check_at = time.monotonic() + min(pause_s, self._config.reconcile_interval_s) * _jitter()

    def _settle(self, told: frozenset[str], pause_s: float) -> None:
        self._told, self._changed_at, self._attempts, self._is_quiet = told, None, 0, False
        self._read_at = time.monotonic()
        self._check_at = self._read_at + pause_s * _jitter()

    def _say_once(self, message: str, *values: object) -> None:
        if message not in self._said:
            self._said.add(message)
            log.info(message, *values)


def _is_served(card: Card) -> bool:
    """Whether a dataset is served from the cache."""
    return card.mounted is not None and card.mounted.backing is Backing.CACHE


def _jitter() -> float:
    """Thousands of nodes share the controller, and were perhaps started together."""
    return random.uniform(0.9, 1.1)  # noqa: S311 # not a secret
