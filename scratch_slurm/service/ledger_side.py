"""The daemon's side to the ledger: in a thread that may be lost, and never needed to go on."""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from scratch_slurm.domain.errors import LedgerError
from scratch_slurm.domain.model import Pin
from scratch_slurm.node.ledger.ledger import Ledger
from scratch_slurm.service.calls import Calls

log = logging.getLogger(__name__)

_PATIENCE_S = 8.0
"""More than the ledger itself waits for other processes."""

T = TypeVar("T")


class LedgerSide:
    """Pins and events for the rounds. Where the ledger cannot be used, the pins are those that were read last.

    Args:
        ledger: opened later: what it cannot do now it may do at the next call.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.boot_id = ledger.boot_id
        self.problem = ""
        """Why the ledger cannot be read, so that nobody knows who pins what; empty when it can."""
        self._ledger = ledger
        self._calls = Calls("the ledger", error=LedgerError, patience_s=_PATIENCE_S)
        self._last: tuple[Pin, ...] = ()
        self._is_tidy = False
        self._unsaid = False

    async def call(self, work: Callable[[], T]) -> T:
        """Do something that touches the disk of the ledger.

        Raises: what it raises. LedgerError: it gives no answer.
        """
        return await self._calls.run(work)

    async def look(self) -> tuple[Pin, ...]:
        """Read the pins; where they cannot be read, tell those that were read last. `problem` says which it was."""
        try:
            pins = tuple(await self._calls.run(self._ledger.pins))
        except LedgerError as exc:
            problem = f"{exc.message}; who pins what is not known: what may be pinned stays as it is"
            if not self.problem:
                log.error("no ledger problem=%r", problem)
            self.problem = problem
            return self._last
        if self.problem:
            log.info("ledger answers again pins=%d", len(pins))
        self.problem, self._last = "", pins
        if not self._is_tidy:
            self._is_tidy = True
            await self._forget_other_boots()
        return pins

    async def pins(self) -> list[Pin]:
        """List the pins as they are. Raises: LedgerError: they cannot be read."""
        return await self._calls.run(self._ledger.pins)

    async def release(
        self, holder: str, datasets: Iterable[str] | None, *, event: str, detail: str, owner: int | None = None
    ) -> tuple[str, ...]:
        """Release pins, see `Ledger.release`. Raises: LedgerError, DeniedError."""
        return await self._calls.run(
            lambda: self._ledger.release(holder, datasets, event=event, detail=detail, owner=owner)
        )

    async def record(self, event: str, *, dataset: str, detail: str) -> None:
        """Remember an event; one that cannot be written is in the log alone."""
        try:
            await self._calls.run(lambda: self._ledger.record(event, dataset=dataset, detail=detail))
        except LedgerError as exc:
            if not self._unsaid:
                log.warning("events are not recorded problem=%r", exc.message)
            self._unsaid = True
        else:
            self._unsaid = False

    async def _forget_other_boots(self) -> None:
        """They do not count anyway; without them the file stays small."""
        try:
            forgotten = await self._calls.run(self._ledger.forget_other_boots)
        except LedgerError as exc:
            log.warning("cannot forget the pins of earlier boots problem=%r", exc.message)
            return
        for holder, dataset in forgotten:
            log.info("forgot pin holder=%s dataset=%s reason=%r", holder, dataset, "the node has booted since")
