"""Which images the cache should hold: what is pinned, and what saves the most reads of the slow storage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scratch_slurm.domain.knapsack import Choice, Item, choose
from scratch_slurm.domain.sizes import format_bytes, format_duration


@dataclass(frozen=True)
class Candidate:
    """A dataset that may be in the cache, or is."""

    dataset: str
    size_bytes: int
    """What it takes, or would take, in the cache."""
    copy_bytes: int
    """What is still to be read from the source before it is cached; 0: it is cached."""
    bytes_per_s: float
    """Its reads over the window."""
    pinned: bool
    last_used_at: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What was decided on one dataset, with the figures that decided it."""

    dataset: str
    size_bytes: int
    cached: bool
    wanted: bool
    """Whether it should be in the cache; what is cached and not wanted stays while its room is not needed."""
    bytes_per_s: float
    value_bytes: float
    """Reads of the slow storage that having it saves over the horizon, less what its copy reads."""
    reason: str


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
    knapsack: Choice


def value_bytes(candidate: Candidate, horizon_s: float) -> float:
    """What caching a dataset saves over the horizon, in bytes of slow-storage reads.

    Its reads at the present rate, less what its copy has to read first: caching pays only when it saves more than it
    costs, and what is cached already has the advantage of its paid copy. That is all the hysteresis there is.
    """
    return candidate.bytes_per_s * horizon_s - candidate.copy_bytes


def wish(candidates: Iterable[Candidate], pinned: Sequence[str], budget_bytes: int, horizon_s: float) -> Wishes:
    """Decide what the cache should hold.

    Args:
        candidates: every dataset that can be cached, or is; in any order, names distinct.
        pinned: the pinned datasets in the order of asking.
        budget_bytes: what all cached images may take together.
        horizon_s: how far ahead the present read rates are trusted, in seconds.
    Returns: wishes; pinned datasets come first, whole, in order, as long as they fit, and the best choice of the
        others shares what they leave.
    """
    by_name = {candidate.dataset: candidate for candidate in candidates}
    left_bytes = budget_bytes
    for dataset in pinned:
        candidate = by_name.get(dataset)
        if candidate and candidate.size_bytes <= left_bytes:
            left_bytes -= candidate.size_bytes
    values = {name: value_bytes(candidate, horizon_s) for name, candidate in by_name.items()}
    knapsack = choose(
        (Item(name, each.size_bytes, values[name]) for name, each in by_name.items() if not each.pinned), left_bytes
    )
    chosen = sorted(knapsack.names, key=lambda name: (-values[name] / by_name[name].size_bytes, name))
    unneeded = sorted(
        (each for each in by_name.values() if not each.copy_bytes and not each.pinned and each.dataset not in chosen),
        key=lambda each: (values[each.dataset] / each.size_bytes, each.last_used_at, -each.size_bytes, each.dataset),
    )
    verdicts = {name: _verdict(each, values[name], name in knapsack.names, horizon_s) for name, each in by_name.items()}
    return Wishes(tuple(pinned), tuple(chosen), tuple(each.dataset for each in unneeded), verdicts, knapsack)


def _verdict(candidate: Candidate, value: float, chosen: bool, horizon_s: float) -> Verdict:
    cached = candidate.copy_bytes == 0
    saves = f"saves {format_bytes(candidate.bytes_per_s * horizon_s)} over {format_duration(horizon_s)}"
    if candidate.pinned:
        reason = "pinned"
    elif cached and candidate.bytes_per_s == 0:
        reason = "nobody reads it; it stays while there is room"
    elif cached:
        reason = saves + ("" if chosen else ", less than others would with its room")
    elif candidate.bytes_per_s == 0:
        reason = "nobody reads it"
    elif value <= 0:
        reason = f"{saves}, less than the {format_bytes(candidate.copy_bytes)} that its copy reads"
    else:
        reason = f"{saves}, its copy reads {format_bytes(candidate.copy_bytes)}"
        reason += "" if chosen else "; others save more with that room"
    wanted = candidate.pinned or chosen
    return Verdict(candidate.dataset, candidate.size_bytes, cached, wanted, candidate.bytes_per_s, value, reason)
