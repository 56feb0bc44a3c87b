"""What a job's log says of its datasets: one line for each that is not as asked. Pure."""

from scratch_slurm.domain.sizes import format_bytes, format_duration
from scratch_slurm.domain.states import DatasetState
from scratch_slurm.hooks.answer import Seen


def word_status(status: Seen) -> str | None:
    """Word a dataset's state for its job; None when it is cached, and no more is to be said."""
    if status.state is DatasetState.CACHED:
        return None
    if status.state is DatasetState.STAGING:
        text = "is read from the source until its copy is complete" + _progress(status)
    elif status.state is DatasetState.QUEUED:
        text = "is read from the source until its copy is complete; the copy has not begun"
    elif status.state is DatasetState.SOURCE:
        text = "is read from the source"
    elif status.state is DatasetState.UNKNOWN:
        return f"{status.name}: {status.problem or 'no such dataset on this node'}"
    elif status.state is DatasetState.PRIVATE:
        return f"{status.name}: is private, and not cached for this job: {status.problem or 'you may not read it'}"
    else:
        return f"{status.name}: cannot be read: {status.problem or 'is not mounted on this node'}"
    return f"{status.name}: {text}" + (f": {status.problem}" if status.problem else "")


def _progress(status: Seen) -> str:
    if not status.size_bytes:
        return ""
    percent = 100 * status.staged_bytes // status.size_bytes
    eta = "" if status.eta_s is None else f", about {format_duration(status.eta_s)} left"
    return f" ({percent} % of {format_bytes(status.size_bytes)}{eta})"
