"""The planner: from cards to ordered actions, each with its reason. Pure.

What a dataset needs by itself is in `plan.moves`, how all share the disks in `plan.room`; here both are put together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scratch_slurm.domain.actions import Action, Evict, Retarget
from scratch_slurm.domain.choice import Wishes
from scratch_slurm.domain.dataset import Card, Node
from scratch_slurm.domain.errors import DaemonError, NotFoundError, PinnedError
from scratch_slurm.domain.plan.moves import Decision, decide_all, evict
from scratch_slurm.domain.plan.room import share
from scratch_slurm.domain.reasons import Problem


@dataclass(frozen=True)
class Plan:
    actions: tuple[Action, ...]
    problems: Mapping[str, Problem]
    """By dataset."""
    wishes: Wishes
    """What the cache should hold, and why."""
    unplaced: frozenset[str] = frozenset()
    """Datasets that should be cached, and that no single disk has room for beside the others."""
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    """On each card by itself, for the next plan."""

    @property
    def value_bytes(self) -> float:
        """What the choice saves, without what finds no disk."""
        verdicts = (self.wishes.verdicts.get(name) for name in self.unplaced)
        return self.wishes.knapsack.value_bytes - sum(each.value_bytes for each in verdicts if each and each.chosen)

    @property
    def gap(self) -> float:
        """By which part of what is possible at most the plan saves less; 0: it is optimal."""
        bound_bytes = self.wishes.knapsack.bound_bytes
        return 1 - self.value_bytes / bound_bytes if self.unplaced and bound_bytes > 0 else self.wishes.knapsack.gap


def plan_cards(cards: Mapping[str, Card], node: Node, before: Mapping[str, Decision] | None = None) -> Plan:
    """Decide what to do next.

    At most one action a dataset, but a copy to drop and a cached image to delete may come beside it.

    Args:
        before: `decisions` of the plan before: a card that is the same object is not looked at again.
    Returns: actions in the order to start them: drops and evictions, mounts, switches, copies.
    """
    decisions = decide_all(cards, node.now, before or {})
    shared = share(cards, node, decisions)
    moves = [decision for decision in decisions.values() if decision.move is not None]
    # Whom a job waits for first, then what is mounted without the slow storage.
    moves.sort(key=lambda each: (not each.card.is_pinned, not each.card.copies, each.card.name))
    mounts = [each.move for each in moves if each.move and not isinstance(each.move, Retarget)]
    switches = sorted((each.move for each in moves if isinstance(each.move, Retarget)), key=lambda each: each.dataset)
    problems = {name: decision.problem for name, decision in decisions.items() if decision.problem}
    return Plan(
        (*shared.drops, *shared.evictions, *mounts, *switches, *shared.stages),
        {**shared.problems, **problems},
        shared.wishes,
        shared.unplaced,
        decisions,
    )


def plan_eviction(cards: Mapping[str, Card], node: Node, dataset: str, reason: str) -> Evict:
    """Plan the eviction that an administrator asks for.

    Raises:
        NotFoundError: the dataset is not cached here.
        PinnedError: a job or the administrator holds a pin.
        DaemonError: something else is under way with the dataset, or its source image cannot take over.
    """
    card = cards.get(dataset, Card(dataset))
    mounted = card.mounted
    copies = sorted(card.copies, key=lambda copy: (mounted is None or not mounted.reads(copy), copy.path))
    unusable = [disk.problem for disk in node.disks if disk.problem]
    if not copies and unusable:
        raise DaemonError(f"{dataset}: {'; '.join(unusable)}")
    if not copies:
        raise NotFoundError(f"{dataset}: is not cached on this node")
    if not card.are_claims_known:
        raise DaemonError(f"{dataset}: whether somebody pins it is not known", hint="see `scratch-slurm status`")
    holders = [str(claim.holder) for claim in card.claims if claim.counts]
    if holders:
        raise PinnedError(f"{dataset}: is pinned by {', '.join(holders)}", hint="it can go when its jobs have ended")
    if card.is_undecided:
        raise PinnedError(f"{dataset}: is pinned, and it is not known whether by somebody that may read it")
    if card.under_way is not None:
        raise DaemonError(f"{dataset}: something is under way with it", hint="try again in some seconds")
    found = evict(card, copies[0], reason)
    if found is None:
        raise DaemonError(f"{dataset}: its image in the source cannot take over", hint="see `scratch-slurm status`")
    return found
