"""A dataset's card: all that is known of it now, in one value. Facts only, each in one place; nothing here decides.

The daemon makes a new card where something changed; one that did not change is the same object. What concerns the
whole node is in `Node`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import structs

from scratch_slurm.domain import backoff
from scratch_slurm.domain.actions import Action, ActionKind, Evict, StagedImage
from scratch_slurm.domain.claims import Claim, Standing
from scratch_slurm.domain.model import CachedImage, MountedImage, Permissions, SkippedImage, SourceImage, Space
from scratch_slurm.domain.sight import Learned, Seen

_FIRST_RETRY_S = 5.0
_LAST_RETRY_S = 600.0
_COPY_OVERHEAD_BYTES = 3 * 4096
"""The rest of an image's last block, the first block of its journal, and one of the file system's own."""
_NOTHING_SEEN = Seen()
_NOTHING_LEARNED = Learned()


def most_copy_bytes(size_bytes: int) -> int:
    """What an image of that length, and the journal of its copy, take on the disk at most."""
    return size_bytes + _COPY_OVERHEAD_BYTES + journal_bytes(size_bytes)


def journal_bytes(size_bytes: int) -> int:
    """What a copy's journal takes at most: a line of about 110 bytes for each 64 MiB."""
    return size_bytes >> 19


class Reads(msgspec.Struct, frozen=True):
    """How a dataset is read, whatever serves the reads. A streak is a time of reads without a pause of a whole window.

    The values of nobody reading it are the defaults.
    """

    bytes_per_s: float = 0.0
    """Over the window, or over the streak where that is younger; 0: nobody reads it."""
    streak_s: float = 0.0
    """For how long the streak goes on; 0: it is not read now."""
    streak_bytes: float = math.inf
    """What was read in it; infinite: not known, and no limit to what is trusted."""
    last_at: float = 0.0
    """Monotonic seconds of the latest read, or of the latest moment with a pin; 0: never."""
    source_bytes: int = 0
    """Reads that the source served, as long as the daemon counts."""
    cache_bytes: int = 0
    """Reads that the cache served: what the slow storage was saved."""


class Failure(msgspec.Struct, frozen=True):
    """The latest failure of one kind of action on one dataset."""

    message: str
    attempts: int
    retry_at: float
    """Monotonic seconds; infinite: not before another image or manifest is in the source."""
    generation_id: str | None = None
    """Of the source's image that it was about; None when it was about none."""
    kept: bool = False
    """Nothing is wrong: a pin kept the dataset as it is. It is tried again, and nobody is told of a failure."""

    @property
    def is_for_good(self) -> bool:
        """Whether no other try with this generation can succeed."""
        return math.isinf(self.retry_at)


def fail(
    before: Failure | None, message: str, now: float, generation_id: str | None = None, *, for_good: bool = False
) -> Failure:
    """Make a failure; the next try is twice as far away as this one was, ten minutes at most.

    Args:
        before: the latest failure of that kind, since which none succeeded.
        now: monotonic seconds.
        for_good: no other try with this generation can succeed.
    """
    attempts = before.attempts + 1 if before else 1
    pause_s = math.inf if for_good else backoff.pause_s(attempts, _FIRST_RETRY_S, _LAST_RETRY_S)
    return Failure(message, attempts, now + pause_s, generation_id)


class Staging(msgspec.Struct, frozen=True):
    """How far a copy under way is."""

    image: SourceImage
    disk: str = ""
    """The cache directory that it is made in."""
    started_at: float | None = None
    """Monotonic seconds; None while it waits for its turn."""
    bytes_done: int = 0
    bytes_at_start: int | None = None
    """What an interrupted copy had already, so that the rate is that of this copy."""
    phase: str = "queued"

    def progress(self, bytes_done: int, phase: str) -> "Staging":
        """Take a worker's word. A copy that is read again to be verified is all there: its count begins anew."""
        at_start = bytes_done if self.bytes_at_start is None and phase == "copying" else self.bytes_at_start
        done = self.image.size_bytes if phase == "verifying" else bytes_done
        return structs.replace(self, bytes_done=done, bytes_at_start=at_start, phase=phase)

    def bytes_per_s(self, now: float) -> float:
        """Its rate, 0 while it does not copy. Args: now: monotonic seconds."""
        if self.started_at is None or self.bytes_at_start is None or now <= self.started_at or self.phase != "copying":
            return 0.0
        return max(0, self.bytes_done - self.bytes_at_start) / (now - self.started_at)


class UnderWay(msgspec.Struct, frozen=True):
    """What is being done with a dataset. Nothing else may begin."""

    action: Action | None = None
    """None: it is only looked at."""
    hanging_since: float | None = None
    """Epoch seconds since when it gives no answer; None: it goes on."""
    staging: Staging | None = None
    """Of a copy."""


