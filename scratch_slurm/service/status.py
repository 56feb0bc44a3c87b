"""What the daemon says of itself: pure functions of the cards, and of what was planned from them."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from scratch_slurm import __version__
from scratch_slurm.domain.about import NOTHING_SAID
from scratch_slurm.domain.actions import ActionKind, Mount
from scratch_slurm.domain.dataset import Card, Disk
from scratch_slurm.domain.messages import DatasetState, DatasetStatus, DiskStatus, NodeStatus
from scratch_slurm.domain.model import Backing, Permissions
from scratch_slurm.domain.names import nearest_hint
from scratch_slurm.domain.reasons import Problem
from scratch_slurm.domain.shares import most_bytes
from scratch_slurm.domain.throughput import RECENT_S, ReadCounter
from scratch_slurm.service.parts import Parts
from scratch_slurm.service.rounds import Snapshot
from scratch_slurm.service.slurm_side import SlurmSide

Judge = Callable[[Permissions | None], bool | None]
"""Whether somebody may read a file with these permissions; None: they, or it, are not known (yet)."""

_HANDS_CHANGE = (ActionKind.MOUNT, ActionKind.REPLACE, ActionKind.UNCOVER, ActionKind.UNMOUNT, ActionKind.EVICT)


def _may_read_all(permissions: Permissions | None) -> bool:
    """Judge as for root."""
    return True


def dataset_status(
    card: Card, problem: Problem | None, mount_dir: Path, now: float, recent_bytes_per_s: float = 0.0
) -> DatasetStatus:
    """Tell one dataset's status.

    Args:
        problem: what the plan says is in its way.
        now: monotonic seconds.
        recent_bytes_per_s: how it was read in the last half minute.
    """
    image, mounted, staging, reads = card.image, card.mounted, card.staging, card.reads
    rate = staging.bytes_per_s(now) if staging else 0.0
    left_bytes = staging.image.size_bytes - staging.bytes_done if staging else 0
    cached_bytes = sum(copy.size_bytes for copy in card.copies)
    return DatasetStatus(
        name=card.name,
        state=_state(card, problem),
        size_bytes=image.size_bytes if image else cached_bytes,
        cached_bytes=cached_bytes,
        staged_bytes=staging.bytes_done if staging else 0,
        stage_bytes_per_s=rate,
        eta_s=left_bytes / rate if rate > 0 else None,
        use_count=sum(claim.is_job for claim in card.counting),
        holders=tuple(str(claim.holder) for claim in card.counting),
        read_bytes_per_s=recent_bytes_per_s,
        source_read_bytes=reads.source_bytes,
        cache_read_bytes=reads.cache_bytes,
        path=str(mount_dir / card.name) if mounted else "",
        problem=_word_problems(card, problem, mount_dir, now),
        # What is mounted may be just that, as long as its tag is not read.
        update_waiting=bool(image and mounted and mounted.generation_id not in (None, image.generation.id)),
        disks=tuple(sorted({copy.disk for copy in card.copies})),
        about=image.about if image else NOTHING_SAID,
    )


def _state(card: Card, problem: Problem | None) -> DatasetState:
    if not card.mounted:
        return DatasetState.UNMOUNTED if card.image or card.skipped or card.copies else DatasetState.UNKNOWN
    if card.mounted.backing is Backing.CACHE:
        return DatasetState.CACHED
    if card.staging is not None:
        return DatasetState.QUEUED if card.staging.started_at is None else DatasetState.STAGING
    is_queued = card.is_pinned and card.image and not _is_hopeless(card, problem)
    return DatasetState.QUEUED if is_queued else DatasetState.SOURCE


def _is_hopeless(card: Card, problem: Problem | None) -> bool:
    """Whether waiting does not bring its copy."""
    stage = card.failures.get(ActionKind.STAGE)
    return (problem is not None and not problem.waiting_helps) or (stage is not None and stage.is_for_good)


def _word_problems(card: Card, problem: Problem | None, mount_dir: Path, now: float) -> str:
    texts = [word_failures(card, now)]
    if card.under_way and card.under_way.hanging_since is not None:
        since = time.strftime("%H:%M:%S", time.localtime(card.under_way.hanging_since))
        texts.append(f"gives no answer since {since}")
    if problem is not None:
        texts.append(problem.text)
    if card.skipped is not None:
        texts.append(f"skipped: {card.skipped.file_name} {card.skipped.reason}")
    if card.is_foreign:
        texts.append(f"{mount_dir / card.name} carries a mount that is not ours; it is left alone")
    return _join(texts)


def word_failures(card: Card, now: float) -> str:
    """Word what failed with a dataset for people; empty when nothing did.

    Args:
        now: monotonic seconds.
    """
    texts = []
    for kind, failure in card.failures.items():
        if not failure.kept:
            again = f"next try in {max(0.0, failure.retry_at - now):.0f} s"
            if failure.is_for_good:
                again = "not tried again before the image or its manifest is another one"
            texts.append(f"{kind} failed: {failure.message}; {again}")
    return _join(texts)


def _join(texts: Iterable[str]) -> str:
    return "; ".join(text for text in texts if text)


@dataclass(frozen=True)
class StatusView:
    """The statuses of datasets at one moment."""

    cards: Mapping[str, Card]
    snapshot: Snapshot
    counters: Mapping[str, ReadCounter]
    mount_dir: Path
    now: float
    """Monotonic seconds."""

    def names(self, may_read: Judge = _may_read_all) -> list[str]:
        """All datasets that this node has something of, sorted; for root, also those that are only asked for."""
        is_root = may_read(None)
        return sorted(name for name, card in self.cards.items() if card.is_here or (is_root and card.is_pinned))

    def dataset(self, name: str, may_read: Judge = _may_read_all) -> DatasetStatus:
        """Tell one dataset's status; an unknown name gives the state UNKNOWN, with the nearest names.

        Args:
            may_read: for whom the nearest names are.
        """
        counter = self.counters.get(name)
        rate = counter.bytes_per_s(self.now, RECENT_S) if counter else 0.0
        told = dataset_status(self._card(name), self._problem(name), self.mount_dir, self.now, rate)
        unknown = self._word_unknown(name, told.state, may_read)
        return structs.replace(told, problem=_join((told.problem, unknown))) if unknown else told

    def dataset_for(self, name: str, may_read: Judge) -> DatasetStatus:
        """Tell one dataset's status to somebody: of one that is private, only that it exists."""
        if not self.permits(name, may_read):
            return DatasetStatus(name, DatasetState.PRIVATE)
        told = self.dataset(name, may_read)
        if self._card(name).is_here or may_read(None):
            return told
        return structs.replace(told, use_count=0, holders=())

    def permits(self, name: str, may_read: Judge) -> bool | None:
        """Whether somebody may be told of a dataset; None: it is not known (yet). A name of none hides nothing."""
        card = self._card(name)
        return not card.is_here or may_read(card.permissions)

    def has_readers(self, name: str) -> bool:
        """Whether it is known who may read a dataset."""
        return self._card(name).permissions is not None

    def awaits_verdict(self, name: str, may_read: Judge) -> bool:
        """Whether it may soon be known that somebody may read a dataset; not of an image that cannot be looked at."""
        undecided = self.permits(name, may_read) is None
        return undecided and (self.has_readers(name) or self._card(name).skipped is None)

    def is_settled(self, name: str, asked: Iterable[str] = ()) -> bool:
        """Whether waiting longer changes nothing that can be foreseen: cached, or beyond what waiting mends.

        Args:
            asked: what is waited for together. Without room, and with more of it than there can ever be, the rest waits
                for itself.
        """
        card, problem = self._card(name), self._problem(name)
        if card.staging is not None:
            return False
        if self._is_untold(card):
            return not self.snapshot.catalog.awaited and not self._is_to_be_mounted(name)
        if _state(card, problem) in (DatasetState.CACHED, DatasetState.UNKNOWN):
            return True
        if problem is not None and self._exceed_all_room(asked):
            return True
        failed = any(not failure.kept for failure in card.failures.values())
        return failed or _is_hopeless(card, problem) or card.skipped is not None or card.is_foreign

    def is_changing_hands(self, name: str) -> bool:
        """Whether its mount is being made, replaced or taken away, or its cached image: a job must not start now."""
        card = self._card(name)
        if self._is_untold(card) and self.snapshot.catalog.awaited:
            return True
        return self._is_to_be_mounted(name) or (card.action is not None and card.action.kind in _HANDS_CHANGE)

    def _card(self, name: str) -> Card:
        return self.cards.get(name) or Card(name, is_listed=self.snapshot.catalog.complete)

    def _problem(self, name: str) -> Problem | None:
        return self.snapshot.plan.problems.get(name)

    def _word_unknown(self, name: str, state: DatasetState, may_read: Judge) -> str:
        if self._is_untold(self._card(name)):
            return f"not known yet: {self.snapshot.catalog.doubt}"
        if state is not DatasetState.UNKNOWN:
            return ""
        near = nearest_hint(
            name, (other for other, card in self.cards.items() if card.image and self.permits(other, may_read))
        )
        return "no such dataset on this node" + (f"; {near}" if near else "")

    def _exceed_all_room(self, names: Iterable[str]) -> bool:
        statuses = (dataset_status(self._card(name), None, self.mount_dir, self.now) for name in names)
        room_bytes = sum(most_bytes(disk.space) for disk in self.snapshot.node.disks)
        return sum(told.cached_bytes or told.size_bytes for told in statuses) > room_bytes

    def _is_untold(self, card: Card) -> bool:
        """Whether the source may have it for all that is known, and it is not served."""
        catalog, is_known = self.snapshot.catalog, card.image or card.skipped or card.mounted
        return not is_known and bool(catalog.doubt or not catalog.complete)

    def _is_to_be_mounted(self, name: str) -> bool:
        decision = self.snapshot.plan.decisions.get(name)
        return decision is not None and isinstance(decision.move, Mount)


