"""Join what was read now with what is remembered: the observation that a plan is made from. No I/O, no clock."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from msgspec import structs

from scratch_slurm.domain import access
from scratch_slurm.domain.actions import Evict, StagedImage
from scratch_slurm.domain.config import CacheDisk, Config, resolve_size
from scratch_slurm.domain.dataset import Disk
from scratch_slurm.domain.model import CachedImage, Catalog, MountedImage, Pin, Space
from scratch_slurm.domain.observation import Observation
from scratch_slurm.domain.throughput import ReadCounter, read_for, reading_bytes, reading_rates, usual_reading_s
from scratch_slurm.service.memory import Memory
from scratch_slurm.service.observe import DiskReading, Reading

_OVERHEAD_BYTES = 3 * 4096
"""The rest of an image's last block, the first block of its journal, and one of the file system's own."""


FormerIds = Mapping[tuple[str, str], str]
"""(dataset, an id that its image had before: without a manifest, or for an earlier release) -> the one it has now."""


def former_ids(catalog: Catalog) -> FormerIds:
    """Find what the images of the source may have been called when copies and mounts were made of them."""
    generations = {name: image.generation for name, image in {**catalog.recalled, **catalog.images}.items()}
    return {(name, former): each.id for name, each in generations.items() for former in each.former_ids}


def take_over(reading: Reading, former: FormerIds) -> Reading:
    """Let copies that were made under a former id count as copies of their images.

    Args:
        former: as `former_ids` gives it.
    """
    if not any((copy.dataset, copy.generation_id) in former for copy in reading.images):
        return reading

    def take(copy: CachedImage) -> CachedImage:
        return structs.replace(copy, generation_id=former.get((copy.dataset, copy.generation_id), copy.generation_id))

    disks = tuple(
        replace(disk, contents=replace(disk.contents, images=tuple(map(take, disk.contents.images))))
        for disk in reading.disks
    )
    return replace(reading, disks=disks)


def find_ours(reading: Reading, memory: Memory, former: FormerIds) -> dict[str, MountedImage]:
    """Find the mounts that are ours, or whose devices have not told yet.

    Args:
        former: as `former_ids` gives it.
    """
    ours, generations = {}, memory.generations
    for mount in reading.mounted.values():
        if mount.device is not None:
            generation_id = generations.get((mount.dataset, mount.mount_id, mount.device), "")
            new_id = former.get((mount.dataset, generation_id)) if generation_id else None
            if generation_id and new_id:
                if generation_id in memory.roots:
                    memory.roots.setdefault(new_id, memory.roots[generation_id])
                generation_id = new_id
            if generation_id is not None:
                ours[mount.dataset] = MountedImage(
                    mount.dataset, mount.device, mount.backing, mount.backing_path, generation_id or None
                )
    return ours


def find_covered(reading: Reading, memory: Memory, former: FormerIds) -> dict[str, MountedImage]:
    """Find the mounts of ours that lie beneath what is seen; those whose devices have not told yet are among them."""
    return find_ours(replace(reading, mounted=reading.covered), memory, former)


def count_reads(memory: Memory, reading: Reading, ours: dict[str, MountedImage], period_s: float, now: float) -> None:
    """Take the devices' counters into the memory.

    Args:
        now: monotonic seconds of the reading.
    """
    counters = memory.counters
    for dataset, mounted in ours.items():
        counter = counters.get(dataset)
        if counter is None:
            counter = counters[dataset] = ReadCounter(period_s)
        seen = reading.mounted[dataset]
        # A device's counter goes on when it is bound anew, so the mount is part of its name.
        if counter.sample(now, f"{mounted.device}@{seen.mount_id}", seen.read_bytes, mounted.backing):
            memory.last_used_at[dataset] = now
    for gone in counters.keys() - ours.keys():
        del counters[gone]


def screen(catalog: Catalog, ours: dict[str, MountedImage], reading: Reading, memory: Memory) -> Catalog:
    """Take out what may not be served, and remember who may read what."""
    memory.forget_other_images(catalog.images)
    memory.forget_other_roots(catalog.images, ours)
    catalog = access.screen(catalog, ours, memory.roots)
    cached = {copy.dataset for copy in reading.images}
    memory.readers = access.find_readers(catalog, ours, cached, memory.roots, memory.readers)
    return catalog


def join(
    reading: Reading,
    catalog: Catalog,
    ours: dict[str, MountedImage],
    memory: Memory,
    config: Config,
    *,
    covered: Mapping[str, MountedImage],
    pins: tuple[Pin, ...],
    undecided: Set[str],
    refused: tuple[Pin, ...] = (),
    busy: Set[str],
    now: float,
) -> Observation:
    """Make the observation of one round.

    Args:
        catalog: as `screen` gives it.
        covered: as `find_covered` gives it.
        pins: those that count, in the order of asking.
        undecided: datasets with other pins, of which it is not known whether they count.
        refused: pins that do not count, and are taken back.
        busy: datasets with something under way.
        now: monotonic seconds, as the samples of `memory.counters` have them.
    """
    evictions = {name: action for name, action in memory.running.items() if isinstance(action, Evict)}
    disks = find_disks(reading, memory, config)
    largest_bytes = max((image.size_bytes for image in catalog.images.values()), default=0)
    return Observation(
        catalog=catalog,
        mounted=ours,
        cached=tuple(image for disk in reading.disks if not disk.unknown for image in disk.contents.images),
        staged=_staged(reading, memory),
        pins=pins,
        undecided=frozenset(undecided),
        refused=refused,
        space=disks[0].space,
        disks=disks,
        last_used_at=dict(memory.last_used_at),
        busy=frozenset(busy),
        backing_off=memory.backing_off(now, {pin.dataset for pin in reading.pins}),
        unwell={
            dataset: problem
            for (dataset, mount_id, _), problem in {**memory.unwell, **memory.cut_off}.items()
            if dataset in ours and reading.mounted[dataset].mount_id == mount_id
        },
        bad_copies=dict(memory.bad_copies),
        max_pinned_bytes=_max_pinned_bytes(config, disks),
        cache_problem=disks[0].problem,
        covered={dataset: mount for dataset, mount in covered.items() if dataset in ours},
        cache_unknown=disks[0].is_unknown,
        pins_problem=reading.pins_problem,
        foreign=frozenset(reading.mounted.keys() - ours.keys()),
        leaving=frozenset(evictions),
        bytes_per_s=reading_rates(memory.counters, now, config.period_s),
        streak_s=read_for(memory.counters, now),
        streak_bytes=reading_bytes(memory.counters, now),
        horizon_s=usual_reading_s(memory.counters, now, config.horizon_s),
        overhead_bytes=_OVERHEAD_BYTES + _journal_bytes(largest_bytes),
    )


def _staged(reading: Reading, memory: Memory) -> tuple[StagedImage, ...]:
    under_way = [
        StagedImage(
            dataset, copy.image.generation.id, _most_bytes(copy.image.size_bytes), True, copy.bytes_done, copy.disk
        )
        for dataset, copy in memory.copies.items()
    ]
    left_over = [
        StagedImage(partial.dataset, partial.generation_id, partial.size_bytes, False, disk=disk.dir)
        for disk in reading.disks
        for partial in disk.contents.partials
        if partial.dataset not in memory.copies and not disk.unknown
    ]
    return (*under_way, *left_over)


def find_disks(reading: Reading, memory: Memory, config: Config) -> tuple[Disk, ...]:
    """Find what room each disk has, in the order of the configuration."""
    by_dir = {str(disk.dir): disk for disk in config.disks}
    return tuple(
        Disk(
            each.dir,
            _space(each, by_dir[each.dir], reading.held_bytes.get(each.dir, 0), memory),
            _leaving_bytes(each.dir, memory),
            each.problem,
            each.unknown,
        )
        for each in reading.disks
    )


def _leaving_bytes(cache_dir: str, memory: Memory) -> int:
    """What hangs frees nothing that could be foreseen: nobody waits for its room."""
    return sum(
        action.image.size_bytes
        for name, action in memory.running.items()
        if isinstance(action, Evict) and action.image.disk == cache_dir and name not in memory.hanging_since
    )


def _space(seen: DiskReading, disk: CacheDisk, held_bytes: int, memory: Memory) -> Space:
    """Count what copies under way will still take as taken already: the capacity holds at every moment."""
    contents = seen.contents
    on_disk = {(part.dataset, part.generation_id): part.size_bytes for part in contents.partials}
    # A copy is under way until its end is recorded, some time after it was published.
    on_disk |= {(image.dataset, image.generation_id): image.size_bytes for image in contents.images}
    coming_bytes = sum(
        max(0, _most_bytes(copy.image.size_bytes) - on_disk.get((dataset, copy.image.generation.id), 0))
        for dataset, copy in memory.copies.items()
        if copy.disk == seen.dir
    )
    return Space(
        capacity_bytes=resolve_size(disk.capacity, whole_bytes=contents.whole_bytes),
        reserve_bytes=resolve_size(disk.reserve, whole_bytes=contents.whole_bytes),
        used_bytes=contents.used_bytes + held_bytes + coming_bytes,
        free_bytes=contents.free_bytes - coming_bytes,
        whole_bytes=contents.whole_bytes,
    )


def _max_pinned_bytes(config: Config, disks: Sequence[Disk]) -> int | None:
    if not config.max_pinned:
        return None
    return resolve_size(config.max_pinned, whole_bytes=sum(disk.space.capacity_bytes for disk in disks))


def _most_bytes(size_bytes: int) -> int:
    """What an image and the journal of its copy take on the disk at most."""
    return size_bytes + _OVERHEAD_BYTES + _journal_bytes(size_bytes)


def _journal_bytes(size_bytes: int) -> int:
    return size_bytes >> 19  # a line of about 110 bytes for each 64 MiB
