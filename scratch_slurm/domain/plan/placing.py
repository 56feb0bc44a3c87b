"""Which disk a copy is made on: each image lies whole on one. Pure.

The choice of what to have is made over the sum of all disks. What of it no single disk has room for is not had: with
several disks the plan may so fall short of the choice, and says by how much (`Plan.gap`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Need(NamedTuple):
    """A copy that is to be made."""

    dataset: str
    size_bytes: int
    disk: str = ""
    """Where a part of it is already, and it goes on if it fits; empty: nowhere."""


class Held(NamedTuple):
    """A cached image whose room may be taken, as it is wanted for its throughput alone."""

    dataset: str
    size_bytes: int
    disk: str


@dataclass
class Room:
    """The room on one disk while copies are placed."""

    disk: str
    now_bytes: int
    """What is free at once."""
    later_bytes: int
    """What is free when all has gone that nobody wants."""
    is_shunned: bool = False
    """It is the last choice."""

    def take(self, size_bytes: int) -> None:
        self.now_bytes -= size_bytes
        self.later_bytes -= size_bytes


class Placed(NamedTuple):
    """What `place` decided."""

    disks: dict[str, str]
    """Dataset -> the disk that its copy is made on. What is missing fits on none."""
    displaced: tuple[str, ...]
    """Datasets of `held` that lose their room; the first to go first."""


def place(rooms: Sequence[Room], pinned: Iterable[Need], chosen: Iterable[Need], held: Sequence[Held]) -> Placed:
    """Place copies: pinned ones in the order of asking, the others the largest first, each on the emptiest that fits.

    Where a copy fits at once goes before where it fits only later, and a disk on which a copy failed comes last.
    A disk whose room others have taken, and one that a
    pinned copy finds no room on, takes the room of what is held there for its throughput.

    Args:
        rooms: of the disks that can be used; they are changed.
        held: the least valuable first.
    """
    disks: dict[str, str] = {}
    displaced: list[str] = []
    left = list(held)

    def displace(room: Room, victims: Iterable[Held]) -> None:
        for victim in victims:
            left.remove(victim)
            displaced.append(victim.dataset)
            room.later_bytes += victim.size_bytes

    for room in rooms:
        displace(room, _take_enough(left, room, -room.later_bytes))
    for need in pinned:
        found = _emptiest(rooms, need)
        if found is None:
            ways = [
                (sum(each.size_bytes for each in victims), room.disk, room, victims)
                for room in rooms
                if (victims := _take_enough(left, room, need.size_bytes - room.later_bytes))
                and sum(each.size_bytes for each in victims) + room.later_bytes >= need.size_bytes
            ]
            if not ways:
                continue
            *_, found, victims = min(ways, key=lambda way: way[:2])
            displace(found, victims)
        disks[need.dataset] = found.disk
        found.take(need.size_bytes)
    for need in sorted(chosen, key=lambda each: (-each.size_bytes, each.dataset)):
        found = _emptiest(rooms, need)
        if found is not None:
            disks[need.dataset] = found.disk
            found.take(need.size_bytes)
    return Placed(disks, tuple(displaced))


def _emptiest(rooms: Sequence[Room], need: Need) -> Room | None:
    def rank(room: Room) -> tuple[bool, bool, bool, int, str]:
        return (
            not room.is_shunned,
            room.disk == need.disk,
            room.now_bytes >= need.size_bytes,
            room.later_bytes,
            room.disk,
        )

    return max((room for room in rooms if room.later_bytes >= need.size_bytes), key=rank, default=None)


def _take_enough(held: Iterable[Held], room: Room, need_bytes: int) -> list[Held]:
    """Take of what is held on a disk, in its order, until so much is freed, or all."""
    taken: list[Held] = []
    for each in held:
        if need_bytes <= 0:
            break
        if each.disk == room.disk:
            taken.append(each)
            need_bytes -= each.size_bytes
    return taken
