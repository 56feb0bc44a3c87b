"""How the datasets share the disks: what is copied, what goes, and what finds no room. Pure, and the only global part.

What depends on an earlier action (staging into room that an eviction frees) waits for the next plan, when the room is
seen.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scratch_slurm.domain.actions import ActionKind, DropStaged, Evict, Stage, StagedImage
from scratch_slurm.domain.choice import Candidate, Wishes, wish
from scratch_slurm.domain.dataset import Card, Disk, Node
from scratch_slurm.domain.model import CachedImage, Pin, SourceImage
from scratch_slurm.domain.plan.moves import Decision, evict
from scratch_slurm.domain.plan.placing import Held, Need, Room, place
from scratch_slurm.domain.reasons import (
    Problem,
    word_eviction,
    word_eviction_unnamed,
    word_no_room,
    word_shrinking,
    word_staging,
)
from scratch_slurm.domain.shares import find_beyond, word_own_room


@dataclass(frozen=True)
class Shared:
    """How the disks are shared."""

    drops: tuple[DropStaged, ...]
    evictions: tuple[Evict, ...]
    stages: tuple[Stage, ...]
    problems: Mapping[str, Problem]
    """By dataset: why what is pinned is not cached."""
    wishes: Wishes
    """What the disks should hold, taken together, and why."""
    unplaced: frozenset[str]
    """Datasets that should be cached, and that no single disk has room for beside the others."""


@dataclass
class _OnDisk:
    """The figures of one disk while the plan is made, in bytes."""

    disk: Disk
    room_bytes: int
    leaving_bytes: int
    victims: list[CachedImage] = field(default_factory=list)
    """What may go, the first to go first."""


def share(cards: Mapping[str, Card], node: Node, decisions: Mapping[str, Decision]) -> Shared:
    """Share the disks among the datasets.

    Args:
        decisions: on each card by itself; what moves in this plan is neither copied nor evicted in it.
    """
    return _Share(cards, node, decisions).share()


def pins_in_order(cards: Iterable[Card]) -> list[Pin]:
    """List the pins that count, of all datasets, in the order of asking."""
    placed = [(claim.place, Pin(card.name, str(claim.holder), claim.uid, claim.asked_at))
              for card in cards if card.claims for claim in card.claims if claim.counts]  # fmt: skip
    return [pin for _, pin in sorted(placed, key=lambda each: each[0])]


class _Share:
    def __init__(self, cards: Mapping[str, Card], node: Node, decisions: Mapping[str, Decision]) -> None:
        self.node = node
        self.now = node.now
        # All the others, on most nodes nearly all, are wanted by nobody.
        self.cards = {
            name: card for name, card in cards.items()
            if card.copies or card.parts or card.claims or card.reads.bytes_per_s
        }  # fmt: skip
        self.touched = {name for name in self.cards if decisions[name].move is not None or decisions[name].outdated}
        self.outdated = [evict for name in self.cards for evict in decisions[name].outdated]
        self.pins = pins_in_order(self.cards.values())
        self.wanted = {name: image for name in self.cards if (image := decisions[name].wanted)}
        self.current = {name: copy for name in self.cards if (copy := decisions[name].current)}
        self.size_bytes = {
            **{name: image.size_bytes + node.overhead_bytes for name, image in self.wanted.items()},
            **{name: copy.size_bytes for name, copy in self.current.items()},
        }
        self.beyond = find_beyond(self.pins, self.size_bytes, node.max_pinned_bytes)
        self.held = {pin.dataset for pin in self.pins} - self.beyond.keys()
        """Pinned datasets that are cached for it."""
        self.holders: dict[str, list[str]] = {}
        for pin in self.pins:
            self.holders.setdefault(pin.dataset, []).append(pin.holder)
        self.problems: dict[str, Problem] = {
            name: self.beyond[name] for name in sorted(self.beyond.keys() - self.current.keys())
        }

    def share(self) -> Shared:
        wishes = self._wish()
        unwanted = self._find_unwanted(wishes)
        usable = self._open_disks(unwanted)
        targets, displaced = self._place(wishes, usable)
        self._add_victims(usable, (*wishes.unneeded, *displaced))
        evictions = [each for disk in usable.values() for each in self._shrink(disk, wishes)]
        stages: list[Stage] = []
        for dataset in (*wishes.pinned, *wishes.chosen):
            card = self.cards.get(dataset)
            image = self.wanted.get(dataset)
            if card is None or image is None or card.is_foreign or card.copy_of(image.generation.id):
                continue
            part = _part_of(card, image)
            if part and part.under_way:
                continue
            target = usable.get(targets.get(dataset, ""))
            if target is None:
                self._tell_no_room(image, list(usable.values()))
            elif part and part.disk != target.disk.dir and not card.is_off(ActionKind.DROP, self.now):
                unwanted.append(DropStaged(part, "its copy is made on another disk"))
            else:
                begun = part if part and part.disk == target.disk.dir else None
                self._make_room(card, image, begun, target, wishes, evictions, stages)
        busy = {name for name, card in self.cards.items() if card.under_way}
        drops = tuple(drop for drop in unwanted if drop.staged.under_way or drop.dataset not in busy)
        unplaced = frozenset(name for name in (*wishes.pinned, *wishes.chosen) if self._is_unplaced(name, targets))
        evicted = (*(each for each in self.outdated), *evictions)
        return Shared(drops, evicted, tuple(stages), self.problems, wishes, unplaced | frozenset(displaced))

    def _is_unplaced(self, dataset: str, targets: Mapping[str, str]) -> bool:
        card = self.cards.get(dataset)
        under_way = card is not None and any(part.under_way for part in card.parts)
        return dataset in self.wanted and dataset not in self.current and not under_way and dataset not in targets

    def _wish(self) -> Wishes:
        """Choose what the disks should hold, within what all images may take together."""
        candidates = []
        for dataset in sorted(self.cards):
            card = self.cards[dataset]
            image, copy = self.wanted.get(dataset), self.current.get(dataset)
            if copy is None and (image is None or not self._may_be_staged(card)):
                continue
            size_bytes = self.size_bytes[dataset]
            part = _part_of(card, image) if image else None
            candidates.append(
                Candidate(
                    dataset,
                    size_bytes,
                    0 if copy else max(1, size_bytes - (part.done_bytes if part else 0)),
                    card.reads.bytes_per_s,
                    dataset in self.held,
                    card.reads.last_at,
                    card.reads.streak_s,
                    card.reads.streak_bytes,
                )
            )
        budgets = [self._budget_bytes(disk) for disk in self.node.disks]
        budget_bytes = budgets[0] if len(budgets) == 1 else sum(max(0, each) for each in budgets)
        pinned = tuple(dict.fromkeys(pin.dataset for pin in self.pins if pin.dataset in self.held))
        return wish(candidates, pinned, budget_bytes, self.node.horizon_s)

    def _budget_bytes(self, disk: Disk) -> int:
        """What the images that may be chosen may take on a disk; what stays there for other reasons is not theirs."""
        budget_bytes = disk.space.room_bytes + disk.leaving_bytes
        parts = (part for card in self.cards.values() if card.parts for part in card.parts)
        budget_bytes += sum(part.reserved_bytes for part in parts if part.disk == disk.dir)
        return budget_bytes + sum(copy.size_bytes for copy in self.current.values() if copy.disk == disk.dir)

    def _may_be_staged(self, card: Card) -> bool:
        """Whether a copy could be made, or goes on: what failed, or is not mounted, would only hold room."""
        is_shown = card.mounted is not None and not card.is_foreign
        return card.name in self.held or (is_shown and not card.is_off(ActionKind.STAGE, self.now))

    def _find_unwanted(self, wishes: Wishes) -> list[DropStaged]:
        """Find copies that nobody wants any more; a stopped copy of a failed dataset waits for its retry."""
        wished = {*wishes.pinned, *wishes.chosen}
        drops = []
        for card in self.cards.values():
            for part in card.parts:
                reason = self._why_unwanted(card, part, wishes, is_wished=card.name in wished)
                if reason:
                    drops.append(DropStaged(part, reason))
        return drops

    def _why_unwanted(self, card: Card, part: StagedImage, wishes: Wishes, *, is_wished: bool) -> str:
        """Say why a copy that is not whole is not wanted; empty: it is, or it is not certain that it is not."""
        if not card.is_listed or (not part.under_way and card.is_off(ActionKind.DROP, self.now)):
            return ""
        if card.revoked:
            return card.revoked
        if card.is_undecided or (not card.are_claims_known and not is_wished):
            return ""  # somebody may ask for it
        if not part.under_way and card.copy_of(part.generation_id):
            return "another disk has a whole copy of it"
        if not is_wished and not card.is_off(ActionKind.STAGE, self.now):
            verdict = wishes.verdicts.get(card.name)
            return verdict.reason if verdict else "nobody asks for it any more"
        if not is_wished and not card.reads.bytes_per_s:
            return "nobody asks for it any more"
        if card.image is None and not card.is_gone:
            return ""
        image = self.wanted.get(card.name)
        if image is None or image.generation.id != part.generation_id:
            return "the image in the source is another one now"
        return ""

    def _open_disks(self, unwanted: Iterable[DropStaged]) -> dict[str, _OnDisk]:
        """The disks that something can be done with."""
        opened = {
            disk.dir: _OnDisk(disk, disk.space.room_bytes, disk.leaving_bytes)
            for disk in self.node.disks
            if not disk.problem and not disk.is_unknown
        }
        for drop in unwanted:
            if drop.staged.disk in opened:
                opened[drop.staged.disk].leaving_bytes += drop.staged.reserved_bytes
        for each in self.outdated:
            if each.image.disk in opened:
                opened[each.image.disk].leaving_bytes += each.image.size_bytes
        return opened

    def _place(self, wishes: Wishes, usable: Mapping[str, _OnDisk]) -> tuple[dict[str, str], tuple[str, ...]]:
        """Find a disk for each copy that is to be made; one disk needs no search, and the order of asking decides."""
        names = (*wishes.pinned, *wishes.chosen)
        if len(self.node.disks) == 1:
            return {name: disk for name in names for disk in usable}, ()
        rooms = {
            name: Room(name, each.room_bytes, self._budget_bytes(each.disk), each.disk.shunned_until > self.now)
            for name, each in usable.items()
        }
        for name in names:
            copy = self.current.get(name)
            if copy is not None and copy.disk in rooms:
                rooms[copy.disk].later_bytes -= copy.size_bytes
            for part in self.cards[name].parts if name in self.cards else ():
                if part.under_way and part.disk in rooms:
                    rooms[part.disk].later_bytes -= part.reserved_bytes
        held = [
            Held(name, self.current[name].size_bytes, self.current[name].disk)
            for name in reversed(wishes.chosen)
            if name in self.current and self._may_go(self.cards[name])
        ]
        placed = place(
            list(rooms.values()), self._needs(wishes.pinned, usable), self._needs(wishes.chosen, usable), held
        )
        return placed.disks, placed.displaced

    def _needs(self, names: Iterable[str], usable: Mapping[str, _OnDisk]) -> list[Need]:
        needs = []
        for name in names:
            image = self.wanted.get(name)
            if image is None or name in self.current:
                continue
            part = _part_of(self.cards[name], image)
            if part is None or not part.under_way:
                disk = part.disk if part and part.disk in usable else ""
                needs.append(Need(name, self.size_bytes[name], disk))
        return needs

    def _may_go(self, card: Card) -> bool:
        """Whether the copy of a dataset may be evicted now to make room."""
        return (
            not card.is_undecided
            and card.are_claims_known
            and card.may(ActionKind.EVICT, self.now)
            and (card.mounted is None or card.name in self.wanted)
            and card.name not in self.touched
        )

    def _add_victims(self, usable: Mapping[str, _OnDisk], datasets: Iterable[str]) -> None:
        for dataset in datasets:
            copy = self.current.get(dataset)
            if copy is not None and copy.disk in usable and self._may_go(self.cards[dataset]):
                usable[copy.disk].victims.append(copy)

    def _shrink(self, on: _OnDisk, wishes: Wishes) -> list[Evict]:
        """Free what is missing on a disk whose capacity or reserve does not hold, as far as that can be."""
        missing_bytes = -(on.room_bytes + on.leaving_bytes)
        if missing_bytes <= 0:
            return []
        taken = _take_enough(on.victims, missing_bytes, all_or_nothing=False)
        on.leaving_bytes += sum(victim.size_bytes for victim in taken)
        return [
            each for victim in taken if (each := self._evict(victim, word_shrinking(on.disk.space, wishes, victim)))
        ]

    def _make_room(
        self,
        card: Card,
        image: SourceImage,
        part: StagedImage | None,
        on: _OnDisk,
        wishes: Wishes,
        evictions: list[Evict],
        stages: list[Stage],
    ) -> None:
        """Stage a dataset on its disk where it has room; else wait for the room that is coming, or make it."""
        dataset = card.name
        reserved_bytes = part.reserved_bytes if part else 0
        need_bytes = max(0, image.size_bytes + self.node.overhead_bytes - reserved_bytes)
        if need_bytes <= on.room_bytes:
            on.room_bytes -= need_bytes
            if card.may(ActionKind.STAGE, self.now) and card.mounted and dataset not in self.touched:
                reason = word_staging(self.holders.get(dataset, ()), wishes, dataset)
                stages.append(Stage(image, reason, dataset in self.held, on.disk.dir))
            return
        if need_bytes <= on.room_bytes + on.leaving_bytes:
            on.leaving_bytes -= need_bytes - max(0, on.room_bytes)
            on.room_bytes = min(0, on.room_bytes)
            return
        chosen = _take_enough(on.victims, need_bytes - on.room_bytes - on.leaving_bytes, all_or_nothing=True)
        if not chosen:
            self._tell_no_room(image, [on])
            return
        for victim in chosen:
            reason = word_eviction(self.holders.get(dataset, ()), wishes, victim, dataset)
            each = self._evict(victim, reason)
            if each is not None:
                unnamed = word_eviction_unnamed(wishes, victim)
                evictions.append(dataclasses.replace(each, needed_by=dataset, reason_unnamed=unnamed))
        # Their room is seen, and staged into, only when they are gone.
        on.leaving_bytes += sum(victim.size_bytes for victim in chosen) + on.room_bytes - need_bytes
        on.room_bytes = 0

    def _evict(self, victim: CachedImage, reason: str) -> Evict | None:
        card = self.cards[victim.dataset]
        beyond = self.holders.get(card.name, ()) if card.name in self.beyond else ()
        return evict(card, victim, reason, frozenset(beyond))

    def _tell_no_room(self, image: SourceImage, disks: list[_OnDisk]) -> None:
        """Say why a pinned dataset finds no room on these disks; none: no disk can be used."""
        if image.dataset not in self.held:
            return
        if not disks:
            text = "; ".join(dict.fromkeys(disk.problem for disk in self.node.disks if disk.problem))
            self.problems.setdefault(image.dataset, Problem(text, waiting_helps=False))
            return
        could_bytes = max(max(0, on.room_bytes) + sum(victim.size_bytes for victim in on.victims) for on in disks)
        capacity_bytes = max(disk.space.capacity_bytes for disk in self.node.disks)
        problem = word_no_room(image, capacity_bytes, could_bytes)
        held = [pin for pin in self.pins if pin.dataset in self.held]
        spaces = [disk.space for disk in self.node.disks]
        own = word_own_room(image.dataset, held, self.size_bytes, spaces) if problem.waiting_helps else None
        self.problems.setdefault(image.dataset, own or problem)


def _part_of(card: Card, image: SourceImage) -> StagedImage | None:
    """The copy of an image that is not whole yet; of several the one under way."""
    if not card.parts:
        return None
    parts = [part for part in card.parts if part.generation_id == image.generation.id]
    return max(parts, key=lambda part: part.under_way, default=None)


def _take_enough(victims: list[CachedImage], need_bytes: int, *, all_or_nothing: bool) -> list[CachedImage]:
    """Take from the list, in its order, victims that free `need_bytes`, and none that is not needed for it.

    Returns: the victims, removed from the list; if they do not suffice, none, or all unless `all_or_nothing`.
    """
    chosen: list[CachedImage] = []
    freed_bytes = 0
    for victim in victims:
        if freed_bytes >= need_bytes:
            break
        chosen.append(victim)
        freed_bytes += victim.size_bytes
    if freed_bytes < need_bytes and all_or_nothing:
        return []
    for victim in reversed(chosen.copy()):
        if freed_bytes - victim.size_bytes >= need_bytes:
            chosen.remove(victim)
            freed_bytes -= victim.size_bytes
    victims[:] = [victim for victim in victims if victim not in chosen]
    return chosen
