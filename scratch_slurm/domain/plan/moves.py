"""What one dataset needs next, by its card alone: its mount, and what the mount reads. Pure."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from msgspec import structs

from scratch_slurm.domain.access import is_public
from scratch_slurm.domain.actions import (
    ActionKind,
    BackTo,
    Evict,
    Mend,
    Mount,
    Replace,
    Retarget,
    Uncover,
    Unmount,
)
from scratch_slurm.domain.backing import Backing, FromCopy, FromSource
from scratch_slurm.domain.dataset import Card
from scratch_slurm.domain.model import CachedImage, SourceImage
from scratch_slurm.domain.reasons import Problem

Move = Mount | Replace | Mend | Uncover | Unmount | Retarget


class Decision(NamedTuple):
    """What was decided of one card."""

    card: Card
    move: Move | None
    problem: Problem | None
    """What is in the way."""
    outdated: tuple[Evict, ...]
    """Copies of it that can never be served again."""
    holds_until: float
    """Monotonic seconds; then something is due that was put off."""
    wanted: SourceImage | None
    """The image to have in the cache: only the one that is mounted, or about to be."""
    current: CachedImage | None
    """The copy of what is mounted, or about to be, if it is not on its way out."""


def decide(card: Card, now: float) -> Decision:
    """Decide what a card alone can tell."""
    move = next_move(card, now)
    outdated = () if move and not isinstance(move, Retarget) else find_outdated(card, now)
    due = [failure.retry_at for failure in card.failures.values() if failure.retry_at > now]
    holds_until = min(due, default=math.inf)
    return Decision(
        card, None if outdated else move, obstacle(card), outdated, holds_until, wanted(card), current(card)
    )


def decide_all(cards: Mapping[str, Card], now: float, before: Mapping[str, Decision]) -> dict[str, Decision]:
    """Decide of all cards, anew only of those that are other ones, and of those for which something is due.

    Args:
        now: monotonic seconds.
        before: what this function returned last.
    """
    decisions = {}
    for name, card in cards.items():
        known = before.get(name)
        if known is None or now >= known.holds_until or not _is_same(card, known.card):
            known = decide(card, now)
        decisions[name] = known
    return decisions


def _is_same(card: Card, other: Card) -> bool:
    """Whether two cards are alike, but for how the dataset is read: no move depends on that."""
    return card is other or structs.replace(other, reads=card.reads) == card


def next_move(card: Card, now: float) -> Move | None:
    """Tell the next step of a dataset's mount: made, replaced, mended, taken away, or switched to another file.

    Args:
        now: monotonic seconds; only what was put off is compared with it.
    Returns: None: it is as it should be, or something is in the way: see `obstacle`.
    """
    if card.under_way is not None or card.is_foreign:
        return None
    return _next_mount(card, now) or _next_switch(card, now)


def obstacle(card: Card) -> Problem | None:
    """Tell what keeps a dataset's mount from being what it should be."""
    image, mounted = card.image, card.mounted
    if card.under_way is not None or card.is_foreign or mounted is None or card.revoked or _is_to_be_finished(card):
        return None
    if image and mounted.generation_id != image.generation.id:
        text = "the source has a newer image; it is mounted when nobody pins the old one"
        return Problem(text, waiting_helps=False) if card.may_be_pinned else None
    if image:
        return Problem(_word_mend(card), waiting_helps=True) if card.fault else None
    if card.is_gone and card.may_be_pinned:
        return Problem("removed from the source; it stays while it is pinned", waiting_helps=False)
    return None


def _next_mount(card: Card, now: float) -> Move | None:
    image, mounted = card.image, card.mounted
    if mounted is None:
        return _first_mount(card) if card.may(ActionKind.MOUNT, now) else None
    if card.revoked:
        # Pinned or not: no right of a job's goes before the owner's word on who may read it.
        return Unmount(card.name, card.revoked, despite=None) if card.may(ActionKind.UNMOUNT, now) else None
    if _is_to_be_finished(card):
        return _finish(card, now)
    if image and mounted.generation_id != image.generation.id:
        if card.may_be_pinned or not card.may(ActionKind.REPLACE, now):
            return None
        return Replace(image, backing_of(card, image), "the source has a newer image", card.refused)
    if image:
        if not card.fault or not card.may(ActionKind.REPLACE, now):
            return None
        if _find_lost(card) and card.may(ActionKind.RETARGET, now):
            return None  # its device leaves the copy first: what is open on the mount is read on
        return Mend(image, backing_of(card, image), _word_mend(card), despite=None)
    if card.is_gone and not card.may_be_pinned and card.may(ActionKind.UNMOUNT, now):
        return Unmount(card.name, "removed from the source", card.refused)
    return None


def _first_mount(card: Card) -> Mount | None:
    if card.image:
        return Mount(card.image, backing_of(card, card.image), "new in the source")
    # A whole copy of what an earlier listing showed; nothing else is known of it.
    copy = card.copy_of(card.recalled.generation.id) if card.recalled else None
    if card.recalled is None or copy is None:
        return None
    return Mount(card.recalled, FromCopy(copy), "cached, and known from an earlier listing; the source cannot tell")


def _word_mend(card: Card) -> str:
    return f"cannot be read and is mounted anew: {card.fault}"


