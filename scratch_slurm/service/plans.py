"""A plan as the interface tells it. Pure."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from msgspec import structs

from scratch_slurm.domain import planner
from scratch_slurm.domain.actions import Action, DropStaged, Evict, Stage
from scratch_slurm.domain.config import Config, resolve_size
from scratch_slurm.domain.dataset import Card, Disk, Node
from scratch_slurm.domain.messages import ActionAnswer, PlanAnswer, PlanRequest, VerdictAnswer
from scratch_slurm.domain.planner import Plan
from scratch_slurm.domain.throughput import ReadCounter


def what_if(
    config: Config,
    cards: Mapping[str, Card],
    node: Node,
    counters: Mapping[str, ReadCounter],
    asked: PlanRequest,
    *,
    now: float,
    is_told: Callable[[str], object],
) -> PlanAnswer:
    """Plan with other figures, from the cards as they are; nothing is done.

    Args:
        now: monotonic seconds.
        is_told: whether the reader may be told of a dataset.
    Raises: UsageError: a figure is not valid.
    """
    period_s = asked.period_s or config.period_s
    if asked.period_s:
        cards = {name: _over(card, counters.get(name), period_s, now) for name, card in cards.items()}
    if asked.capacity:
        node = dataclasses.replace(node, disks=[_with_capacity(disk, asked.capacity) for disk in node.disks])
    if asked.horizon_s:
        node = dataclasses.replace(node, horizon_s=asked.horizon_s)
    return answer_plan(node, planner.plan_cards(cards, node), period_s, is_told)


def _over(card: Card, counter: ReadCounter | None, period_s: float, now: float) -> Card:
    """Take a dataset's read rate over another period."""
    rate = counter.streak_rate(now, period_s) if counter else 0.0
    return structs.replace(card, reads=structs.replace(card.reads, bytes_per_s=rate))


def _with_capacity(disk: Disk, capacity: str) -> Disk:
    capacity_bytes = resolve_size(capacity, whole_bytes=disk.space.whole_bytes)
    return dataclasses.replace(disk, space=dataclasses.replace(disk.space, capacity_bytes=capacity_bytes))


def answer_plan(node: Node, plan: Plan, period_s: float, is_told: Callable[[str], object]) -> PlanAnswer:
    """Tell what a plan would do and why; verdicts on what is cached, pinned or read, the most valuable first.

    Args:
        is_told: whether the reader may be told of a dataset; of others no name is said, nor what is done for them.
    """
    wishes = plan.wishes
    verdicts = sorted(wishes.verdicts.values(), key=lambda each: (not each.wanted, -each.value_bytes, each.dataset))
    return PlanAnswer(
        capacity_bytes=sum(disk.space.capacity_bytes for disk in node.disks),
        reserve_bytes=sum(disk.space.reserve_bytes for disk in node.disks),
        used_bytes=sum(disk.space.used_bytes for disk in node.disks),
        period_s=period_s,
        horizon_s=node.horizon_s,
        value_bytes=plan.value_bytes,
        gap=plan.gap,
        actions=tuple(
            ActionAnswer(action.kind, action.dataset, _reason(action, is_told), _disk(action))
            for action in plan.actions
            if is_told(action.dataset)
        ),
        verdicts=tuple(
            VerdictAnswer(
                each.dataset,
                each.size_bytes,
                each.cached,
                each.wanted,
                each.bytes_per_s,
                each.value_bytes,
                "; ".join((each.reason, *_hindrances(node, plan, each.dataset))),
            )
            for each in verdicts
            if is_told(each.dataset)
        ),
    )


def _hindrances(node: Node, plan: Plan, dataset: str) -> Iterator[str]:
    """Say why a dataset will not be as its verdict wants it."""
    if dataset in plan.problems:
        yield plan.problems[dataset].text
    elif dataset in plan.unplaced and any(not disk.problem and not disk.is_unknown for disk in node.disks):
        yield "no single disk has room for it beside the others"


def _disk(action: Action) -> str:
    match action:
        case Stage():
            return action.disk
        case Evict():
            return action.image.disk
        case DropStaged():
            return action.staged.disk
    return ""


def _reason(action: Action, is_told: Callable[[str], object]) -> str:
    if isinstance(action, Evict) and action.needed_by and not is_told(action.needed_by):
        return action.reason_unnamed
    return action.reason
