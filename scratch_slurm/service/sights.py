"""Sort what a round saw by dataset. Pure."""

from collections.abc import Iterable

from scratch_slurm.domain.actions import StagedImage
from scratch_slurm.domain.model import CachedImage, Catalog
from scratch_slurm.domain.sight import Seen
from scratch_slurm.service.observe import Reading


def find_sights(reading: Reading, catalog: Catalog, others: Iterable[str] = ()) -> dict[str, Seen]:
    """Find what was seen of each dataset.

    Args:
        others: datasets to tell of though nothing may have been seen of them.
    """
    copies: dict[str, list[CachedImage]] = {}
    leftovers: dict[str, list[StagedImage]] = {}
    unseen: set[str] = set()
    for disk in reading.disks:
        if disk.unknown:
            unseen.update(copy.dataset for copy in disk.contents.images)
            continue
        for copy in disk.contents.images:
            copies.setdefault(copy.dataset, []).append(copy)
        for part in disk.contents.partials:
            left = StagedImage(part.dataset, part.generation_id, part.size_bytes, False, disk=disk.dir)
            leftovers.setdefault(part.dataset, []).append(left)
    images, recalled, skipped, mounted = catalog.images, catalog.recalled, catalog.skipped, reading.mounted
    hidden, is_listed, are_claims_known = _find_hidden(reading), catalog.complete, not reading.pins_problem
    # Most datasets are an image and its mount, and nothing else.
    others = {*others, *(pin.dataset for pin in reading.pins)} - images.keys() - mounted.keys()
    special = {*recalled, *skipped, *reading.covered, *copies, *leftovers, *unseen, *hidden, *others}
    sights = {
        name: Seen(image, is_listed=is_listed, top=mounted.get(name), are_claims_known=are_claims_known)
        for name, image in images.items()
        if name not in special
    }
    for name, top in mounted.items():
        if name not in images and name not in special:
            sights[name] = Seen(is_listed=is_listed, top=top, are_claims_known=are_claims_known)
    for name in special:
        sights[name] = Seen(
            images.get(name),
            recalled.get(name),
            skipped.get(name),
            is_listed,
            mounted.get(name),
            reading.covered.get(name),
            tuple(copies.get(name, ())),
            tuple(leftovers.get(name, ())),
            name in unseen,
            name in hidden,
            are_claims_known,
        )
    return sights


def _find_hidden(reading: Reading) -> frozenset[str]:
    """Find the mounts that may read a copy on a disk that gives no answer; one in a former directory is on any."""
    known = {disk.dir for disk in reading.disks if not disk.unknown}
    if len(known) == len(reading.disks):
        return frozenset()
    return frozenset(name for name, mount in reading.mounted.items() if mount.copy_path and mount.disk not in known)
