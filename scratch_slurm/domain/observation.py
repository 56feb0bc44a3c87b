"""What a plan is made from. Values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scratch_slurm.domain.actions import ActionKind, StagedImage
from scratch_slurm.domain.model import CachedImage, Catalog, MountedImage, Pin, Space


@dataclass(frozen=True)
class Observation:
    """Everything that a plan depends on."""

    catalog: Catalog
    mounted: Mapping[str, MountedImage]
    cached: Sequence[CachedImage]
    staged: Sequence[StagedImage]
    pins: Sequence[Pin]
    """In the order of asking."""
    space: Space
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
    read_for_s: Mapping[str, float] = field(default_factory=dict)
    """Dataset -> for how long it has been read without a pause of a whole window."""
    reading_bytes: Mapping[str, float] = field(default_factory=dict)
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

    def holders(self, dataset: str) -> list[str]:
        """Name who pins a dataset, in the order of asking."""
        return [pin.holder for pin in self.pins if pin.dataset == dataset]
