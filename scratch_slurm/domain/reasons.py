"""Why the planner does something, or cannot, in words for people. Decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from scratch_slurm.domain.choice import Wishes
from scratch_slurm.domain.model import CachedImage, SourceImage, Space
from scratch_slurm.domain.sizes import format_bytes


@dataclass(frozen=True)
class Problem:
    """Why a wish cannot be met now, for status and for the job that waits."""

    text: str
    waiting_helps: bool
    """Whether it may mend itself soon, so that a job's start may wait for it."""


def word_staging(holders: Sequence[str], wishes: Wishes, dataset: str) -> str:
    """Say why a dataset is staged.

    Args:
        holders: who pins it.
    """
    return "pinned by " + ", ".join(holders) if holders else wishes.verdicts[dataset].reason


def word_eviction(holders: Sequence[str], wishes: Wishes, victim: CachedImage, needed_by: str) -> str:
    """Say why a cached image makes room for another dataset.

    Args:
        holders: who pins that other dataset.
    """
    by = f"{needed_by}, pinned by {holders[0]}" if holders else needed_by
    return f"{_word_worth(wishes, victim)}, its room is needed by {by}"


def word_eviction_unnamed(wishes: Wishes, victim: CachedImage) -> str:
    """Say the same without the other dataset, for those that may not be told of it."""
    return f"{_word_worth(wishes, victim)}, its room is needed by another dataset"


def word_shrinking(space: Space, wishes: Wishes, victim: CachedImage) -> str:
    """Say why a cached image goes although no other needs its room."""
    if space.used_bytes > space.capacity_bytes:
        return f"{_word_worth(wishes, victim)}, the capacity is {format_bytes(space.capacity_bytes)}"
    return (
        f"{_word_worth(wishes, victim)}, others fill the disk: {format_bytes(space.free_bytes)} free, "
        f"{format_bytes(space.reserve_bytes)} must stay so"
    )


def word_no_room(image: SourceImage, capacity_bytes: int, could_bytes: int) -> Problem:
    """Say why a pinned dataset cannot be staged now.

    Args:
        capacity_bytes: of the disk with the largest.
        could_bytes: what can be had on one disk, once what could go is gone.
    """
    if image.size_bytes > capacity_bytes:
        return Problem(
            f"does not fit: {format_bytes(image.size_bytes)}, the capacity is {format_bytes(capacity_bytes)}",
            waiting_helps=False,
        )
    return Problem(
        f"waits for room: needs {format_bytes(image.size_bytes)}, {format_bytes(could_bytes)} can be had now; "
        "the rest is pinned, in use, kept free, or taken by others",
        waiting_helps=True,
    )


def _word_worth(wishes: Wishes, victim: CachedImage) -> str:
    verdict = wishes.verdicts[victim.dataset]
    return verdict.saves if verdict.value_bytes > 0 else "nobody reads it"
