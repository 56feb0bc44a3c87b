"""What people see: pure functions from values to rich's renderables. No clock, files or sockets in here.

Every text from outside goes through `clean` and into a Text: neither control characters nor rich's markup of a
dataset's, directory's or message's author reaches the terminal.
"""

import datetime
from collections.abc import Iterable, Sequence
from typing import Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scratch_slurm.cli.views import Holder, OfflineStatus, held_by_administrator, job_ids
from scratch_slurm.domain.messages import DatasetState, DatasetStatus, DiskStatus, NodeStatus
from scratch_slurm.domain.sizes import format_bytes, format_duration
from scratch_slurm.domain.words import clean, join_some, plural


class Event(Protocol):
    """What the ledger remembers of something that happened; empty text where it does not apply."""

    @property
    def at(self) -> float: ...
    @property
    def event(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def holder(self) -> str: ...
    @property
    def detail(self) -> str: ...


NARROW_COLUMNS = 110
_STATE_STYLES = {
    DatasetState.CACHED: "green",
    DatasetState.STAGING: "cyan",
    DatasetState.QUEUED: "yellow",
    DatasetState.SOURCE: "",
    DatasetState.UNMOUNTED: "red",
    DatasetState.UNKNOWN: "red",
    DatasetState.PRIVATE: "dim",
}
_NOTHING = Text("-", style="dim")


def render_node(
    node: NodeStatus, datasets: Sequence[DatasetStatus], *, now: float, width: int, blocks: bool = True
) -> RenderableType:
    """Draw a node with the chosen datasets.

    Args:
        now: epoch seconds.
        width: columns of the terminal; below 110 the table says less.
        blocks: draw bars with block characters; else with `#` and `.`.
    """
    up = format_duration(max(0.0, now - node.started_at))
    parts: list[RenderableType] = [
        Text.assemble(
            (clean(node.node), "bold"),
            f"  up {up}  {_states_summary(node.datasets)}",
        ),
        *capacity_lines(node, width=width, blocks=blocks),
    ]
    if node.source_read_bytes + node.cache_read_bytes > 0:
        parts.append(Text(reads_line(node)))
    if node.slurm:
        parts.append(Text(f"slurm  {clean(node.slurm)}"))
    if node.problem:
        parts.append(_problem("node", node.problem))
    parts += [_warning(warning) for warning in node.warnings]
    parts += ["", *dataset_list(datasets, width=width, blocks=blocks)]
    return Group(*parts)


def about_lines(dataset: DatasetStatus) -> list[Text]:
    """Draw what a dataset's manifest says of it: `imagenet: 1.3 M photographs`, and below it licence and the like."""
    about = dataset.about
    rest = {
        "licence": about.licence,
        "owner": about.owner,
        "contact": about.contact,
        "from": about.source_url,
    }
    lines = [Text(f"{clean(dataset.name)}: {clean(about.description)}")] if about.description else []
    said = [f"{name} {clean(text)}" for name, text in rest.items() if text]
    return lines + ([Text(f"{'  ' if lines else clean(dataset.name) + ': '}{', '.join(said)}")] if said else [])


def render_offline(
    offline: OfflineStatus, datasets: Sequence[DatasetStatus], *, width: int, blocks: bool = True
) -> RenderableType:
    """Draw what is known of a node whose daemon does not answer."""
    parts: list[RenderableType] = []
    if offline.used_bytes is not None:
        free = "" if offline.free_bytes is None else f"; {format_bytes(offline.free_bytes)} free on its disk"
        parts.append(Text(f"cache  {format_bytes(offline.used_bytes)} in {clean(offline.cache_dir)}{free}"))
    parts += [Text(f"not told: {clean(reason)}", style="dim") for reason in offline.untold]
    if parts:
        parts.append("")
    parts += dataset_list(datasets, width=width, blocks=blocks)
    return Group(*parts)


def capacity_lines(node: NodeStatus, *, width: int, blocks: bool = True) -> list[Text]:
    """Draw how full the cache is; of several disks one after the other, each with its directory."""
    if len(node.disks) < 2:
        return [capacity_line(node, width=width, blocks=blocks)]
    lines = []
    for disk in node.disks:
        line = capacity_line(disk, width=width, blocks=blocks)
        line.append(f"\n       in {clean(disk.cache_dir)}", style="dim")
        if disk.problem:
            line.append(", which is not used now", style="red")
        lines.append(line)
    return lines


def capacity_line(disk: NodeStatus | DiskStatus, *, width: int, blocks: bool = True) -> Text:
    """Draw how full a disk is: `cache  ####....  1.2 TB of 2.0 TB (60 %), 800.0 GB free, 100.0 GB reserved`."""
    part = disk.used_bytes / disk.capacity_bytes if disk.capacity_bytes > 0 else 1.0
    style = "green" if part < 0.8 else "yellow" if part < 0.95 else "red"
    percent = f"{part * 100:.0f} %"
    text = Text("cache  ")
    text.append_text(bar(part, 20 if width < NARROW_COLUMNS else 40, style=style, blocks=blocks))
    text.append(f"  {format_bytes(disk.used_bytes)} of {format_bytes(disk.capacity_bytes)} ({percent})", style="bold")
    low = disk.free_bytes < disk.reserve_bytes
    text.append("\n       " if width < NARROW_COLUMNS else "; ")
    text.append(f"disk: {format_bytes(disk.free_bytes)} free", style="red" if low else "")
    text.append(f", {format_bytes(disk.reserve_bytes)} of it reserved for others")
    return text


def reads_line(node: NodeStatus) -> str:
    """Say who served the reads: `reads  12.0 GB from the cache, 3.0 GB from the source (80 % saved)`."""
    cache, source = node.cache_read_bytes, node.source_read_bytes
    percent = 100 * cache // (cache + source)
    return f"reads  {format_bytes(cache)} from the cache, {format_bytes(source)} from the source ({percent} % saved)"


def bar(part: float, cells: int, *, style: str, blocks: bool = True) -> Text:
    """Draw a bar of `cells` characters; a part that is not zero shows at least one of them, and only 1.0 shows all."""
    part = min(1.0, max(0.0, part))
    full = cells if part == 1.0 else min(cells - 1, max(int(part * cells), 1 if part > 0 else 0))
    filled, empty = ("█", "░") if blocks else ("#", ".")
    return Text.assemble((filled * full, style), (empty * (cells - full), "dim"))


def dataset_list(datasets: Sequence[DatasetStatus], *, width: int, blocks: bool = True) -> tuple[RenderableType, ...]:
    """Draw the table of datasets, and below it what is wrong with which; of a single one also what it is."""
    if not datasets:
        return (Text("no datasets"),)
    narrow = width < NARROW_COLUMNS
    table = _table()
    table.add_column("DATASET", overflow="fold", ratio=None)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("HELD BY", overflow="fold")
    table.add_column("READS", justify="right", no_wrap=True)
    for dataset in datasets:
        table.add_row(
            Text(clean(dataset.name)),
            Text(format_bytes(dataset.size_bytes)) if dataset.size_bytes else _NOTHING,
            state_text(dataset, narrow=narrow, blocks=blocks),
            holders_text(dataset, narrow=narrow),
            Text(format_bytes(dataset.read_bytes_per_s) + "/s") if dataset.read_bytes_per_s >= 1 else _NOTHING,
        )
    problems = [_problem(dataset.name, dataset.problem) for dataset in datasets if dataset.problem]
    waiting = [
        _note(dataset.name, "the source has a newer image; it is served when the last pin goes")
        for dataset in datasets
        if dataset.update_waiting and not dataset.problem
    ]
    about = about_lines(datasets[0]) if len(datasets) == 1 else []
    return (table, *([""] if problems or waiting or about else []), *problems, *waiting, *about)


def state_text(dataset: DatasetStatus, *, narrow: bool = False, blocks: bool = True) -> Text:
    """Write a dataset's state; for a copy under way also how far it is, how fast, and how long it takes still."""
    text = Text(dataset.state.value, style=_STATE_STYLES[dataset.state])
    if dataset.state is DatasetState.STAGING:
        part = staged_part(dataset)
        text.append(" ")
        text.append_text(bar(part, 10, style="cyan", blocks=blocks))
        text.append(f" {int(part * 100)} %")
        details = stage_details(dataset)
        if details:
            text.append("\n  " if narrow else "  ")
            text.append(", ".join(details), style="dim")
    if dataset.update_waiting:
        text.append(" (update waits)", style="yellow")
    return text


def staged_part(dataset: DatasetStatus) -> float:
    """Tell which part of the copy under way is done, from 0 to 1."""
    return min(1.0, dataset.staged_bytes / dataset.size_bytes) if dataset.size_bytes > 0 else 0.0


def stage_details(dataset: DatasetStatus) -> list[str]:
    """Write rate and time left of a copy under way, as far as they are known."""
    details = []
    if dataset.stage_bytes_per_s > 0:
        details.append(f"{format_bytes(dataset.stage_bytes_per_s)}/s")
    if dataset.eta_s is not None:
        details.append(f"{format_duration(dataset.eta_s)} left")
    return details


def holders_text(dataset: DatasetStatus, *, narrow: bool = False) -> Text:
    """Write the use count and who holds it: `2 jobs: 12, 13; administrator`; narrow: `2 jobs; admin`."""
    parts = []
    numbers = [str(number) for number in job_ids(dataset)]
    if dataset.use_count == 1 and numbers:
        parts.append(f"job {numbers[0]}")
    elif dataset.use_count:
        jobs = plural(dataset.use_count, "job")
        # A caller who may not see whose jobs they are gets the count alone.
        parts.append(f"{jobs}: {join_some(numbers, 3)}" if numbers and not narrow else jobs)
    if held_by_administrator(dataset):
        parts.append("admin" if narrow else "administrator")
    return Text("; ".join(parts)) if parts else _NOTHING


def render_jobs(holders: Sequence[Holder], *, now: float) -> RenderableType:
    """Draw who pins what, since when."""
    if not holders:
        return Text("no pins")
    table = _table()
    table.add_column("HOLDER", no_wrap=True)
    table.add_column("UID", justify="right", no_wrap=True)
    table.add_column("FOR", justify="right", no_wrap=True)
    table.add_column("DATASET", overflow="fold")
    table.add_column("STATE", no_wrap=True)
    for holder in holders:
        name = clean(holder.holder) if holder.job_id is None else f"job {holder.job_id}"
        uid = _NOTHING if holder.uid is None else Text(str(holder.uid))
        for held in holder.datasets:
            age = _NOTHING if held.since_at is None else Text(format_duration(max(0.0, now - held.since_at)))
            state = Text(held.state.value, style=_STATE_STYLES[held.state])
            table.add_row(Text(name, style="bold"), uid, age, Text(clean(held.name)), state)
            name, uid = "", Text("")
    return table


def render_events(events: Sequence[Event]) -> RenderableType:
    """Draw events in the order given."""
    if not events:
        return Text("no events")
    table = _table()
    table.add_column("TIME", no_wrap=True)
    table.add_column("EVENT", no_wrap=True)
    table.add_column("DATASET", overflow="fold")
    table.add_column("HOLDER", no_wrap=True)
    table.add_column("DETAIL", overflow="fold")
    for event in events:
        at = datetime.datetime.fromtimestamp(event.at).astimezone()
        table.add_row(
            Text(at.strftime("%Y-%m-%d %H:%M:%S")),
            Text(clean(event.event), style="bold"),
            Text(clean(event.dataset)),
            Text(clean(event.holder)),
            Text(clean(event.detail)),
        )
    return table


def state_counts(datasets: Iterable[DatasetStatus]) -> dict[DatasetState, int]:
    """Count datasets by state, in the order of DatasetState; states without a dataset are left out."""
    states = [dataset.state for dataset in datasets]
    return {state: states.count(state) for state in DatasetState if state in states}


def describe_dataset(dataset: DatasetStatus) -> str:
    """Write one dataset's state on one line, for logs and pipes: `coco: staging 43 %, 210.0 MB/s, 55 s left`."""
    line = f"{clean(dataset.name)}: {dataset.state.value}"
    if dataset.state is DatasetState.STAGING:
        line += ", ".join([f" {int(staged_part(dataset) * 100)} %", *stage_details(dataset)])
    return f"{line}: {clean(dataset.problem)}" if dataset.problem else line


def _states_summary(datasets: Sequence[DatasetStatus]) -> str:
    counts = ", ".join(f"{count} {state.value}" for state, count in state_counts(datasets).items())
    return f"{plural(len(datasets), 'dataset')}: {counts}" if counts else "no datasets"


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold dim")


def _warning(text: str) -> Text:
    return Text.assemble(("! ", "bold yellow"), clean(text))


def _problem(name: str, problem: str) -> Text:
    return Text.assemble(("! ", "bold red"), (clean(name), "bold"), f": {clean(problem)}")


def _note(name: str, text: str) -> Text:
    return Text.assemble(("* ", "bold yellow"), (clean(name), "bold"), f": {text}")