def view(parts: Parts) -> StatusView | None:
    """Look at the latest round; None before the first one."""
    rounds = parts.rounds
    if rounds.snapshot is None:
        return None
    return StatusView(
        rounds.cards, rounds.snapshot, rounds.counters.by_dataset, parts.config.mount_dir, time.monotonic()
    )


def node_status(parts: Parts, pid: int, may_read: Judge, *, slurm: SlurmSide) -> NodeStatus:
    """Tell the whole node's status to somebody."""
    config, now_view, rounds = parts.config, view(parts), parts.rounds
    disks = disk_statuses(rounds.snapshot.node.disks) if rounds.snapshot else ()
    return NodeStatus(
        node=slurm.node,
        version=__version__,
        pid=pid,
        started_at=rounds.started_at,
        source_dir=str(config.source_dir),
        cache_dir=str(config.cache_dir),
        mount_dir=str(config.mount_dir),
        capacity_bytes=sum(disk.capacity_bytes for disk in disks),
        reserve_bytes=sum(disk.reserve_bytes for disk in disks),
        used_bytes=sum(disk.used_bytes for disk in disks),
        free_bytes=sum(disk.free_bytes for disk in disks),
        source_read_bytes=sum(card.reads.source_bytes for card in rounds.cards.values()),
        cache_read_bytes=sum(card.reads.cache_bytes for card in rounds.cards.values()),
        problem=parts.problem,
        datasets=tuple(now_view.dataset_for(name, may_read) for name in now_view.names(may_read)) if now_view else (),
        slurm=slurm.describe(),
        warnings=parts.hands.warnings,
        disks=disks,
    )


_SHUNNED = "a copy to it failed or gave no answer; see the log"
"""Without more words: those of the failure name the dataset, which may be private."""


def disk_statuses(disks: Iterable[Disk]) -> tuple[DiskStatus, ...]:
    """Tell of each disk what room it has. Pure."""
    return tuple(
        DiskStatus(
            disk.dir,
            capacity_bytes=disk.space.capacity_bytes,
            reserve_bytes=disk.space.reserve_bytes,
            used_bytes=disk.space.used_bytes,
            free_bytes=disk.space.free_bytes,
            problem=disk.problem or (_SHUNNED if disk.shunned_until else ""),
        )
        for disk in disks
    )
