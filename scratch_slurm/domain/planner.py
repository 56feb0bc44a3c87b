"""The planner: from what is observed to ordered actions, each with its reason. Pure: `now` never enters."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scratch_slurm.domain.actions import (
    Action,
    ActionKind,
    DropStaged,
    Evict,
    Mend,
    Mount,
    Replace,
    Retarget,
    Stage,
    Uncover,
    Unmount,
)
from scratch_slurm.domain.choice import Candidate, Wishes, wish
from scratch_slurm.domain.errors import DaemonError, NotFoundError, PinnedError
from scratch_slurm.domain.model import Backing, CachedImage, SourceImage
from scratch_slurm.domain.observation import Observation
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
class Plan:
    actions: tuple[Action, ...]
    problems: Mapping[str, Problem]
    """By dataset."""
    wishes: Wishes
    """What the cache should hold, and why."""


def plan(seen: Observation) -> Plan:
    """Decide what to do next.

    At most one action a dataset, but a copy to drop and a cached image to delete may come beside it. What depends on
    an earlier action (staging into room that an eviction frees) waits for the next plan, when the room is seen.

    Returns: actions in the order to start them: drops and evictions, mounts, switches, copies.
    """
    return _Planner(seen).plan()


def plan_eviction(seen: Observation, dataset: str, reason: str) -> Evict:
    """Plan the eviction that an administrator asks for.

    Raises:
        NotFoundError: the dataset is not cached here.
        PinnedError: a job or the administrator holds a pin.
        DaemonError: something else is under way with the dataset, or its source image cannot take over.
    """
    planner = _Planner(seen)
    holders = seen.holders(dataset)
    mounted = seen.mounted.get(dataset)
    read_path = mounted.backing_path if mounted else None
    copies = [copy for copy in seen.cached if copy.dataset == dataset]
    copies.sort(key=lambda copy: (copy.path != read_path, copy.path))
    if seen.cache_problem:
        raise DaemonError(f"{dataset}: {seen.cache_problem}")
    if not copies:
        raise NotFoundError(f"{dataset}: is not cached on this node")
    if seen.pins_problem:
        raise DaemonError(f"{dataset}: whether somebody pins it is not known: {seen.pins_problem}")
    if dataset in seen.undecided:
        raise PinnedError(f"{dataset}: is pinned, and it is not known whether by somebody that may read it")
    if holders:
        raise PinnedError(f"{dataset}: is pinned by {', '.join(holders)}", hint="it can go when its jobs have ended")
    if dataset in seen.busy:
        raise DaemonError(f"{dataset}: something is under way with it", hint="try again in some seconds")
    if copies[0].path == read_path and dataset not in planner.wanted:
        raise DaemonError(f"{dataset}: its image in the source cannot take over", hint="see `scratch-slurm status`")
    return planner.eviction(copies[0], reason)


class _Planner:
    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.idle = _all_datasets(seen) - seen.busy - seen.foreign
        self.pinned = {pin.dataset for pin in seen.pins}
        self.kept = self.pinned | seen.undecided
        self.copies = {
            (image.dataset, image.generation_id): image for image in seen.cached if image.path not in seen.bad_copies
        }
        self.wanted = _find_wanted(seen)
        self.current = _find_current(seen)
        self.size_bytes = {
            **{name: image.size_bytes + seen.overhead_bytes for name, image in self.wanted.items()},
            **{name: copy.size_bytes for name, copy in self.current.items()},
        }
        self.beyond = find_beyond(seen.pins, self.size_bytes, seen.max_pinned_bytes)
        self.held = self.pinned - self.beyond.keys()
        """Pinned datasets that are cached for it."""
        self.problems: dict[str, Problem] = {}

    def plan(self) -> Plan:
        mounting = self._plan_mounts()
        touched = {action.dataset for action in mounting}
        wishes = self._wish()
        for dataset in self.beyond.keys() - self.current.keys():
            self.problems.setdefault(dataset, self.beyond[dataset])
        unwanted = self._unwanted_copies(wishes)
        drops = [drop for drop in unwanted if drop.staged.under_way or drop.dataset not in self.seen.busy]
        outdated = [evict for evict in self._plan_outdated() if evict.dataset not in touched]
        touched |= {evict.dataset for evict in outdated}
        switches = [switch for switch in self._plan_switches() if switch.dataset not in touched]
        touched |= {switch.dataset for switch in switches}
        leaving_bytes = self.seen.leaving_bytes
        leaving_bytes += sum(drop.staged.reserved_bytes for drop in unwanted)
        leaving_bytes += sum(evict.image.size_bytes for evict in outdated)
        evictions, copies = self._plan_copies(wishes, touched, leaving_bytes)
        return Plan((*drops, *outdated, *evictions, *mounting, *switches, *copies), self.problems, wishes)

    def _wish(self) -> Wishes:
        """Choose what the cache should hold, within what all images may take together."""
        seen = self.seen
        staged = {(each.dataset, each.generation_id): each for each in seen.staged}
        budget_bytes = seen.space.room_bytes + seen.leaving_bytes + sum(each.reserved_bytes for each in seen.staged)
        budget_bytes += sum(copy.size_bytes for copy in seen.cached if copy.dataset not in seen.leaving)
        candidates = []
        # All the others, on most nodes nearly all, are wanted by nobody.
        concerned = {*self.current, *self.pinned, *seen.bytes_per_s, *(each.dataset for each in seen.staged)}
        for dataset in sorted(concerned):
            image, copy = self.wanted.get(dataset), self.current.get(dataset)
            if copy is None and (image is None or not self._may_be_staged(dataset)):
                continue
            size_bytes = copy.size_bytes if copy else image.size_bytes + seen.overhead_bytes if image else 0
            part = staged.get((dataset, image.generation.id)) if image else None
            done_bytes = part.done_bytes if part else 0
            candidates.append(
                Candidate(
                    dataset,
                    size_bytes,
                    0 if copy else max(1, size_bytes - done_bytes),
                    seen.bytes_per_s.get(dataset, 0.0),
                    dataset in self.held,
                    seen.last_used_at.get(dataset, 0.0),
                    seen.read_for_s.get(dataset, 0.0),
                    seen.reading_bytes.get(dataset, math.inf),
                )
            )
        kept_bytes = sum(
            copy.size_bytes
            for copy in seen.cached
            if copy != self.current.get(copy.dataset) and copy.dataset not in seen.leaving
        )
        pinned = tuple(dict.fromkeys(pin.dataset for pin in seen.pins if pin.dataset in self.held))
        return wish(candidates, pinned, budget_bytes - kept_bytes, seen.horizon_s)

    def _may_be_staged(self, dataset: str) -> bool:
        """Whether a copy could be made, or goes on: what failed, or is not mounted, would only hold room."""
        mounted = dataset in self.seen.mounted and dataset not in self.seen.foreign
        return dataset in self.held or (mounted and (dataset, ActionKind.STAGE) not in self.seen.backing_off)

    def may(self, dataset: str, kind: ActionKind) -> bool:
        return dataset in self.idle and (dataset, kind) not in self.seen.backing_off

    def _plan_mounts(self) -> list[Action]:
        """Mount what is new, unmount what is gone, replace what is newer and pinned by nobody."""
        actions: list[Action] = []
        cached = {copy.dataset for copy in self.seen.cached}
        # Whom a job waits for first, then what is mounted without the slow storage.
        for dataset in sorted(self.idle, key=lambda name: (name not in self.pinned, name not in cached, name)):
            image = self.seen.catalog.images.get(dataset)
            mounted = self.seen.mounted.get(dataset)
            if mounted and dataset in self.seen.catalog.revoked:
                # Pinned or not: no right of a job's goes before the owner's word on who may read it.
                if self.may(dataset, ActionKind.UNMOUNT):
                    actions.append(Unmount(dataset, self.seen.catalog.revoked[dataset], despite=None))
            elif (
                mounted
                and dataset in self.seen.covered
                and (not self._may_be_pinned(dataset) or self._is_same_beneath(dataset))
            ):
                actions += self._plan_finish(dataset)
            elif image is None and not mounted and self.may(dataset, ActionKind.MOUNT):
                actions += self._mount_recalled(dataset)
            elif image and not mounted and self.may(dataset, ActionKind.MOUNT):
                actions.append(Mount(image, self._best_path(image), "new in the source"))
            elif image and mounted and mounted.generation_id != image.generation.id:
                if self._may_be_pinned(dataset):
                    self.problems[dataset] = Problem(
                        "the source has a newer image; it is mounted when nobody pins the old one", waiting_helps=False
                    )
                elif self.may(dataset, ActionKind.REPLACE):
                    reason = "the source has a newer image"
                    actions.append(Replace(image, self._best_path(image), reason, self._refused(dataset)))
            elif image and dataset in self.seen.unwell:
                reason = f"cannot be read and is mounted anew: {self.seen.unwell[dataset]}"
                self.problems[dataset] = Problem(reason, waiting_helps=True)
                if self.may(dataset, ActionKind.REPLACE):
                    actions.append(Mend(image, self._best_path(image), reason, despite=None))
            elif mounted and not image and self._is_gone(dataset):
                if self._may_be_pinned(dataset):
                    self.problems[dataset] = Problem(
                        "removed from the source; it stays while it is pinned", waiting_helps=False
                    )
                elif self.may(dataset, ActionKind.UNMOUNT):
                    actions.append(Unmount(dataset, "removed from the source", self._refused(dataset)))
        return actions

    def _is_same_beneath(self, dataset: str) -> bool:
        """Whether what lies beneath a mount is the same generation: then nobody's version changes when it is seen."""
        generation_id = self.seen.mounted[dataset].generation_id
        return generation_id is not None and self.seen.covered[dataset].generation_id == generation_id

    def _plan_finish(self, dataset: str) -> list[Action]:
        """Bring a change of a mount that was cut short to its end.

        Beneath lies what was probed before it was put there; it is seen as soon as the one on top is gone. Where that
        is not what is wanted, or cannot be read any more, all goes, and is mounted anew in the next round.
        """
        image, beneath = self.seen.catalog.images.get(dataset), self.seen.covered[dataset]
        same = self._is_same_beneath(dataset)
        wanted = image is not None and beneath.generation_id == image.generation.id
        if (same or wanted) and (dataset, ActionKind.UNCOVER) not in self.seen.backing_off:
            despite = None if same else self._refused(dataset)
            return [Uncover(dataset, beneath.device, "a change of its mount was cut short", despite)]
        known = self.seen.catalog.complete and (image is not None or self._is_gone(dataset))
        if not self._may_be_pinned(dataset) and known and self.may(dataset, ActionKind.UNMOUNT):
            reason = "a change of its mount was cut short, and is begun anew"
            return [Unmount(dataset, reason, self._refused(dataset))]
        return []

    def _mount_recalled(self, dataset: str) -> list[Action]:
        """Serve a whole copy of what an earlier listing showed; nothing else is known of it."""
        image = self.seen.catalog.recalled.get(dataset)
        copy = self.copies.get((dataset, image.generation.id)) if image else None
        if image is None or copy is None:
            return []
        return [Mount(image, copy.path, "cached, and known from an earlier listing; the source cannot tell")]

    def _may_be_pinned(self, dataset: str) -> bool:
        """Whether somebody pins it, or might: unknown is not gone."""
        return dataset in self.kept or bool(self.seen.pins_problem)

    def _is_gone(self, dataset: str) -> bool:
        """Whether the source certainly has no such image: a listing that failed, or a bad image, is no proof."""
        catalog = self.seen.catalog
        return catalog.complete and dataset not in catalog.images and dataset not in catalog.skipped

    def _best_path(self, image: SourceImage) -> str:
        copy = self.copies.get((image.dataset, image.generation.id))
        return copy.path if copy else image.path

    def _unwanted_copies(self, wishes: Wishes) -> list[DropStaged]:
        """Find copies that nobody wants any more; a stopped copy of a failed dataset waits for its retry."""
        drops = []
        wanted = {*wishes.pinned, *wishes.chosen}
        for staged in self.seen.staged:
            dataset = staged.dataset
            image = self.wanted.get(dataset)
            failed = not staged.under_way and (dataset, ActionKind.DROP) in self.seen.backing_off
            if not self.seen.catalog.complete or failed:
                continue
            if dataset in self.seen.catalog.revoked:
                drops.append(DropStaged(staged, self.seen.catalog.revoked[dataset]))
            elif dataset in self.seen.undecided:
                continue
            elif self.seen.pins_problem and dataset not in wanted:
                continue  # somebody may ask for it
            elif dataset not in wanted and (dataset, ActionKind.STAGE) not in self.seen.backing_off:
                verdict = wishes.verdicts.get(dataset)
                drops.append(DropStaged(staged, verdict.reason if verdict else "nobody asks for it any more"))
            elif dataset not in wanted and dataset not in self.seen.bytes_per_s:
                drops.append(DropStaged(staged, "nobody asks for it any more"))
            elif dataset not in self.seen.catalog.images and not self._is_gone(dataset):
                continue
            elif image is None or image.generation.id != staged.generation_id:
                drops.append(DropStaged(staged, "the image in the source is another one now"))
        return drops

    def _plan_outdated(self) -> list[Evict]:
        """Delete cached images that can never be served again: of another generation, or of no dataset."""
        evictions = []
        for copy in self.seen.cached:
            mounted = self.seen.mounted.get(copy.dataset)
            image = self.seen.catalog.images.get(copy.dataset)
            current = {mounted.generation_id if mounted else None, image.generation.id if image else None}
            in_use = mounted is not None and mounted.backing_path == copy.path
            unsure = image is None and not self._is_gone(copy.dataset)
            bad = copy.path in self.seen.bad_copies
            kept = (copy.generation_id in current and not bad) or in_use or unsure
            if kept or not self.may(copy.dataset, ActionKind.EVICT):
                continue
            reason = self.seen.bad_copies[copy.path] if bad else "no dataset has this generation any more"
            evictions.append(Evict(copy, None, None, reason, despite=None))
        return evictions

    def _plan_switches(self) -> list[Retarget]:
        """Read from the cache whatever is cached, and from the source what somebody deleted from the cache."""
        switches = []
        cached_paths = {copy.path for copy in self.seen.cached}
        for dataset, mounted in sorted(self.seen.mounted.items()):
            copy = self.copies.get((dataset, mounted.generation_id or ""))
            if mounted.backing_path == (copy.path if copy else "") or not self.may(dataset, ActionKind.RETARGET):
                continue
            image = self.wanted.get(dataset)
            if copy:
                reason = "its copy is whole and verified"
                switches.append(Retarget(dataset, mounted.device, copy.path, None, image, reason))
            elif self.seen.cache_unknown:
                continue  # it may well be there
            elif image and mounted.backing is Backing.CACHE and mounted.backing_path not in cached_paths:
                reason = "its cached image is not in the cache any more"
                switches.append(Retarget(dataset, mounted.device, image.path, image.generation, image, reason))
        return switches

    def _plan_copies(self, wishes: Wishes, touched: set[str], leaving_bytes: int) -> tuple[list[Evict], list[Stage]]:
        """Stage what is wished for; evict what is not, as far as its room is needed, the least valuable first."""
        staged_now = {(staged.dataset, staged.generation_id): staged for staged in self.seen.staged}
        victims = [copy for copy in self._evictable(wishes.unneeded) if copy.dataset not in touched]
        room_bytes = self.seen.space.room_bytes
        evictions: list[Evict] = []
        copies: list[Stage] = []
        if self.seen.cache_unknown:
            for dataset in wishes.pinned:
                self.problems.setdefault(dataset, Problem(self.seen.cache_problem, waiting_helps=False))
            return evictions, copies
        if room_bytes + leaving_bytes < 0:
            taken = _take_enough(victims, -(room_bytes + leaving_bytes), all_or_nothing=False)
            evictions += [self.eviction(victim, word_shrinking(self.seen.space, wishes, victim)) for victim in taken]
            leaving_bytes += sum(victim.size_bytes for victim in taken)
        for dataset in (*wishes.pinned, *wishes.chosen):
            image = self.wanted.get(dataset)
            if image is None or dataset in self.seen.foreign or (dataset, image.generation.id) in self.copies:
                continue
            staged = staged_now.get((dataset, image.generation.id))
            if staged and staged.under_way:
                continue
            need_bytes = max(0, image.size_bytes + self.seen.overhead_bytes - (staged.reserved_bytes if staged else 0))
            if need_bytes <= room_bytes:
                room_bytes -= need_bytes
                if self.may(dataset, ActionKind.STAGE) and dataset in self.seen.mounted and dataset not in touched:
                    copies.append(Stage(image, word_staging(self.seen, wishes, dataset), dataset in self.held))
                continue
            if need_bytes <= room_bytes + leaving_bytes:
                leaving_bytes -= need_bytes - max(0, room_bytes)
                room_bytes = min(0, room_bytes)
                continue
            chosen = _take_enough(victims, need_bytes - room_bytes - leaving_bytes, all_or_nothing=True)
            if not chosen:
                if dataset in self.held:
                    self.problems.setdefault(dataset, self._word_no_room(image, room_bytes, victims))
                continue
            for victim in chosen:
                evict = self.eviction(victim, word_eviction(self.seen, wishes, victim, dataset))
                unnamed = word_eviction_unnamed(wishes, victim)
                evictions.append(dataclasses.replace(evict, needed_by=dataset, reason_unnamed=unnamed))
            # Their room is seen, and staged into, only when they are gone.
            leaving_bytes += sum(victim.size_bytes for victim in chosen) + room_bytes - need_bytes
            room_bytes = 0
        return evictions, copies

    def _word_no_room(self, image: SourceImage, room_bytes: int, victims: list[CachedImage]) -> Problem:
        problem = word_no_room(self.seen, image, room_bytes, victims)
        held = [pin for pin in self.seen.pins if pin.dataset in self.held]
        own = word_own_room(image.dataset, held, self.size_bytes, self.seen.space) if problem.waiting_helps else None
        return own or problem

    def _evictable(self, datasets: Iterable[str]) -> list[CachedImage]:
        """The cached images of these datasets that may go now, in the same order."""
        return [
            self.current[dataset]
            for dataset in datasets
            if dataset in self.current
            and dataset not in self.seen.undecided
            and not self.seen.pins_problem
            and self.may(dataset, ActionKind.EVICT)
            and (dataset not in self.seen.mounted or dataset in self.wanted)
        ]

    def eviction(self, copy: CachedImage, reason: str) -> Evict:
        mounted = self.seen.mounted.get(copy.dataset)
        image = self.seen.catalog.images.get(copy.dataset)
        reading = mounted is not None and mounted.backing_path == copy.path
        device = mounted.device if mounted and reading else None
        beyond = self.seen.holders(copy.dataset) if copy.dataset in self.beyond else ()
        return Evict(copy, device, image if reading else None, reason, self._refused(copy.dataset) | frozenset(beyond))

    def _refused(self, dataset: str) -> frozenset[str]:
        """Who pins it and may not read it."""
        return frozenset(pin.holder for pin in self.seen.refused if pin.dataset == dataset)


def _find_wanted(seen: Observation) -> dict[str, SourceImage]:
    """Find the image to have in the cache for each dataset: only the one that is mounted, or about to be."""
    wanted, mounts = {}, seen.mounted
    for dataset, image in seen.catalog.images.items():
        mounted = mounts.get(dataset)
        if mounted is None or mounted.generation_id == image.generation.id:
            wanted[dataset] = image
    return wanted


def _find_current(seen: Observation) -> dict[str, CachedImage]:
    """Find the cached images of the generations that are mounted, or about to be, and that are not on their way out."""
    current = {}
    for copy in seen.cached:
        mounted, image = seen.mounted.get(copy.dataset), seen.catalog.images.get(copy.dataset)
        generation_id = mounted.generation_id if mounted else image.generation.id if image else None
        usable = copy.dataset not in seen.leaving and copy.path not in seen.bad_copies
        if usable and copy.generation_id == generation_id:
            current[copy.dataset] = copy
    return current


def _all_datasets(seen: Observation) -> set[str]:
    return {*seen.catalog.images, *seen.mounted, *(image.dataset for image in seen.cached)}


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
