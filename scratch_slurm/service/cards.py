"""The cards: what was seen and learned of each dataset, folded into one value. No I/O, no clock."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from msgspec import structs

from scratch_slurm.domain import access
from scratch_slurm.domain.actions import ActionKind, Evict, Mount, Stage, StagedImage, Uncover, Unmount
from scratch_slurm.domain.dataset import Card, Failure, Reads, Staging, UnderWay, most_copy_bytes
from scratch_slurm.domain.model import (
    CachedImage,
    Generation,
    MountedImage,
    Permissions,
    SkippedImage,
    SourceImage,
)
from scratch_slurm.domain.sight import Learned, Seen, SeenMount
from scratch_slurm.service.events import (
    Answers,
    BadCopy,
    Begun,
    Claimed,
    CopyStarted,
    CutOff,
    Ended,
    Event,
    Failed,
    Gate,
    Hangs,
    HeldOff,
    Identified,
    Looked,
    Progress,
    Read,
    Succeeded,
)

Key = TypeVar("Key")
Value = TypeVar("Value")


def fold(card: Card, event: Event) -> Card:
    """Take in what was learned of a dataset, or done with it.

    Returns: a new card; the same object where nothing changed.
    """
    match event:
        case Read():
            return _read(card, event.reads)
        case Claimed():
            return _claim(card, event)
        case HeldOff():
            return structs.replace(card, held_off_until=event.until)
        case Failed():
            return structs.replace(card, failures={**card.failures, event.kind: event.failure})
        case Begun() | CopyStarted() | Progress() | Hangs() | Answers():
            changed = structs.replace(card, under_way=_go_on(card.under_way, event))
        case Ended():
            changed = _end(card, event)
        case Succeeded():
            changed = _succeed(card, event)
        case Gate() | Identified() | Looked() | BadCopy() | CutOff():
            changed = structs.replace(card, learned=_learn(card.learned, event))
    return _make(changed, card.seen)


def see(card: Card, seen: Seen) -> Card:
    """Take in what a round saw of a dataset.

    Returns: a new card; the same object where nothing changed.
    """
    return card if seen == card.seen else _make(card, seen)


def _make(card: Card, seen: Seen) -> Card:
    """Make a card anew from what was seen and learned, and from what is under way."""
    learned = _keep(card.learned, seen, _newest(seen))
    names = _former_names(_newest(seen))
    top = _identify(seen.top, learned, names)
    image, skipped, revoked = _screen(seen, top, learned.gates)
    recalled = seen.recalled
    if recalled is not None and access.refuse(recalled, learned.gates.get(recalled.generation.id)):
        recalled = None
    copies = tuple(_take_over(copy, learned, names) for copy in seen.copies)
    return structs.replace(
        card,
        seen=seen,
        learned=learned,
        image=image,
        recalled=recalled,
        skipped=skipped,
        is_listed=seen.is_listed,
        revoked=revoked,
        permissions=_find_readers(card, seen, image, skipped, top, learned.gates),
        mounted=top,
        covered=_identify(seen.beneath, learned, names) if top else None,
        is_foreign=seen.top is not None and top is None,
        is_copy_unseen=seen.is_copy_unseen,
        fault=_find_fault(seen.top, learned) if top else "",
        copies=copies,
        has_unseen_copies=seen.has_unseen_copies,
        parts=_find_parts(seen, card.staging, names),
        are_claims_known=seen.are_claims_known,
        failures=_still_about(card.failures, seen.image),
    )


# What is under way.


def _go_on(under_way: UnderWay | None, event: Begun | CopyStarted | Progress | Hangs | Answers) -> UnderWay | None:
    if isinstance(event, Begun):
        action = event.action
        return UnderWay(action, staging=Staging(action.image, action.disk) if isinstance(action, Stage) else None)
    if under_way is None:
        return None
    if isinstance(event, Hangs):
        return structs.replace(under_way, hanging_since=event.since)
    if isinstance(event, Answers):
        return structs.replace(under_way, hanging_since=None)
    staging = under_way.staging
    if staging is None:
        return under_way
    if isinstance(event, CopyStarted):
        return structs.replace(under_way, staging=structs.replace(staging, started_at=event.at))
    return structs.replace(under_way, staging=staging.progress(event.bytes_done, event.phase))


def _succeed(card: Card, event: Succeeded) -> Card:
    """An action that was done has not failed; what it changed is learned anew."""
    failures = {kind: failure for kind, failure in card.failures.items() if kind is not event.action.kind}
    learned = card.learned
    if isinstance(event.action, Mount | Uncover | Unmount):
        learned = structs.replace(learned, faults={}, cut_off={})
    if isinstance(event.action, Evict):  # the next copy has its name
        bad = {path: why for path, why in learned.bad_copies.items() if path != event.action.image.path}
        learned = structs.replace(learned, bad_copies=bad)
    return structs.replace(card, learned=learned, failures=failures)


def _end(card: Card, event: Ended) -> Card:
    learned = card.learned
    if isinstance(event.action, Mount | Uncover | Unmount):  # the kernel gives mount ids and devices out again at once
        learned = structs.replace(learned, tags={})
    return structs.replace(card, learned=learned, under_way=None)


# What was learned.


def _learn(learned: Learned, event: Gate | Identified | Looked | BadCopy | CutOff) -> Learned:
    match event:
        case Gate():
            return structs.replace(learned, gates={**learned.gates, event.generation_id: event.permissions})
        case Identified():
            return structs.replace(learned, tags={**learned.tags, event.mount: event.generation_id})
        case Looked():
            faults = {mount: fault for mount, fault in learned.faults.items() if mount != event.mount}
            return structs.replace(learned, faults={**faults, event.mount: event.fault} if event.fault else faults)
        case BadCopy():
            return structs.replace(learned, bad_copies={**learned.bad_copies, event.path: event.why})
        case CutOff():
            return structs.replace(learned, cut_off={**learned.cut_off, event.mount: event.why})


def _keep(learned: Learned, seen: Seen, newest: Generation | None) -> Learned:
    """Keep what is about something that is there."""
    mounts = {each.key for each in (seen.top, seen.beneath) if each is not None and each.key is not None}
    tags = _only(learned.tags, mounts)
    known = {tag for tag in tags.values() if tag is not None}
    gates = learned.gates
    if newest is not None:
        known |= {newest.id, *newest.former_ids}
        former = next((gates[each] for each in newest.former_ids if each in gates), None)
        if former is not None and newest.id not in gates:
            gates = {**gates, newest.id: former}
    if seen.recalled is not None:
        known.add(seen.recalled.generation.id)
    return Learned(
        tags, _only(learned.faults, mounts), _only(learned.cut_off, mounts), _only(gates, known), learned.bad_copies
    )


def _only(facts: Mapping[Key, Value], keys: Collection[Key]) -> Mapping[Key, Value]:
    return facts if facts.keys() <= set(keys) else {key: value for key, value in facts.items() if key in keys}


# What is made of what was seen.


def _newest(seen: Seen) -> Generation | None:
    image = seen.image or seen.recalled
    return image.generation if image else None


def _former_names(newest: Generation | None) -> Mapping[str, str]:
    """What the image was called before (without a manifest, or by an earlier release) -> what it is called now."""
    return dict.fromkeys(newest.former_ids, newest.id) if newest else {}


def _identify(mount: SeenMount | None, learned: Learned, names: Mapping[str, str]) -> MountedImage | None:
    """Tell what a mount of ours serves; one whose device has not told yet is taken for ours."""
    if mount is None or mount.key is None:
        return None
    tag = learned.tags.get(mount.key, "")
    if tag is None:
        return None
    return MountedImage(mount.dataset, mount.key[1], names.get(tag, tag) or None, mount.copy_path, mount.disk)


def _find_fault(mount: SeenMount | None, learned: Learned) -> str:
    key = mount.key if mount else None
    return (learned.cut_off.get(key) or learned.faults.get(key, "")) if key else ""


def _take_over(copy: CachedImage, learned: Learned, names: Mapping[str, str]) -> CachedImage:
    """Let a copy that was made under a former id count as one of its image."""
    generation_id, bad = names.get(copy.generation_id, copy.generation_id), learned.bad_copies.get(copy.path, "")
    if generation_id == copy.generation_id and bad == copy.bad:
        return copy
    return structs.replace(copy, generation_id=generation_id, bad=bad)


def _find_parts(seen: Seen, staging: Staging | None, names: Mapping[str, str]) -> tuple[StagedImage, ...]:
    if staging is None:
        return tuple(
            replace(part, generation_id=names[part.generation_id], made_as=part.generation_id)
            if part.generation_id in names
            else part
            for part in seen.leftovers
        )
    image = staging.image
    reserved_bytes = most_copy_bytes(image.size_bytes)
    return (StagedImage(image.dataset, image.generation.id, reserved_bytes, True, staging.bytes_done, staging.disk),)


def _screen(
    seen: Seen, top: MountedImage | None, gates: Mapping[str, Permissions]
) -> tuple[SourceImage | None, SkippedImage | None, str]:
    """Take out an image whose mount would let in more people than its file does.

    Returns: the image, what is skipped in its place, and why its mount must go at once.
    """
    image = seen.image
    if image is None or access.is_public(image.permissions):
        return image, seen.skipped, ""
    refused = access.refuse(image, gates.get(image.generation.id))
    shown = access.refuse(image, gates.get(top.generation_id or "")) if top else None
    revoked = f"its image {shown}" if shown else ""
    if refused is None:
        return image, seen.skipped, revoked
    return None, SkippedImage(image.at.key, refused, image.permissions), revoked


def _find_readers(
    card: Card,
    seen: Seen,
    image: SourceImage | None,
    skipped: SkippedImage | None,
    top: MountedImage | None,
    gates: Mapping[str, Permissions],
) -> Permissions | None:
    """Find who may read a dataset. What was known holds for what is here and cannot be asked now."""
    if image is not None:
        return image.permissions
    if skipped is not None and skipped.permissions is not None:
        return skipped.permissions
    if skipped is None and top is None and not seen.copies and not seen.has_unseen_copies:
        return None
    gate = gates.get(top.generation_id or "") if top else None
    return card.permissions or (access.as_file(gate) if gate else None)


def _still_about(failures: Mapping[ActionKind, Failure], image: SourceImage | None) -> Mapping[ActionKind, Failure]:
    """Forget the failures of an image that the source has replaced: the new one is tried at once."""
    if image is None or not failures:
        return failures
    now_id = image.generation.id
    return {kind: each for kind, each in failures.items() if each.generation_id in (None, now_id)}


def _read(card: Card, reads: Reads) -> Card:
    if reads.last_at < card.reads.last_at:  # a pin was a use as well
        reads = structs.replace(reads, last_at=card.reads.last_at)
    return card if card.reads == reads else structs.replace(card, reads=reads)


def _claim(card: Card, event: Claimed) -> Card:
    if card.is_here and any(claim.counts for claim in event.claims):
        card = structs.replace(card, reads=structs.replace(card.reads, last_at=event.now))
    return card if card.claims == event.claims else structs.replace(card, claims=event.claims)
