"""A node sketched in lists, for tables and strategies: the cards and the node of it, and their plan."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import structs

from scratch_slurm.domain import planner
from scratch_slurm.domain.actions import ActionKind, Evict, StagedImage
from scratch_slurm.domain.claims import Claim, Standing, parse_holder
from scratch_slurm.domain.dataset import Card, Disk, Failure, Node, Reads, UnderWay
from scratch_slurm.domain.model import CachedImage, Catalog, MountedImage, Pin, Space, job_holder


@dataclass(frozen=True)
class Sketch:
    """Everything that a plan depends on, each fact for all datasets."""

    catalog: Catalog
    mounted: Mapping[str, MountedImage]
    cached: Sequence[CachedImage]
    staged: Sequence[StagedImage]
    pins: Sequence[Pin]
    """In the order of asking."""
    space: Space
    """Of the only disk, where `disks` does not tell."""
    disks: Sequence[Disk] = ()
    last_used_at: Mapping[str, float] = field(default_factory=dict)
    """Dataset -> monotonic seconds of its latest read or pin; missing means never."""
    busy: frozenset[str] = frozenset()
    """Datasets with an operation under way: no other one may start."""
    backing_off: frozenset[tuple[str, ActionKind]] = frozenset()
    """(dataset, kind of action) that failed a moment ago and is tried again later."""
    leaving_bytes: int = 0
    """What evictions under way will free."""
    leaving: frozenset[str] = frozenset()
    """Datasets whose eviction is under way."""
    bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    """Dataset -> its read rate while it is read, whatever its backing; missing means nobody reads it."""
    streak_s: Mapping[str, float] = field(default_factory=dict)
    """Dataset -> for how long it has been read without a pause of a whole window."""
    streak_bytes: Mapping[str, float] = field(default_factory=dict)
    """Dataset -> what was read of it in that time; missing means it is not known."""
    horizon_s: float = 1800.0
    overhead_bytes: int = 0
    """What a copy may take on the disk beyond its length: part of a block, and its journal."""
    unwell: Mapping[str, str] = field(default_factory=dict)
    """Dataset whose mount, or the copy below it, cannot be read -> why."""
    bad_copies: Mapping[str, str] = field(default_factory=dict)
    """Path of a cached image that cannot be read or mounted -> why."""
    cache_problem: str = ""
    """Why the cache directory cannot be used, and so holds nothing; empty when it can."""
    undecided: frozenset[str] = frozenset()
    """Datasets with a pin of which it is not known (yet) whether it counts: they are left as they are."""
    refused: Sequence[Pin] = ()
    """Pins that do not count, and keep nothing."""
    cache_unknown: bool = False
    """It gives no answer, or could not be asked: what is read from it may well be there; nothing is tried with it."""
    pins_problem: str = ""
    """Why `pins` are those that were known last, and anybody may pin anything; empty when they are as they are."""
    foreign: frozenset[str] = frozenset()
    """Datasets whose mount point carries a mount that is not ours: it is left alone."""

    max_pinned_bytes: int | None = None
    """What the jobs of one user may pin together; None: as much as they like."""
    covered: Mapping[str, MountedImage] = field(default_factory=dict)
    """Dataset -> our mount directly beneath the one that is seen, left by a change that was cut short."""


def cards_of(seen: Sketch) -> tuple[dict[str, Card], Node]:
    """Make the cards of an observation, and what concerns the whole node."""
    catalog = seen.catalog
    standings = [(pin, Standing.COUNTS) for pin in seen.pins] + [(pin, Standing.REFUSED) for pin in seen.refused]
    standings += [(Pin(name, job_holder(0), 0, 0.0), Standing.WAITS) for name in seen.undecided]
    claims: dict[str, list[Claim]] = {}
    for place, (pin, standing) in enumerate(standings):
        claim = Claim(parse_holder(pin.holder), pin.uid, place, standing, pin.asked_at, pin.asked_monotonic_s)
        claims.setdefault(pin.dataset, []).append(claim)
    copies: dict[str, list[CachedImage]] = {}
    for copy in seen.cached:
        bad = seen.bad_copies.get(copy.path, "")
        copies.setdefault(copy.dataset, []).append(structs.replace(copy, bad=bad) if bad else copy)
    parts: dict[str, list[StagedImage]] = {}
    for part in seen.staged:
        parts.setdefault(part.dataset, []).append(part)
    failures: dict[str, dict[ActionKind, Failure]] = {}
    for name, kind in seen.backing_off:
        failures.setdefault(name, {})[kind] = Failure("", 1, math.inf)

    def under_way(name: str) -> UnderWay | None:
        if name in seen.leaving and name in copies:
            return UnderWay(Evict(copies[name][0], None, ""))
        return UnderWay() if name in seen.busy else None

    only = Disk("", seen.space, seen.leaving_bytes, seen.cache_problem, seen.cache_unknown)
    disks = tuple(seen.disks) or (only,)
    names = {*catalog.images, *catalog.recalled, *catalog.skipped, *seen.mounted, *copies, *parts, *claims}
    cards = {
        name: Card(
            name,
            image=catalog.images.get(name),
            recalled=catalog.recalled.get(name),
            skipped=catalog.skipped.get(name),
            is_listed=catalog.complete,
            revoked=catalog.revoked.get(name, ""),
            mounted=seen.mounted.get(name),
            covered=seen.covered.get(name),
            is_foreign=name in seen.foreign,
            is_copy_unseen=_is_unseen(seen.mounted.get(name), disks),
            fault=seen.unwell.get(name, ""),
            copies=tuple(copies.get(name, ())),
            parts=tuple(parts.get(name, ())),
            claims=tuple(claims.get(name, ())),
            are_claims_known=not seen.pins_problem,
            reads=Reads(
                seen.bytes_per_s.get(name, 0.0),
                seen.streak_s.get(name, 0.0),
                seen.streak_bytes.get(name, math.inf),
                seen.last_used_at.get(name, 0.0),
            ),
            under_way=under_way(name),
            failures=failures.get(name, {}),
        )
        for name in names | seen.foreign
    }
    return cards, Node(disks, seen.horizon_s, seen.overhead_bytes, seen.max_pinned_bytes)


def _is_unseen(mounted: MountedImage | None, disks: Sequence[Disk]) -> bool:
    """Whether a mount may read a copy on a disk that gives no answer; one in a former directory is on any."""
    known = [disk.dir for disk in disks if not disk.is_unknown]
    return mounted is not None and mounted.copy_path != "" and len(known) < len(disks) and mounted.disk not in known


def plan(seen: Sketch) -> planner.Plan:
    """Plan for a sketched node."""
    return planner.plan_cards(*cards_of(seen))


def plan_eviction(seen: Sketch, dataset: str, reason: str) -> Evict:
    """Plan the eviction that an administrator asks for."""
    return planner.plan_eviction(*cards_of(seen), dataset, reason)
