"""What pins may ask of the cache: a share for each user, and no more together than there can ever be. Pure."""

from collections.abc import Iterable, Mapping

from scratch_slurm.domain.model import Pin, Space
from scratch_slurm.domain.reasons import Problem
from scratch_slurm.domain.sizes import format_bytes

_ROOT = 0


def find_beyond(pins: Iterable[Pin], size_bytes: Mapping[str, int], limit_bytes: int | None) -> dict[str, Problem]:
    """Find the datasets that are not cached because of their pins: with them their users would pin too much.

    A dataset counts for the first user in the order of asking whose share has room for it, whoever else pins it. What
    root's jobs and the administrator pin is never beyond anything.

    Args:
        pins: in the order of asking.
        size_bytes: what a dataset takes in the cache; of an unknown one nothing.
        limit_bytes: what all jobs of a user may pin together; None: as much as they like.
    Returns: dataset -> why.
    """
    beyond: dict[str, Problem] = {}
    if limit_bytes is None:
        return beyond
    counted: set[str] = set()
    used_bytes: dict[int, int] = {}
    for pin in pins:
        size, used = size_bytes.get(pin.dataset, 0), used_bytes.get(pin.uid, 0)
        if pin.dataset in counted:
            continue
        if pin.uid == _ROOT or pin.job_id is None:
            counted.add(pin.dataset)
        elif used + size <= limit_bytes:
            counted.add(pin.dataset)
            used_bytes[pin.uid] = used + size
        else:
            beyond.setdefault(pin.dataset, _word_beyond(pin.uid, size, used, limit_bytes))
    return {dataset: problem for dataset, problem in beyond.items() if dataset not in counted}


def _word_beyond(uid: int, size_bytes: int, used_bytes: int, limit_bytes: int) -> Problem:
    """Waiting does not help: what the user pins is let go by jobs, which end in their own time; the copy comes then."""
    already = f"{format_bytes(used_bytes)} already" if used_bytes else "nothing else"
    return Problem(
        f"needs {format_bytes(size_bytes)}; the jobs of user {uid} pin {already} here, of {format_bytes(limit_bytes)} "
        "that a user may (max_pinned)",
        waiting_helps=False,
    )


def most_bytes(space: Space) -> int:
    """What cached images may ever take together: the capacity, and what the file system has beyond the reserve."""
    if not space.whole_bytes:
        return space.capacity_bytes
    return min(space.capacity_bytes, space.whole_bytes - space.reserve_bytes)


def word_own_room(
    dataset: str, pins: Iterable[Pin], size_bytes: Mapping[str, int], spaces: Iterable[Space]
) -> Problem | None:
    """Say why a dataset that finds no room never will, as only its own holders' other pins are in its way.

    Args:
        pins: those that count.
        spaces: of all disks.
    Returns: None: one of its holders at least pins no more than fits.
    """
    asked: dict[str, dict[str, None]] = {}
    for pin in pins:
        asked.setdefault(pin.holder, {})[pin.dataset] = None
    together = [sum(size_bytes.get(name, 0) for name in names) for names in asked.values() if dataset in names]
    most = sum(most_bytes(space) for space in spaces)
    if not together or min(together) <= most:
        return None
    return Problem(
        f"does not fit beside what else is asked for with it: {format_bytes(min(together))} together, "
        f"{format_bytes(most)} can be cached here",
        waiting_helps=False,
    )
