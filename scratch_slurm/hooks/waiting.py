"""Wait for datasets: ask the daemon, again and again, until all are settled or the time is over."""

import time
from collections.abc import Callable

from scratch_slurm.domain.errors import DaemonError
from scratch_slurm.hooks.answer import Answer, format_question, parse_answer
from scratch_slurm.node.daemon_client import request

# One question waits so long at most: a daemon that is restarted meanwhile is asked again.
SLICE_S = 10.0
# The daemon looks for new images, and at what it has, before it answers: at most some 10 s, usually milliseconds.
ANSWER_TIMEOUT_S = 15.0
_PAUSE_S = 1.0

Ask = Callable[[tuple[str, ...], float], Answer]


def wait_for(
    datasets: tuple[str, ...],
    wait_s: float,
    ask: Ask,
    *,
    is_over: Callable[[], bool] = lambda: False,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Wait until the datasets are settled, `wait_s` at most; 0 asks once.

    A daemon that does not answer the first question is not waited for.

    Args:
        ask: asks the daemon about datasets, to answer after so many seconds at the latest.
        is_over: tells, between two questions, whether nobody needs the answer any more.
    Returns: the latest answer.
    Raises: DaemonError: the daemon did not answer the first question, or the last. ScratchError: what it said instead.
    """
    give_up_at = monotonic() + wait_s
    answer: Answer | None = None
    while True:
        asked_at = monotonic()
        try:
            answer = ask(datasets, min(SLICE_S, max(0.0, give_up_at - asked_at)))
        except DaemonError:
            if answer is None or monotonic() >= give_up_at or is_over():
                raise
        else:
            if answer.settled or monotonic() >= give_up_at or is_over():
                return answer
        # A daemon that comes back, or one that answers too early, is not asked in a tight circle.
        sleep(max(0.0, min(asked_at + _PAUSE_S, give_up_at) - monotonic()))


def asker(
    socket_path: str, answer_timeout_s: float = ANSWER_TIMEOUT_S, *, uid: int | None = None, node: str = ""
) -> Ask:
    """Make the function that asks the daemon at `socket_path`.

    Args:
        uid: the user for whom it asks; None: nobody in particular.
        node: what slurmd calls this node.
    """

    def ask(datasets: tuple[str, ...], timeout_s: float) -> Answer:
        body = format_question(datasets, timeout_s, uid, node)
        answer = request(socket_path, "POST", "/v1/wait", body, timeout_s + answer_timeout_s)
        try:
            return parse_answer(answer)
        except ValueError as exc:
            raise DaemonError(f"{socket_path}: the daemon's answer is not understood: {exc}") from exc

    return ask
