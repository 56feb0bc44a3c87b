"""Worlds for the planner: short builders for tables, and Hypothesis strategies over the same values."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import strategies as st

from scratch_slurm.domain.actions import ActionKind, StagedImage
from scratch_slurm.domain.model import (
    ADMINISTRATOR,
    Backing,
    CachedImage,
    Catalog,
    Generation,
    Location,
    MountedImage,
    Pin,
    SkippedImage,
    SourceImage,
    Space,
    job_holder,
)
from tests.kit.sketch import Sketch

NAMES = ("a", "b", "c", "d")
VERSIONS = (1, 2)
PLENTY = 10**15
HORIZON_S = Sketch.horizon_s


def generation(size: int = 10, version: int = 1) -> Generation:
    return Generation(f"{version:08x}{size % 2**32:08x}", size)


def image(dataset: str, size: int = 10, version: int = 1) -> SourceImage:
    return SourceImage(dataset, Location("/source", f"{dataset}.squashfs"), generation(size, version), "squashfs")


def cached(dataset: str, size: int = 10, version: int = 1) -> CachedImage:
    generation_id = generation(size, version).id
    return CachedImage(dataset, generation_id, f"/cache/{dataset}@{generation_id}.image", size)


def mounted(dataset: str, size: int = 10, version: int | None = 1, backing: Backing = Backing.SOURCE) -> MountedImage:
    """A mount of one version; `version=None`: its tag is not known."""
    generation_id = generation(size, version).id if version else None
    reads = ("", "") if backing is Backing.SOURCE else (f"/cache/{dataset}@{generation_id}.image", "/cache")
    return MountedImage(dataset, f"loop-{dataset}", generation_id, *reads)


def staged(
    dataset: str, size: int = 10, version: int = 1, reserved: int | None = None, under_way: bool = False
) -> StagedImage:
    reserved = size if reserved is None else reserved
    return StagedImage(dataset, generation(size, version).id, reserved, under_way)


def pin(dataset: str, job_id: int = 1) -> Pin:
    return Pin(dataset, job_holder(job_id), 1000, 0.0)


def admin_pin(dataset: str) -> Pin:
    return Pin(dataset, ADMINISTRATOR, 0, 0.0)


def catalog(*images: SourceImage, skipped: Iterable[str] = (), complete: bool = True) -> Catalog:
    bad = {name: SkippedImage(f"{name}.squashfs", "is cut short") for name in skipped}
    return Catalog({each.dataset: each for each in images}, bad, complete)


def room(room_bytes: int, *, capacity: int | None = None, used: int = 0) -> Space:
    """A space with just so much room; the disk itself is empty enough."""
    capacity = used + room_bytes if capacity is None else capacity
    return Space(capacity, 0, used, PLENTY)


def rates(reads: Mapping[str, float]) -> dict[str, float]:
    """Read rates of those datasets that are read; `reads` in bytes over the default horizon."""
    return {name: read / HORIZON_S for name, read in reads.items() if read}


def observation(
    images: Iterable[SourceImage] = (),
    mounts: Iterable[MountedImage] = (),
    *,
    space: Space | None = None,
    skipped: Iterable[str] = (),
    complete: bool = True,
    **rest: Any,
) -> Sketch:
    """An observation whose lists are empty and whose room is plenty, unless said otherwise."""
    values: dict[str, Any] = {"cached": (), "staged": (), "pins": (), **rest}
    return Sketch(
        catalog=catalog(*images, skipped=skipped, complete=complete),
        mounted={each.dataset: each for each in mounts},
        space=space or room(PLENTY),
        **values,
    )


_ORDINARY = [
    # In the source, copies, mount, left-over parts: versions of each.
    (1, (), "source", ()),
    (1, (1,), "cache", ()),
    (1, (1,), "cache", ()),
]
_ANY = list(
    itertools.product(
        (1, 2, "skipped", None),
        ((), (1,), (2,), (1, 2)),
        ("source", "cache", "unknown", "foreign", None),
        ((), (1,), (2,), (1, 2)),
    )
)
# One in three is anything at all: with more, nothing ordinary is left to go wrong.
_SITUATIONS = st.sampled_from(_ORDINARY * (2 * len(_ANY) // len(_ORDINARY)) + _ANY)
_PINS = st.lists(
    st.sampled_from([pin(name, job_id) for name in NAMES for job_id in (1, 2)]), unique=True, min_size=1, max_size=4
)
_USES = st.lists(st.sampled_from((None, 1.0, 2.0)), min_size=len(NAMES), max_size=len(NAMES))
_FAILURES = st.frozensets(st.sampled_from([(name, kind) for name in NAMES for kind in ActionKind]), max_size=2)
# In bytes over the default horizon: nobody, too little for any copy, enough for some, plenty.
_READS = st.lists(st.sampled_from((0, 0, 5, 25, 200)), min_size=len(NAMES), max_size=len(NAMES))
_SIZES = st.tuples(st.sampled_from((10, 20, 30)), st.sampled_from((10, 20, 50)))


@st.composite
def observations(draw: st.DrawFn) -> Sketch:
    """Anything that a daemon may see, consistent or half way through something."""
    images: list[SourceImage] = []
    skipped: list[str] = []
    mounts: list[MountedImage] = []
    copies: list[CachedImage] = []
    parts: list[StagedImage] = []
    foreign: set[str] = set()
    busy = set(draw(st.sets(st.sampled_from(NAMES), max_size=2)))
    for name in NAMES:
        in_source, copied, mount, left = draw(_SITUATIONS)
        sizes = dict(zip(VERSIONS, draw(_SIZES), strict=True))
        if in_source == "skipped":
            skipped.append(name)
        elif isinstance(in_source, int):
            images.append(image(name, sizes[in_source], in_source))
        copies += [cached(name, sizes[version], version) for version in copied]
        if mount == "foreign":
            foreign.add(name)
        elif mount == "unknown":
            mounts.append(mounted(name, version=None))
        elif mount:
            mounts.append(mounted(name, sizes[1], 1, Backing(mount)))
        for version in left:
            under_way = name in busy and version == left[0]
            reserved = sizes[version] if under_way else draw(st.sampled_from((0, 10, sizes[version] + 5)))
            parts.append(staged(name, sizes[version], version, reserved, under_way))
    copying = {part.dataset for part in parts if part.under_way}
    leaving = {copy.dataset: copy.size_bytes for copy in copies if copy.dataset in busy - copying}
    if not draw(st.booleans()):
        leaving = {}
    used_bytes = sum(copy.size_bytes for copy in copies) + sum(part.reserved_bytes for part in parts)
    room_bytes = draw(st.sampled_from((-10, 0, 0, 10, 20, 60)))
    return observation(
        images,
        mounts,
        skipped=skipped,
        complete=draw(st.sampled_from((True, True, False))),
        cached=tuple(copies),
        staged=tuple(parts),
        pins=tuple(draw(_PINS)) if draw(st.integers(0, 5)) else (),
        space=Space(used_bytes + room_bytes, 5, used_bytes, draw(st.sampled_from((PLENTY, PLENTY, 35, 0)))),
        last_used_at={name: at for name, at in zip(NAMES, draw(_USES), strict=True) if at is not None},
        busy=frozenset(busy),
        backing_off=draw(_FAILURES),
        leaving=frozenset(leaving),
        leaving_bytes=sum(leaving.values()) + (draw(st.sampled_from((0, 10, 100))) if busy else 0),
        unwell=dict.fromkeys(draw(st.sampled_from(((), (), (), NAMES[:1], NAMES))), "EIO"),
        bad_copies={copy.path: "EIO" for copy in copies[:1]} if not draw(st.integers(0, 5)) else {},
        foreign=frozenset(foreign),
        covered={
            each.dataset: mounted(each.dataset, version=draw(st.sampled_from((*VERSIONS, None)))) for each in mounts
        }
        if not draw(st.integers(0, 5))
        else {},
        bytes_per_s=rates(dict(zip(NAMES, draw(_READS), strict=True))) if draw(st.integers(0, 2)) else {},
    )
