"""Notice that a job was cancelled while its prolog waits: Slurm neither stops the prolog nor tells it.

Slurm's man page asks not to call its commands in a prolog, as thousands of them would keep the controller busy. So this
asks seldom, for one job, with a time limit, and whatever is not clear means that the job still wants to run.
"""

import os
import subprocess
import time
from collections.abc import Callable

from scratch_slurm.domain import backoff
from scratch_slurm.domain.jobs import ENDED
from scratch_slurm.hooks import hooklog

# Of a job whose script will not begin any more, or not before the next prolog.
_OVER = ENDED | {"COMPLETING"}
_FIRST_PAUSE_S = 8.0
_LONGEST_PAUSE_S = 60.0
_SQUEUE_TIMEOUT_S = 10.0


class CancelWatch:
    """Asks Slurm about one job: first after some 8 s, then at pauses that double up to a minute.

    Args:
        ask: gives squeue's text for a job id.
        spread: 0 to 1, another on each node, so that the nodes of a large job do not ask at the same moment.
    """

    def __init__(
        self,
        job_id: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        ask: Callable[[int], str] | None = None,
        spread: float | None = None,
    ) -> None:
        self._job_id = job_id
        self._monotonic = monotonic
        self._ask = ask or _squeue
        self._spread = os.urandom(1)[0] / 255 if spread is None else spread
        self._asked = 0
        self._ask_at = monotonic() + _FIRST_PAUSE_S

    def is_over(self) -> bool:
        """Tell whether the job is certainly over; seldom asks, else says no."""
        if self._monotonic() < self._ask_at:
            return False
        over = is_over(self._job_id, self._ask(self._job_id))
        self._asked += 1
        pause_s = backoff.pause_s(1 + self._asked, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._ask_at = self._monotonic() + pause_s * (1 + self._spread / 4)
        return over


def is_over(job_id: int, text: str) -> bool:
    """Read the job's state from lines of job id and state; an array's other tasks may be among them. Pure."""
    states = [words[1] for words in map(str.split, text.splitlines()) if words[:1] == [str(job_id)] and len(words) == 2]
    return len(states) == 1 and states[0] in _OVER


def _squeue(job_id: int) -> str:
    command = ["squeue", "--local", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%A %T"]
    environment = {name: os.environ[name] for name in ("PATH", "SLURM_CONF") if name in os.environ}
    try:
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
            timeout=_SQUEUE_TIMEOUT_S,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as exc:
        hooklog.warning("no-squeue", job=job_id, error=exc)
        return ""
