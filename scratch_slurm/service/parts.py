"""The parts of a running daemon, and how they are put together. Beside the rounds each runs for itself."""

import asyncio
from dataclasses import dataclass

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.dataset import Card
from scratch_slurm.node.ledger.ledger import Ledger
from scratch_slurm.service.former import Former
from scratch_slurm.service.hangs import SourceAbort
from scratch_slurm.service.ledger_side import LedgerSide
from scratch_slurm.service.reads import Counters, CountersKeeper, load_counters
from scratch_slurm.service.rounds import Rounds
from scratch_slurm.service.scanner import Scanner
from scratch_slurm.service.source import Source
from scratch_slurm.service.supervise import Supervisor
from scratch_slurm.service.worker_hands import WorkerHands
from scratch_slurm.service.workers import Workers

_LAST_WORDS_S = 2.0


@dataclass(frozen=True)
class Parts:
    """See the module."""

    config: Config
    hands: WorkerHands
    ledger: LedgerSide
    source: Source
    rounds: Rounds
    supervisor: Supervisor
    scanner: Scanner
    former: Former
    counters: CountersKeeper

    @property
    def problem(self) -> str:
        """What is wrong with the node as a whole; empty when nothing is."""
        return "; ".join(text for text in (self.rounds.problem, self.source.problem, self.supervisor.problem) if text)

    def stalled(self) -> str:
        """Tell what does not go on although it should; empty when all does."""
        return self.rounds.stalled() or self.scanner.stalled()

    async def run(self) -> None:
        """Serve for ever; ends only when cancelled, and then leaves all mounts serving."""
        keep, rounds = self.supervisor.keep, self.rounds
        running = [
            asyncio.create_task(keep("the listing of the source", self.scanner.run)),
            asyncio.create_task(keep("leaving former directories", lambda: self.former.run(self.ledger))),
            asyncio.create_task(keep("saving the read counters", self.counters.run)),
        ]
        if self.config.source_abort_s:
            watch = SourceAbort(self.config, rounds.tell).run
            running.append(asyncio.create_task(keep("watching for a source that hangs", watch)))
        try:
            await keep("the rounds", rounds.run)
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=_LAST_WORDS_S)
            await rounds.close()
            self.source.close()
            await self.counters.save()


def make_parts(config: Config, ledger: Ledger, workers: Workers) -> Parts:
    """Put a daemon together; nothing runs yet."""
    side, supervisor = LedgerSide(ledger), Supervisor()
    former = Former(config, workers)
    hands = WorkerHands(config, workers, former_caches=lambda: former.cache_dirs)
    source = Source(config.source_dir, workers, silence_s=config.source_timeout_s, owners=config.source_owners)
    counters = Counters(config.period_s, load_counters(config.reads_path, side.boot_id, config.period_s))
    rounds = Rounds(config, hands, side, lambda: source.catalog, counters)
    scanner = Scanner(config, source, on_listed=rounds.nudge)
    rounds.cards.update((name, Card(name, permissions=each.permissions)) for name, each in source.recalled.items())
    source.on_news = rounds.nudge
    keeper = CountersKeeper(config, side, counters)
    return Parts(config, hands, side, source, rounds, supervisor, scanner, former, keeper)
