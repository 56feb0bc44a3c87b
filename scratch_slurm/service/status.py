"""What the daemon says of itself: pure functions of the latest round and of what is remembered."""

import time
from collections.abc import Callable, Iterable

from msgspec import structs

from scratch_slurm import __version__
from scratch_slurm.domain.actions import ActionKind, Mount
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.dataset import Disk
from scratch_slurm.domain.messages import DatasetState, DatasetStatus, DiskStatus, NodeStatus
from scratch_slurm.domain.model import Backing, Permissions, Pin
from scratch_slurm.domain.names import nearest_hint
from scratch_slurm.domain.shares import most_bytes
from scratch_slurm.domain.throughput import RECENT_S, rates
from scratch_slurm.service.memory import Memory
from scratch_slurm.service.parts import Parts
from scratch_slurm.service.rounds import Snapshot
from scratch_slurm.service.slurm_side import SlurmSide

Judge = Callable[[Permissions | None], bool | None]
"""Whether somebody may read a file with these permissions; None: they, or it, are not known (yet)."""


def _may_read_all(permissions: Permissions | None) -> bool:
    """Judge as for root."""
    return True


class StatusView:
    """The statuses of datasets at one moment.

    Args:
        monotonic: monotonic seconds.
    """

    def __init__(self, config: Config, memory: Memory, snapshot: Snapshot, *, monotonic: float) -> None:
        self._config = config
        self._memory = memory
        self._seen = snapshot.seen
        self._plan = snapshot.plan
        self._monotonic = monotonic
        self._rates = rates(memory.counters, monotonic, RECENT_S)
        self._pins: dict[str, list[Pin]] = {}
        for pin in snapshot.seen.pins:
            self._pins.setdefault(pin.dataset, []).append(pin)
        self._cached_bytes: dict[str, int] = {}
        self._disks: dict[str, list[str]] = {}
        self._to_mount = {action.dataset for action in snapshot.plan.actions if isinstance(action, Mount)}
        for image in snapshot.seen.cached:
            self._cached_bytes[image.dataset] = self._cached_bytes.get(image.dataset, 0) + image.size_bytes
            self._disks.setdefault(image.dataset, []).append(image.disk)

    def names(self, may_read: Judge = _may_read_all) -> list[str]:
        """All datasets that this node has something of, sorted; for root, also those that are only asked for."""
        seen = self._seen
        here = {*seen.catalog.images, *seen.catalog.skipped, *seen.mounted, *self._cached_bytes}
        return sorted(here | self._pins.keys() if may_read(None) else here)

    def dataset(self, name: str, may_read: Judge = _may_read_all) -> DatasetStatus:
        """Tell one dataset's status; an unknown name gives the state UNKNOWN, with the nearest names.

        Args:
            may_read: for whom the nearest names are.
        """
        image = self._seen.catalog.images.get(name)
        mounted = self._seen.mounted.get(name)
        copy = self._memory.copies.get(name)
        counter = self._memory.counters.get(name)
        staging = copy is not None and copy.started_at is not None
        rate = copy.bytes_per_s(self._monotonic) if copy else 0.0
        left_bytes = copy.image.size_bytes - copy.bytes_done if copy else 0
        pins = self._pins.get(name, [])
        return DatasetStatus(
            name=name,
            state=self._state(name),
            size_bytes=image.size_bytes if image else self._cached_bytes.get(name, 0),
            cached_bytes=self._cached_bytes.get(name, 0),
            staged_bytes=copy.bytes_done if copy else 0,
            stage_bytes_per_s=rate,
            eta_s=left_bytes / rate if staging and rate > 0 else None,
            use_count=sum(pin.job_id is not None for pin in pins),
            holders=tuple(pin.holder for pin in pins),
            read_bytes_per_s=self._rates.get(name, 0.0),
            source_read_bytes=counter.source_bytes if counter else 0,
            cache_read_bytes=counter.cache_bytes if counter else 0,
            path=str(self._config.mount_dir / name) if mounted else "",
            problem=self._problem(name, may_read),
            # What is mounted may be just that, as long as its tag is not read.
            update_waiting=bool(image and mounted and mounted.generation_id not in (None, image.generation.id)),
            disks=tuple(sorted(set(self._disks.get(name, ())))),
        )

    def dataset_for(self, name: str, may_read: Judge) -> DatasetStatus:
        """Tell one dataset's status to somebody: of one that is private, only that it exists."""
        if not self.permits(name, may_read):
            return DatasetStatus(name, DatasetState.PRIVATE)
        told = self.dataset(name, may_read)
        if self._is_here(name) or may_read(None):
            return told
        return structs.replace(told, use_count=0, holders=())

    def permits(self, name: str, may_read: Judge) -> bool | None:
        """Whether somebody may be told of a dataset; None: it is not known (yet). A name of none hides nothing."""
        return not self._is_here(name) or may_read(self._memory.readers.get(name))

    def has_readers(self, name: str) -> bool:
        """Whether it is known who may read a dataset."""
        return name in self._memory.readers

    def awaits_verdict(self, name: str, may_read: Judge) -> bool:
        """Whether it may soon be known that somebody may read a dataset; not of an image that cannot be looked at."""
        undecided = self.permits(name, may_read) is None
        return undecided and (self.has_readers(name) or name not in self._seen.catalog.skipped)

    def _is_here(self, name: str) -> bool:
        seen = self._seen
        places = (seen.catalog.images, seen.catalog.skipped, seen.mounted, self._cached_bytes)
        return any(name in place for place in places)

    def _state(self, name: str) -> DatasetState:
        seen = self._seen
        mounted = seen.mounted.get(name)
        image = seen.catalog.images.get(name)
        if not mounted:
            known = image or name in seen.catalog.skipped or name in self._cached_bytes
            return DatasetState.UNMOUNTED if known else DatasetState.UNKNOWN
        if mounted.backing is Backing.CACHE:
            return DatasetState.CACHED
        copy = self._memory.copies.get(name)
        if copy is not None and copy.started_at is not None:
            return DatasetState.STAGING
        queued = copy is not None or (name in self._pins and image and not self._is_hopeless(name))
        return DatasetState.QUEUED if queued else DatasetState.SOURCE

    def _problem(self, name: str, may_read: Judge) -> str:
        texts = [self._memory.problem(name, self._monotonic)]
        if name in self._memory.hanging_since:
            since = time.strftime("%H:%M:%S", time.localtime(self._memory.hanging_since[name]))
            texts.append(f"gives no answer since {since}")
        if name in self._plan.problems:
            texts.append(self._plan.problems[name].text)
        if name in self._seen.catalog.skipped:
            skipped = self._seen.catalog.skipped[name]
            texts.append(f"skipped: {skipped.file_name} {skipped.reason}")
        if name in self._seen.foreign:
            texts.append(f"{self._config.mount_dir / name} carries a mount that is not ours; it is left alone")
        if self._is_untold(name):
            texts.append(f"not known yet: {self._seen.catalog.doubt}")
        elif self._state(name) is DatasetState.UNKNOWN:
            near = nearest_hint(name, (each for each in self._seen.catalog.images if self.permits(each, may_read)))
            texts.append("no such dataset on this node" + (f"; {near}" if near else ""))
        return "; ".join(text for text in texts if text)

    def is_settled(self, name: str, asked: Iterable[str] = ()) -> bool:
        """Whether waiting longer changes nothing that can be foreseen: cached, or beyond what waiting mends.

        Args:
            asked: what is waited for together. Without room, and with more of it than there can ever be, the rest waits
                for itself.
        """
        if name in self._memory.copies:
            return False
        if self._is_untold(name):
            return not self._seen.catalog.awaited and name not in self._to_mount
        if self._state(name) in (DatasetState.CACHED, DatasetState.UNKNOWN):
            return True
        failed = self._memory.failed(name)
        if name in self._plan.problems and self._exceed_all_room(asked):
            return True
        return failed or self._is_hopeless(name) or name in self._seen.catalog.skipped or name in self._seen.foreign

    def _exceed_all_room(self, names: Iterable[str]) -> bool:
        images, cached = self._seen.catalog.images, self._cached_bytes
        sizes = (cached.get(name) or (images[name].size_bytes if name in images else 0) for name in names)
        return sum(sizes) > most_bytes(self._seen.space)

    def _is_untold(self, name: str) -> bool:
        """Whether the source may have it for all that is known, and it is not served."""
        catalog = self._seen.catalog
        known = name in catalog.images or name in catalog.skipped or name in self._seen.mounted
        return not known and bool(catalog.doubt or not catalog.complete)

    def _is_hopeless(self, name: str) -> bool:
        problem = self._plan.problems.get(name)
        stage = self._memory.failures.get((name, ActionKind.STAGE))
        return (problem is not None and not problem.waiting_helps) or (stage is not None and stage.is_for_good)

    def is_changing_hands(self, name: str) -> bool:
        """Whether its mount is being made, replaced or taken away, or its cached image: a job must not start now."""
        if self._is_untold(name) and self._seen.catalog.awaited:
            return True
        action = self._memory.running.get(name)
        return name in self._to_mount or (
            action is not None and action.kind in ("mount", "replace", "uncover", "unmount", "evict")
        )


