"""Cards for tables: datasets as they are most of the time, and what else is to be on them by field."""

import math
from collections.abc import Iterable
from typing import Any

from msgspec import structs

from scratch_slurm.domain.actions import ActionKind
from scratch_slurm.domain.claims import Claim, Job, Standing
from scratch_slurm.domain.dataset import Card, Disk, Failure, Node, UnderWay
from scratch_slurm.domain.model import Backing, SkippedImage, Space
from tests.kit.strategies import cached, image, mounted

BUSY = UnderWay()
SKIPPED = SkippedImage("a.squashfs", "is cut short")


def on_source(name: str = "a", size: int = 10, version: int = 1, **facts: Any) -> Card:
    """A dataset that is mounted, and reads the source."""
    card = Card(name, image=image(name, size, version), mounted=mounted(name, size, version))
    return structs.replace(card, **facts)


def on_copy(name: str = "a", size: int = 10, version: int = 1, **facts: Any) -> Card:
    """A dataset that is mounted, and reads its copy."""
    card = Card(
        name,
        image=image(name, size, version),
        mounted=mounted(name, size, version, Backing.CACHE),
        copies=(cached(name, size, version),),
    )
    return structs.replace(card, **facts)


def claims(*places: int, standing: Standing = Standing.COUNTS) -> tuple[Claim, ...]:
    """Claims of jobs. Args: places: in the order of asking, each the number of its job too."""
    return tuple(Claim(Job(place), 1000, place, standing) for place in places)


def failed(*kinds: ActionKind, retry_at: float = math.inf) -> dict[ActionKind, Failure]:
    """What failed and is not tried before `retry_at`, in monotonic seconds."""
    return {kind: Failure("", 1, retry_at) for kind in kinds}


def by_name(cards: Iterable[Card]) -> dict[str, Card]:
    return {card.name: card for card in cards}


def node(space: Space, *, leaving_bytes: int = 0, problem: str = "", **facts: Any) -> Node:
    """A node with one disk."""
    return Node([Disk("", space, leaving_bytes, problem)], **facts)
