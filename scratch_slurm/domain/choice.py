"""Which images the cache should hold: what is pinned, and what saves the most reads of the slow storage."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from scratch_slurm.domain.knapsack import Choice, Item, choose
from scratch_slurm.domain.sizes import format_bytes, format_duration


class Candidate(msgspec.Struct, frozen=True):
    """A dataset that may be in the cache, or is."""

    dataset: str
    size_bytes: int
    """What it takes, or would take, in the cache."""
    copy_bytes: int
    """What is still to be read from the source before it is cached; 0: it is cached."""
    bytes_per_s: float
    """Its reads while it is read, over the window at most."""
    pinned: bool
    last_used_at: float = 0.0
    streak_s: float = 0.0
    """For how long it has been read without a pause of a whole window."""
    streak_bytes: float = math.inf
    """What has been read of it in that time; infinite: not known, and no limit to what is trusted."""


class Verdict(msgspec.Struct, frozen=True):
    """What was decided on one dataset, with the figures that decided it."""

    candidate: Candidate
    chosen: bool
    """For its throughput."""
    value_bytes: float
    """Reads of the slow storage that having it saves over the horizon, less what its copy reads."""
    horizon_s: float
    """How far ahead its read rate was trusted."""

    @property
    def saves(self) -> str:
        """What having it saves, in words, its copy not counted."""
        limit_bytes = trusted_bytes(self.candidate)
        if self.bytes_per_s * self.horizon_s > limit_bytes:
            return f"saves {format_bytes(limit_bytes)}, what it was read so far and once more"
        return f"saves {format_bytes(self.bytes_per_s * self.horizon_s)} over {format_duration(self.horizon_s)}"

    @property
    def dataset(self) -> str:
        return self.candidate.dataset

    @property
    def size_bytes(self) -> int:
        return self.candidate.size_bytes

    @property
    def bytes_per_s(self) -> float:
        return self.candidate.bytes_per_s

    @property
    def cached(self) -> bool:
        return self.candidate.copy_bytes == 0

    @property
    def wanted(self) -> bool:
        """Whether it should be in the cache; what is cached and not wanted stays while its room is not needed."""
        return self.candidate.pinned or self.chosen

    @property
    def reason(self) -> str:
        """The decision in words; made when somebody asks, as rounds decide on thousands that nobody asks about."""
        if self.candidate.pinned:
            return "pinned"
        if self.bytes_per_s == 0:
            return "nobody reads it; it stays while there is room" if self.cached else "nobody reads it"
        if self.cached:
            return self.saves + ("" if self.chosen else ", less than others would with its room")
        copy = format_bytes(self.candidate.copy_bytes)
        if self.value_bytes <= 0:
            return f"{self.saves}, less than the {copy} that its copy reads"
        return f"{self.saves}, its copy reads {copy}" + ("" if self.chosen else "; others save more with that room")


@dataclass(frozen=True)
class Wishes:
    """What the cache should hold."""

    pinned: tuple[str, ...]
    """In the order of asking, whether they fit or not."""
    chosen: tuple[str, ...]
    """For their throughput, the most valuable per byte first."""
    unneeded: tuple[str, ...]
    """Cached, and neither pinned nor chosen; the first to go first."""
    verdicts: Mapping[str, Verdict]
    """On each candidate."""
    knapsack: Choice


# What is read without a pause is trusted to go on for as long again, but for no longer than so many usual readings.
LONGEST_TIMES = 8.0


def own_horizon_s(candidate: Candidate, horizon_s: float) -> float:
    """How far ahead a dataset's read rate is trusted: at least `horizon_s`, and as long as it has been read already.

    A fixed half hour would never pay for the copy of a large image that a job reads steadily for ten hours.
    Source: bench/replay.py, which compares it with fixed horizons.
    """
    return max(horizon_s, min(LONGEST_TIMES * horizon_s, candidate.streak_s))


def trusted_bytes(candidate: Candidate) -> float:
    """How much of a dataset is trusted to be read still, at most: what was read in this streak, and the image once.

    Who goes through an image once, at full speed, is no training job, and takes no room from those that have read
    theirs for hours; with each byte that is read the trust grows.
    """
    return candidate.size_bytes + candidate.streak_bytes


def value_bytes(candidate: Candidate, horizon_s: float) -> float:
    """What caching a dataset saves over the horizon, in bytes of slow-storage reads.

    Its reads at the present rate, less what its copy has to read first: caching pays only when it saves more than it
    costs, and what is cached already has the advantage of its paid copy. That is all the hysteresis there is.
    """
    return _value_bytes(candidate, own_horizon_s(candidate, horizon_s))


def _value_bytes(candidate: Candidate, own_s: float) -> float:
    coming_bytes = candidate.bytes_per_s * own_s
    return min(coming_bytes, candidate.size_bytes + candidate.streak_bytes) - candidate.copy_bytes


def wish(candidates: Iterable[Candidate], pinned: Sequence[str], budget_bytes: int, horizon_s: float) -> Wishes:
    """Decide what the cache should hold.

    Args:
        candidates: every dataset that can be cached, or is; in any order, names distinct.
        pinned: the pinned datasets in the order of asking.
        budget_bytes: what all cached images may take together.
        horizon_s: how far ahead the present read rates are trusted at least, in seconds.
    Returns: wishes; pinned datasets come first, whole, in order, as long as they fit, and the best choice of the
        others shares what they leave. A pinned one that is cached keeps its room whenever it was asked for.
    """
    by_name = {candidate.dataset: candidate for candidate in candidates}
    left_bytes = budget_bytes
    held = [by_name[dataset] for dataset in pinned if dataset in by_name]
    for candidate in sorted(held, key=lambda each: each.copy_bytes > 0):
        if candidate.copy_bytes == 0 or candidate.size_bytes <= left_bytes:
            left_bytes -= candidate.size_bytes
    own_s = {name: own_horizon_s(candidate, horizon_s) for name, candidate in by_name.items()}
    values = {name: _value_bytes(candidate, own_s[name]) for name, candidate in by_name.items()}
    others = [each for each in by_name.values() if not each.pinned]
    knapsack = choose(
        (Item(each.dataset, each.size_bytes, values[each.dataset]) for each in others),
        left_bytes,
        present={each.dataset for each in others if each.copy_bytes < each.size_bytes},
    )
    chosen = sorted(knapsack.names, key=lambda name: (-values[name] / by_name[name].size_bytes, name))
    unneeded = sorted(
        (
            each
            for each in by_name.values()
            if not each.copy_bytes and not each.pinned and each.dataset not in knapsack.names
        ),
        key=lambda each: (values[each.dataset] / each.size_bytes, each.last_used_at, -each.size_bytes, each.dataset),
    )
    verdicts = {
        name: Verdict(each, name in knapsack.names, values[name], own_s[name]) for name, each in by_name.items()
    }
    return Wishes(tuple(pinned), tuple(chosen), tuple(each.dataset for each in unneeded), verdicts, knapsack)