def _is_same_beneath(card: Card) -> bool:
    """Whether what lies beneath a mount is the same generation: then nobody's version changes when it is seen."""
    top, beneath = card.mounted, card.covered
    return bool(top and beneath and top.generation_id is not None and beneath.generation_id == top.generation_id)


def _is_to_be_finished(card: Card) -> bool:
    """Whether a change of the mount was cut short, and may go on."""
    return card.covered is not None and (not card.may_be_pinned or _is_same_beneath(card))


def _is_between(card: Card) -> bool:
    """Whether what lies beneath is another generation than the one on top, and the source has a third.

    Only where everybody may read the image: a mount of before may be open to more people than the newest image is.
    """
    image, top, beneath = card.image, card.mounted, card.covered
    if image is None or top is None or beneath is None or not is_public(image.permissions):
        return False
    return beneath.generation_id is not None and top.generation_id not in (None, image.generation.id)


def _finish(card: Card, now: float) -> Uncover | Unmount | None:
    """Bring a change of a mount that was cut short to its end.

    Beneath lies what was probed before it was put there; it is seen as soon as the one on top is gone. Also where the
    source has a still newer one by now: that replaces it in the next round, and the path is never empty. Where what
    lies beneath is not wanted, or cannot be read any more, all goes, and is mounted anew in the next round.
    """
    image, beneath = card.image, card.covered
    same = _is_same_beneath(card)
    is_newest = beneath is not None and image is not None and beneath.generation_id == image.generation.id
    if beneath and (same or is_newest or _is_between(card)) and not card.is_off(ActionKind.UNCOVER, now):
        despite = None if same else card.refused
        return Uncover(card.name, beneath.device, "a change of its mount was cut short", despite)
    is_known = card.is_listed and (image is not None or card.is_gone)
    if not card.may_be_pinned and is_known and card.may(ActionKind.UNMOUNT, now):
        return Unmount(card.name, "a change of its mount was cut short, and is begun anew", card.refused)
    return None


def _next_switch(card: Card, now: float) -> Retarget | None:
    """Read from the cache whatever is cached, and from the source what somebody deleted from the cache."""
    mounted = card.mounted
    if mounted is None or not card.may(ActionKind.RETARGET, now):
        return None
    copy, image = card.copy_of(mounted.generation_id), wanted(card)
    if copy:
        if mounted.reads(copy):
            return None
        return Retarget(card.name, mounted.device, FromCopy(copy), image, "its copy is whole and verified")
    if image and (reason := _find_lost(card)):
        return Retarget(card.name, mounted.device, FromSource(image), image, reason)
    return None


def _find_lost(card: Card) -> str:
    """Tell why a mount cannot go on reading its copy, where the source can take over; empty: it can, or reads none."""
    path = card.mounted.copy_path if card.mounted else ""
    if not path or wanted(card) is None:
        return ""
    copy = next((copy for copy in card.copies if copy.path == path), None)
    if copy is None:
        return "" if card.is_copy_unseen else "its cached image is not in the cache any more"
    return f"its copy is bad: {copy.bad}" if copy.bad else ""


def find_outdated(card: Card, now: float) -> tuple[Evict, ...]:
    """Find copies that can never be served again: of another generation, of no dataset, bad, or one of two."""
    mounted = card.mounted
    if not card.copies or not card.may(ActionKind.EVICT, now):
        return ()
    evictions = []
    generations = {mounted.generation_id if mounted else None, card.image.generation.id if card.image else None}
    is_unsure = card.image is None and not card.is_gone
    for copy in card.copies:
        is_read = mounted is not None and mounted.reads(copy)
        if is_read or is_unsure:
            continue
        if copy.bad:
            evictions.append(Evict(copy, None, copy.bad, despite=None))
        elif copy.generation_id not in generations:
            evictions.append(Evict(copy, None, "no dataset has this generation any more", despite=None))
        elif card.copy_of(copy.generation_id) != copy:
            evictions.append(Evict(copy, None, "another disk has a copy of it", despite=None))
    return tuple(evictions)


def backing_of(card: Card, image: SourceImage) -> Backing:
    """Tell what a new mount of an image reads: its copy, if there is one."""
    copy = card.copy_of(image.generation.id)
    return FromCopy(copy) if copy else FromSource(image)


def wanted(card: Card) -> SourceImage | None:
    """Find the image to have in the cache: only the one that is mounted, or about to be."""
    image, mounted = card.image, card.mounted
    return image if image and (mounted is None or mounted.generation_id == image.generation.id) else None


def current(card: Card) -> CachedImage | None:
    """Find the copy of what is mounted, or about to be, if it is not on its way out."""
    mounted, image = card.mounted, card.image
    generation_id = mounted.generation_id if mounted else image.generation.id if image else None
    return None if card.is_leaving else card.copy_of(generation_id)


def evict(card: Card, copy: CachedImage, reason: str, despite: frozenset[str] = frozenset()) -> Evict | None:
    """Make the eviction of a copy, which takes its reader back to the source first.

    Args:
        despite: holders whose pins do not keep it, beside those that are refused.
    Returns: None: the copy is read, and the image in the source cannot take over.
    """
    mounted, image = card.mounted, wanted(card)
    if mounted is None or not mounted.reads(copy):
        return Evict(copy, None, reason, card.refused | despite)
    return Evict(copy, BackTo(mounted.device, image), reason, card.refused | despite) if image else None
