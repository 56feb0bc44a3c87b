"""Claims on a dataset, and the one judge of them. Pure.

A pin in the ledger is what somebody asked for. Whether it counts is decided here, once; plan, doing, answers read it.
"""

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from scratch_slurm.domain.pins import ADMINISTRATOR, job_holder


class Standing(enum.StrEnum):
    """What a claim is worth."""

    COUNTS = "counts"
    """The dataset is cached for it, and neither evicted nor replaced."""
    WAITS = "waits"
    """It is not known (yet) whether its user may read the dataset, which is left as it is."""
    REFUSED = "refused"
    """Its user may not read the dataset: it is taken back, and keeps nothing meanwhile."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job of Slurm's."""

    id: int

    def __str__(self) -> str:
        return job_holder(self.id)


@dataclass(frozen=True, slots=True)
class Administrator:
    """Whoever administers the node."""

    def __str__(self) -> str:
        return ADMINISTRATOR


# A job that is expected, and does not run yet, will be a third kind.
Holder = Job | Administrator


@dataclass(frozen=True, slots=True)
class Claim:
    """One holder's claim on one dataset."""

    holder: Holder
    uid: int
    place: int
    """In the order of asking, over all datasets of the node."""
    standing: Standing
    asked_at: float = 0.0
    """Epoch seconds, to be shown. The clock may jump: nothing is decided by it."""
    asked_monotonic_s: float = 0.0
    """By the clock that counts since the node booted; 0 where it is not known."""

    @property
    def is_job(self) -> bool:
        return isinstance(self.holder, Job)

    @property
    def counts(self) -> bool:
        return self.standing is Standing.COUNTS

    @property
    def stands(self) -> bool:
        """Whether the dataset is left to it: it counts, or may count."""
        return self.standing is not Standing.REFUSED


def parse_holder(text: str) -> Holder:
    """Read a holder as the ledger has it. Raises: ValueError: it is none."""
    kind, _, rest = text.partition(":")
    if text == ADMINISTRATOR:
        return Administrator()
    if kind == "job" and rest.isdecimal():
        return Job(int(rest))
    raise ValueError(f"{text!r}: no holder of pins")


def judge(may_read: bool | None, *, is_here: bool) -> Standing:
    """Tell what a claim is worth. Nothing else in the program decides that.

    Args:
        may_read: whether its user may read the dataset, by `access.may_read`; None: it depends on what is not known.
        is_here: whether this node has anything of the dataset. A claim on the name of nothing has nothing to read.
    """
    if may_read is None and is_here:
        return Standing.WAITS
    return Standing.COUNTS if may_read or not is_here else Standing.REFUSED


def find_keepers(holders: Iterable[str], despite: Collection[str] | None) -> list[str]:
    """Find the holders whose pins keep a dataset as it is, at the moment of the doing.

    A pin that was made since the plan was is kept, whatever it turns out to be worth: nobody has judged it yet.

    Args:
        holders: who pins it now.
        despite: those whose pins were judged, and keep nothing; None: it is done whoever pins.
    """
    return [] if despite is None else [holder for holder in holders if holder not in despite]
