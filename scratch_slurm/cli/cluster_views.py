"""The datasets of the whole cluster: what the source and Slurm tell, put together. Pure."""

import fnmatch
from collections.abc import Iterable, Mapping

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scratch_slurm.domain.errors import NotFoundError
from scratch_slurm.domain.names import DATASET_NAME, nearest_hint
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.domain.words import clean


class ClusterDataset(msgspec.Struct, frozen=True):
    """A dataset, as far as this host can tell."""

    name: str
    size_bytes: int | None
    """None: the source is not seen here, or has it no more."""
    in_source: bool | None
    """None: the source is not seen here."""
    nodes: tuple[str, ...] | None
    """Where it is cached, sorted; None: Slurm does not tell."""


class ClusterDatasets(msgspec.Struct, frozen=True):
    """What `datasets --json` prints."""

    source_dir: str | None
    """The directory whose images were listed; None: none is seen here."""
    node_count: int | None
    """All nodes of the cluster; None: Slurm does not tell."""
    datasets: tuple[ClusterDataset, ...]


def list_datasets(
    sizes: Mapping[str, int] | None, features: Mapping[str, Iterable[str]] | None, *, prefix: str
) -> tuple[ClusterDataset, ...]:
    """Put together what is in the source and what nodes have cached.

    Args:
        sizes: dataset -> bytes of its image; None: the source is not seen here.
        features: node -> its active features; None: Slurm does not tell.
        prefix: what a feature begins with that stands for a cached dataset.
    Returns: every dataset that either knows, by name.
    """
    cached: dict[str, list[str]] = {}
    for node, its_features in (features or {}).items():
        for feature in its_features:
            name = feature.removeprefix(prefix)
            if feature.startswith(prefix) and DATASET_NAME.fullmatch(name):
                cached.setdefault(name, []).append(node)
    return tuple(
        ClusterDataset(
            name,
            None if sizes is None else sizes.get(name),
            None if sizes is None else name in sizes,
            None if features is None else tuple(sorted(cached.get(name, ()))),
        )
        for name in sorted({*(sizes or {}), *cached})
    )


def choose(datasets: tuple[ClusterDataset, ...], pattern: str | None) -> tuple[ClusterDataset, ...]:
    """Choose by a shell pattern, or by a part of the name where that has none of `*?[`; all of them for None.

    Raises: NotFoundError: nothing matches; the hint has the nearest names.
    """
    if pattern is None:
        return datasets
    shell = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    chosen = tuple(dataset for dataset in datasets if fnmatch.fnmatchcase(dataset.name, shell))
    if not chosen:
        raise NotFoundError(
            f"no dataset matches {pattern[:80]!r}", hint=nearest_hint(pattern, (dataset.name for dataset in datasets))
        )
    return chosen


def render(cluster: ClusterDatasets) -> RenderableType:
    """Draw the table."""
    if not cluster.datasets:
        return Text("no datasets")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold dim")
    table.add_column("DATASET", overflow="fold")
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("CACHED ON", justify="right", no_wrap=True)
    for dataset in cluster.datasets:
        size = "-" if dataset.size_bytes is None else format_bytes(dataset.size_bytes)
        table.add_row(Text(clean(dataset.name)), Text(size), _nodes_text(dataset, cluster.node_count))
    gone = [dataset.name for dataset in cluster.datasets if dataset.in_source is False]
    notes = [Text(f"* {clean(name)}: cached, but not in the source any more", style="yellow") for name in gone]
    return Group(table, *([""] if notes else []), *notes)


def _nodes_text(dataset: ClusterDataset, node_count: int | None) -> Text:
    if dataset.nodes is None or node_count is None:
        return Text("-")
    style = "green" if dataset.nodes else "dim"
    return Text(f"{len(dataset.nodes)} of {node_count} node{'' if node_count == 1 else 's'}", style=style)
