"""Who keeps a dataset cached. Apart from the model: the hooks, which start with every job, need no more of it."""

from typing import NamedTuple

ADMINISTRATOR = "administrator"


class Pin(NamedTuple):
    """One holder's claim that keeps a dataset cached."""

    dataset: str
    holder: str
    """`job:<id>` or `administrator`."""
    uid: int
    asked_at: float
    """Epoch seconds, to be shown. The clock may jump: nothing is decided by it."""
    asked_monotonic_s: float = 0.0
    """By the clock that counts since the node booted; 0 for the administrator's, and where it is not known."""

    @property
    def job_id(self) -> int | None:
        kind, _, rest = self.holder.partition(":")
        return int(rest) if kind == "job" else None


def job_holder(job_id: int) -> str:
    """Name the holder of a job's pins."""
    return f"job:{job_id}"