class Card(msgspec.Struct, frozen=True):
    """One dataset, as far as this node knows it."""

    name: str

    # What the fields below were made from.
    seen: Seen = _NOTHING_SEEN
    """As of the latest round."""
    learned: Learned = _NOTHING_LEARNED

    # What the source has.
    image: SourceImage | None = None
    """As it was last seen there; None also where it may not be served: see `skipped`."""
    recalled: SourceImage | None = None
    """What an earlier listing showed, where the source cannot tell now. It says nothing of what the source holds."""
    skipped: SkippedImage | None = None
    """A file of this name that is not served, and why."""
    is_listed: bool = True
    """Whether the source has been listed whole: what it lacks then is gone."""
    revoked: str = ""
    """Why its mount must go at once: it lets in people who may not read the image. Empty: it need not."""
    permissions: Permissions | None = None
    """Who may read it; None: not known, and so root alone."""

    # What the kernel and the disks have.
    mounted: MountedImage | None = None
    """Our mount, as its readers meet it."""
    covered: MountedImage | None = None
    """Our mount directly beneath it, left by a change that was cut short."""
    is_foreign: bool = False
    """The mount point carries a mount that is not ours: it is left alone."""
    is_copy_unseen: bool = False
    """Its mount reads a copy on a disk that gives no answer, or could not be asked: it may well be there."""
    fault: str = ""
    """Why the mount, or the copy below it, cannot be read; empty: it is well, as far as was seen."""
    copies: tuple[CachedImage, ...] = ()
    """Whole ones, each of which may be bad."""
    has_unseen_copies: bool = False
    """A disk that gives no answer now had a copy of it."""
    parts: tuple[StagedImage, ...] = ()
    """Copies that are not whole: under way, or left by an earlier daemon."""

    # What people want of it.
    claims: tuple[Claim, ...] = ()
    """In the order of asking."""
    are_claims_known: bool = True
    """False: the ledger cannot be read, `claims` are those that were known last, and anybody may pin it."""
    reads: Reads = Reads()
    held_off_until: float = 0.0
    """Monotonic seconds. The administrator evicted it: until then only a pin brings it back, not its throughput."""

    # What was tried with it.
    under_way: UnderWay | None = None
    failures: Mapping[ActionKind, Failure] = {}
    """By what failed. An action that failed is not tried before its `retry_at`."""

    @property
    def is_here(self) -> bool:
        """Whether this node has anything of it."""
        return bool(self.image or self.skipped or self.mounted or self.copies or self.has_unseen_copies)

    @property
    def is_gone(self) -> bool:
        """Whether the source certainly has no such image: a listing that failed, or a bad image, is no proof."""
        return self.is_listed and self.image is None and self.skipped is None

    @property
    def counting(self) -> tuple[Claim, ...]:
        """The claims that count."""
        return tuple(claim for claim in self.claims if claim.counts)

    @property
    def is_pinned(self) -> bool:
        return any(claim.counts for claim in self.claims)

    @property
    def is_undecided(self) -> bool:
        """Whether there is a claim of which it is not known whether it counts: then it is left as it is."""
        return any(claim.standing is Standing.WAITS for claim in self.claims)

    @property
    def may_be_pinned(self) -> bool:
        """Whether somebody pins it, or might: unknown is not gone."""
        return not self.are_claims_known or any(claim.stands for claim in self.claims)

    @property
    def refused(self) -> frozenset[str]:
        """The holders whose claims keep nothing."""
        return frozenset(str(claim.holder) for claim in self.claims if not claim.stands)

    @property
    def action(self) -> Action | None:
        """What is being done with it."""
        return self.under_way.action if self.under_way else None

    @property
    def staging(self) -> Staging | None:
        """Its copy under way, or waiting for its turn."""
        return self.under_way.staging if self.under_way else None

    @property
    def is_leaving(self) -> bool:
        """Whether its eviction is under way."""
        return isinstance(self.action, Evict)

    def is_off(self, kind: ActionKind, now: float) -> bool:
        """Whether something is not tried now: it failed a moment ago, or the administrator would not have it.

        Args:
            now: monotonic seconds.
        """
        failure = self.failures.get(kind)
        if failure is not None and failure.retry_at > now:
            return True
        return kind is ActionKind.STAGE and self.held_off_until > now and not self.claims

    def may(self, kind: ActionKind, now: float) -> bool:
        """Whether something may begin with it now: nothing is under way, its mount is ours, and it is not backed off.

        Args:
            now: monotonic seconds.
        """
        return self.under_way is None and not self.is_foreign and not self.is_off(kind, now)

    def copy_of(self, generation_id: str | None) -> CachedImage | None:
        """Find a copy of a generation that is not known to be bad; of several the one that is read."""
        found = None
        for copy in self.copies:
            if copy.generation_id == generation_id and not copy.bad:
                if self.mounted and self.mounted.reads(copy):
                    return copy
                found = found or copy
        return found


@dataclass(frozen=True)
class Disk:
    """A disk with a cache directory, for the plan."""

    dir: str
    """The cache directory; what lies in it names it: `CachedImage.disk`."""
    space: Space
    leaving_bytes: int = 0
    """What evictions under way will free; one that hangs frees nothing that could be foreseen."""
    problem: str = ""
    """Why it cannot be used, and so holds nothing; empty when it can."""
    is_unknown: bool = False
    """It gives no answer, or could not be asked: what is read from it may well be there; nothing is tried with it."""
    shunned_until: float = 0.0
    """Monotonic seconds. A copy to it failed by its fault: until then other disks go first."""


@dataclass(frozen=True)
class Node:
    """What a plan depends on beside the cards."""

    disks: Sequence[Disk]
    horizon_s: float = 1800.0
    """How far ahead read rates are trusted, at least."""
    overhead_bytes: int = 0
    """What a copy may take on the disk beyond its length: part of a block, and its journal."""
    max_pinned_bytes: int | None = None
    """What the jobs of one user may pin together; None: as much as they like."""
    now: float = 0.0
    """Monotonic seconds. Only what was put off is compared with it."""
