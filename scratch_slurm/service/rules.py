"""Keep Slurm's rules for prologs where the hooks find them. Beside the rounds: never holds a round up."""

import asyncio
import logging
import random
from pathlib import Path

from scratch_slurm.domain import backoff
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.prolog import PrologRules
from scratch_slurm.node.hookconfig import save_prolog_rules
from scratch_slurm.service.slurm_calls import SlurmCalls

log = logging.getLogger(__name__)

# One question is under way at a time: those about jobs and features have their turn between two of these.
_FIRST_RETRY_S = 30.0
_LAST_RETRY_S = 600.0


class RulesReader:
    """Reads them at the start, once a `reconcile_interval`, and, with back-off, while Slurm is silent.

    Args:
        retry_s: the pause after a first question that was in vain; it doubles with each.
    """

    def __init__(self, config: Config, calls: SlurmCalls, *, retry_s: float = _FIRST_RETRY_S) -> None:
        self._config = config
        self._calls = calls
        self._retry_s = retry_s
        self._attempts = 0
        self._told: PrologRules | None = None

    async def run(self) -> None:
        """Read for ever; ends only when cancelled."""
        while True:
            pause_s = self._config.reconcile_interval_s
            try:
                self._tell(await self._calls.read_prolog_rules())
                self._attempts = 0
            except SlurmError:
                self._attempts += 1
                pause_s = backoff.pause_s(self._attempts, self._retry_s, _LAST_RETRY_S)
            # Jitter: thousands of nodes share the controller.
            await asyncio.sleep(pause_s * random.uniform(0.9, 1.1))  # noqa: S311 # not a secret

    def _tell(self, rules: PrologRules) -> None:
        """Write them each time: /run may have been emptied."""
        try:
            save_prolog_rules(Path(self._config.run_dir), rules.timeout_s, rules.timeout_key, serial=rules.serial)
        except OSError as exc:
            log.warning("hooks do not learn Slurm's settings problem=%r", str(exc))
            return
        if rules != self._told:
            self._told = rules
            log.info("prolog-rules timeout_s=%s key=%s serial=%s", rules.timeout_s, rules.timeout_key, rules.serial)
