"""How the daemon's log is written: with priorities where the journal reads it, and no cause may fill it.

Whatever a user makes the daemon say, that user could make it say a thousand times a second.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

# Of sd-daemon(3): the least priority for lines of at least that level.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


@dataclass(frozen=True)
class Budget:
    """How many lines one cause may write."""

    at_once: int
    per_s: float
    """How fast that comes back."""


LINES = Budget(1000, 2.0)
"""As many as a node has datasets change their state at once; then what a disk holds for weeks."""
TRACEBACKS = Budget(5, 1 / 60)


class Allowance:
    """What is left of one cause's budget. Pure: `now` is a parameter, in monotonic seconds."""

    def __init__(self, budget: Budget, now: float) -> None:
        self._budget = budget
        self._left = float(budget.at_once)
        self._at = now
        self.left_out = 0
        """Lines left out since the last one that was written."""

    def take(self, now: float) -> bool:
        """Take one line; False: it is left out."""
        self._left = min(self._budget.at_once, self._left + (now - self._at) * self._budget.per_s)
        self._at = now
        if self._left < 1:
            self.left_out += 1
            return False
        self._left -= 1
        return True

    @property
    def is_over(self) -> bool:
        """Whether the next line would be left out if it came now."""
        return self._left < 1


class Bound(logging.Filter):
    """Leaves out the lines of one cause, a place in the code, beyond its budget; the lines around them say so.

    Args:
        monotonic: seconds.
    """

    def __init__(
        self,
        lines: Budget = LINES,
        tracebacks: Budget = TRACEBACKS,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._lines = lines
        self._tracebacks = tracebacks
        self._monotonic = monotonic
        self._causes: dict[tuple[str, int, bool], Allowance] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, has_traceback = self._monotonic(), bool(record.exc_info)
        cause = (record.pathname, record.lineno, has_traceback)
        allowance = self._causes.get(cause)
        if allowance is None:
            budget = self._tracebacks if has_traceback else self._lines
            allowance = self._causes[cause] = Allowance(budget, now)
        if not allowance.take(now):
            return False
        notes = [f"{allowance.left_out} lines like this were left out"] if allowance.left_out else []
        notes += ["more lines like this are left out for a while"] if allowance.is_over else []
        allowance.left_out = 0
        if notes:
            record.msg, record.args = f"{record.getMessage()} ({'; '.join(notes)})", ()
        return True


class JournalFormatter(logging.Formatter):
    """Begins each line with its priority, as the journal takes it from a service's standard error."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = priority_prefix(record.levelno)
        return "\n".join(prefix + line for line in super().format(record).split("\n"))


def priority_prefix(level: int) -> str:
    """Word a level of `logging` as the journal takes it. Source: sd-daemon(3)"""
    return f"<{next((number for least, number in _PRIORITIES if level >= least), _DEBUG)}>"


def is_journal(stream: TextIO, told: str) -> bool:
    """Tell whether the journal reads a stream.

    Args:
        told: $JOURNAL_STREAM: device and inode. Source: systemd.exec(5); a child with another stream inherits it.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return told == f"{status.st_dev}:{status.st_ino}"


def set_up_logging(level: str) -> None:
    """Send the log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    journal = is_journal(sys.stderr, os.environ.get("JOURNAL_STREAM", ""))
    handler.setFormatter((JournalFormatter if journal else logging.Formatter)("%(levelname)s %(message)s"))
    handler.addFilter(Bound())
    logging.basicConfig(level=level, handlers=[handler])


def complain(text: str) -> None:
    """Say on standard error why the daemon does not run."""
    journal = is_journal(sys.stderr, os.environ.get("JOURNAL_STREAM", ""))
    prefix = priority_prefix(logging.ERROR) if journal else ""
    print("\n".join(prefix + line for line in text.split("\n")), file=sys.stderr)
