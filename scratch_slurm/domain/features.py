"""Node features: what Slurm is told of the cache, merged with what is the administrator's own. Pure.

Source: node features of scontrol(1); docs/SLURM.md, "Features".
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

# The alphabet of dataset names, all of it good for a feature. Anything else is written as = and two digits.
_PLAIN = re.compile(r"[A-Za-z0-9._@+-]", re.ASCII)

_EXTRA_KEY = "scratch_slurm"


@dataclass(frozen=True)
class NodeFeatures:
    """The features of one node, in Slurm's order; the active ones are always among the available ones."""

    available: tuple[str, ...] = ()
    active: tuple[str, ...] = ()
    extra: str | None = ""
    """The node's Extra, a text for tools. To write: None leaves it as it is."""


def feature_name(dataset: str, prefix: str) -> str:
    """Name the feature of a dataset: the prefix and the name.

    A character that no dataset name has today becomes `=` and the two hexadecimal digits of each of its bytes, so
    that two names never share a feature.
    """
    return prefix + "".join(map(_plain, dataset))


def _plain(character: str) -> str:
    if _PLAIN.fullmatch(character):
        return character
    return "".join(f"={byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))


def plan_features(now: NodeFeatures, cached: Collection[str], *, prefix: str) -> NodeFeatures | None:
    """Choose what Slurm has to be told.

    Features without the prefix are the administrator's: all stay, in their order, active or not as they were. Those
    with the prefix are ours: they become one for each cached dataset, active.

    Args:
        now: what Slurm has.
        cached: dataset names, in any order.
        prefix: what our features begin with; not empty.
    Returns: what to write, both lists whole; None when Slurm has it all already.
    """
    ours = tuple(sorted({feature_name(dataset, prefix) for dataset in cached}))
    wanted = NodeFeatures(
        available=(*_others(now.available, prefix), *ours),
        active=(*_others(now.active, prefix), *ours),
        extra=_plan_extra(now.extra or "", cached),
    )
    same = set(now.available) == set(wanted.available) and set(now.active) == set(wanted.active)
    return None if same and wanted.extra is None else wanted


def group_to_forget(nodes: Mapping[str, NodeFeatures], *, prefix: str) -> list[tuple[NodeFeatures, tuple[str, ...]]]:
    """Choose what to write where nothing is cached any more, for many nodes at once.

    Args:
        nodes: node -> what Slurm has.
    Returns: what to write, and the nodes to write it for; nodes of which nothing is to be forgotten are in none.
    """
    groups: dict[NodeFeatures, list[str]] = {}
    for node, now in nodes.items():
        planned = plan_features(now, (), prefix=prefix)
        if planned is not None:
            groups.setdefault(planned, []).append(node)
    return [(features, tuple(some)) for features, some in groups.items()]


def _others(features: Iterable[str], prefix: str) -> list[str]:
    return [feature for feature in dict.fromkeys(features) if not feature.startswith(prefix)]


def format_extra(datasets: Iterable[str]) -> str:
    """Write the node's Extra: JSON for tools; empty without datasets."""
    names = sorted(set(datasets))
    return json.dumps({_EXTRA_KEY: {"datasets": names}}) if names else ""


def is_extra_ours(text: str) -> bool:
    """Tell whether the node's Extra is ours to write: it is empty, or holds what we wrote and nothing else."""
    if not text:
        return True
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() == {_EXTRA_KEY}


def _plan_extra(text: str, cached: Collection[str]) -> str | None:
    wanted = format_extra(cached)
    return None if text == wanted or not is_extra_ours(text) else wanted