def view(parts: Parts) -> StatusView | None:
    """Look at the latest round; None before the first one."""
    rounds = parts.rounds
    if rounds.snapshot is None:
        return None
    return StatusView(parts.config, rounds.memory, rounds.snapshot, monotonic=time.monotonic())


def node_status(parts: Parts, pid: int, may_read: Judge, *, slurm: SlurmSide) -> NodeStatus:
    """Tell the whole node's status to somebody."""
    config, now_view, memory = parts.config, view(parts), parts.rounds.memory
    disks = disk_statuses(parts.rounds.snapshot.seen.disks) if parts.rounds.snapshot else ()
    return NodeStatus(
        node=slurm.node,
        version=__version__,
        pid=pid,
        started_at=memory.started_at,
        source_dir=str(config.source_dir),
        cache_dir=str(config.cache_dir),
        mount_dir=str(config.mount_dir),
        capacity_bytes=sum(disk.capacity_bytes for disk in disks),
        reserve_bytes=sum(disk.reserve_bytes for disk in disks),
        used_bytes=sum(disk.used_bytes for disk in disks),
        free_bytes=sum(disk.free_bytes for disk in disks),
        source_read_bytes=sum(counter.source_bytes for counter in memory.counters.values()),
        cache_read_bytes=sum(counter.cache_bytes for counter in memory.counters.values()),
        problem=parts.problem,
        datasets=tuple(now_view.dataset_for(name, may_read) for name in now_view.names(may_read)) if now_view else (),
        slurm=slurm.describe(),
        warnings=parts.hands.warnings,
        disks=disks,
    )


def disk_statuses(disks: Iterable[Disk]) -> tuple[DiskStatus, ...]:
    """Tell of each disk what room it has. Pure."""
    return tuple(
        DiskStatus(
            disk.dir,
            capacity_bytes=disk.space.capacity_bytes,
            reserve_bytes=disk.space.reserve_bytes,
            used_bytes=disk.space.used_bytes,
            free_bytes=disk.space.free_bytes,
            problem=disk.problem,
        )
        for disk in disks
    )
