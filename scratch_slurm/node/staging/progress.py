"""How far a copy is, counted by several threads and told now and then."""

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass

_REPORT_EVERY_S = 0.25


class CopyPhase(enum.StrEnum):
    """What the bytes that are done were: read back, copied, or read again."""

    RESUMING = "resuming"
    COPYING = "copying"
    VERIFYING = "verifying"


@dataclass(frozen=True)
class CopyProgress:
    """How far the phase is; `bytes_done` counts all that was read, in whatever order, and what was resumed."""

    phase: CopyPhase
    bytes_done: int
    bytes_total: int


class Reporter:
    """Counts what comes in, by whichever thread, and tells every 0.25 s at most.

    Args:
        report: called by any thread, one at a time.
        now: seconds, monotonic.
    """

    def __init__(self, total_bytes: int, report: Callable[[CopyProgress], None], now: Callable[[], float]) -> None:
        self._total_bytes = total_bytes
        self._report = report
        self._now = now
        self._lock = threading.Lock()
        self._phase, self._done_bytes, self._due_at = CopyPhase.COPYING, 0, 0.0

    def begin(self, phase: CopyPhase, done_bytes: int) -> None:
        """Begin a phase of which `done_bytes` are done already, and tell."""
        with self._lock:
            self._phase, self._done_bytes = phase, done_bytes
            self._tell()

    def change(self, phase: CopyPhase) -> None:
        """Go over to a phase, if it is not that one already; the count goes on."""
        if phase is not self._phase:
            with self._lock:
                self._phase = phase
                self._tell()

    def go_back(self, done_bytes: int) -> None:
        """Count anew from here, and tell: what was read beyond it comes again."""
        with self._lock:
            self._done_bytes = done_bytes
            self._tell()

    def add(self, count_bytes: int) -> None:
        """Count bytes that have come; tell when it is time."""
        with self._lock:
            self._done_bytes += count_bytes
            if self._now() >= self._due_at:
                self._tell()

    def end(self) -> None:
        """Tell where the phase has ended."""
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        self._due_at = self._now() + _REPORT_EVERY_S
        self._report(CopyProgress(self._phase, self._done_bytes, self._total_bytes))
