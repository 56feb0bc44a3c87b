"""How a plan looks: pure functions from the answer to rich's renderables."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scratch_slurm.domain.messages import ActionAnswer, PlanAnswer, VerdictAnswer
from scratch_slurm.domain.sizes import format_bytes, format_duration
from scratch_slurm.domain.words import clean


def render_plan(plan: PlanAnswer) -> RenderableType:
    """Draw a plan: its figures, what it would do, and the verdict on each dataset."""
    figures = (
        f"capacity {format_bytes(plan.capacity_bytes)}, used {format_bytes(plan.used_bytes)}, "
        f"{format_bytes(plan.reserve_bytes)} of the disk kept free; "
        f"reads of the last {format_duration(plan.period_s)}, trusted for {format_duration(plan.horizon_s)}"
    )
    worth = f"what is chosen saves {format_bytes(plan.value_bytes)} of slow reads ({_word_gap(plan.gap)})"
    return Group(Text(figures), Text(worth), "", *_actions(plan.actions), "", _verdicts(plan.verdicts))


def _word_gap(gap: float) -> str:
    """Say how far a plan is from the best: a search that ended early, or images that no single disk has room for."""
    return "the best choice" if gap <= 0 else f"at most {max(gap * 100, 0.001):.3g} % less than the best choice would"


def _actions(actions: tuple[ActionAnswer, ...]) -> list[RenderableType]:
    if not actions:
        return [Text("nothing to do")]
    several = len({action.disk for action in actions if action.disk}) > 1
    return [
        Text(
            f"{action.kind} {clean(action.dataset)}{f' in {clean(action.disk)}' if several and action.disk else ''}"
            f": {clean(action.reason)}"
        )
        for action in actions
    ]


def _verdicts(verdicts: tuple[VerdictAnswer, ...]) -> RenderableType:
    if not verdicts:
        return Text("no datasets")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold dim")
    table.add_column("DATASET", overflow="fold")
    for column in ("SIZE", "READS", "WORTH"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("CACHE", no_wrap=True)
    table.add_column("WHY", overflow="fold")
    for each in verdicts:
        table.add_row(
            Text(clean(each.name)),
            format_bytes(each.size_bytes),
            f"{format_bytes(each.bytes_per_s)}/s" if each.bytes_per_s >= 1 else "-",
            format_bytes(each.value_bytes),
            _word_cache(each),
            Text(clean(each.reason)),
        )
    return table


def _word_cache(verdict: VerdictAnswer) -> Text:
    if verdict.cached:
        return Text("keep", style="green") if verdict.wanted else Text("while room", style="dim")
    return Text("stage", style="cyan") if verdict.wanted else Text("no", style="dim")
