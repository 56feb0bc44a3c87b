"""The room on the disks: what is used, what copies under way will still take, what evictions will free. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from scratch_slurm.domain.actions import Evict
from scratch_slurm.domain.config import CacheDisk, Config, resolve_size
from scratch_slurm.domain.dataset import Card, Disk, Staging, most_copy_bytes
from scratch_slurm.domain.model import SourceImage, Space
from scratch_slurm.service.observe import DiskReading, Reading


def find_disks(
    reading: Reading, cards: Iterable[Card], config: Config, shunned_until: Mapping[str, float] = {}
) -> tuple[Disk, ...]:
    """Find what room each disk has, in the order of the configuration.

    Args:
        cards: with what is under way.
        shunned_until: cache directory -> until when other disks go first, in monotonic seconds; missing: it is well.
    """
    busy = [card for card in cards if card.under_way]
    by_dir = {str(disk.dir): disk for disk in config.disks}
    return tuple(
        Disk(
            each.dir,
            _space(each, by_dir[each.dir], reading.held_bytes.get(each.dir, 0), [card.staging for card in busy]),
            _leaving_bytes(each.dir, busy),
            each.problem,
            each.unknown,
            shunned_until.get(each.dir, 0.0),
        )
        for each in reading.disks
    )


def find_overhead_bytes(images: Iterable[SourceImage]) -> int:
    """Tell what a copy of any of these images takes at most beyond the image's length."""
    largest_bytes = max((image.size_bytes for image in images), default=0)
    return most_copy_bytes(largest_bytes) - largest_bytes


def find_max_pinned_bytes(config: Config, disks: Sequence[Disk]) -> int | None:
    """Tell what the jobs of one user may pin together; None: as much as they like."""
    if not config.max_pinned:
        return None
    return resolve_size(config.max_pinned, whole_bytes=sum(disk.space.capacity_bytes for disk in disks))


def _leaving_bytes(cache_dir: str, busy: Iterable[Card]) -> int:
    """What hangs frees nothing that could be foreseen: nobody waits for its room."""
    return sum(
        card.action.image.size_bytes
        for card in busy
        if isinstance(card.action, Evict)
        and card.action.image.disk == cache_dir
        and card.under_way
        and card.under_way.hanging_since is None
    )


def _space(seen: DiskReading, disk: CacheDisk, held_bytes: int, stagings: Iterable[Staging | None]) -> Space:
    """Count what copies under way will still take as taken already: the capacity holds at every moment."""
    contents = seen.contents
    on_disk = {(part.dataset, part.generation_id): part.size_bytes for part in contents.partials}
    # A copy is under way until its end is recorded, some time after it was published.
    on_disk |= {(image.dataset, image.generation_id): image.size_bytes for image in contents.images}
    coming_bytes = sum(
        max(0, most_copy_bytes(each.image.size_bytes) - on_disk.get((each.image.dataset, each.image.generation.id), 0))
        for each in stagings
        if each is not None and each.disk == seen.dir
    )
    return Space(
        capacity_bytes=resolve_size(disk.capacity, whole_bytes=contents.whole_bytes),
        reserve_bytes=resolve_size(disk.reserve, whole_bytes=contents.whole_bytes),
        used_bytes=contents.used_bytes + held_bytes + coming_bytes,
        free_bytes=contents.free_bytes - coming_bytes,
        whole_bytes=contents.whole_bytes,
    )
