"""The values that commands print: what the daemon said, put in the order that people ask in. Pure."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from scratch_slurm.domain.errors import NotFoundError
from scratch_slurm.domain.messages import DatasetState, DatasetStatus, NodeStatus
from scratch_slurm.domain.model import ADMINISTRATOR, Pin
from scratch_slurm.domain.names import nearest_hint


class OfflineStatus(msgspec.Struct, frozen=True):
    """A node whose daemon does not answer: what the kernel, the cache directory and the ledger tell."""

    source_dir: str
    cache_dir: str
    mount_dir: str
    used_bytes: int | None
    """Bytes in the cache directory; None: this caller may not read it."""
    free_bytes: int | None
    datasets: tuple[DatasetStatus, ...]
    untold: tuple[str, ...]
    """What could not be read, and why; empty for root on a healthy node."""
    daemon: bool = False


class HeldDataset(msgspec.Struct, frozen=True):
    """A dataset in the list of one holder."""

    name: str
    state: DatasetState
    since_at: float | None = None
    """When the holder pinned it, epoch seconds; None: only root may read the ledger."""


class Holder(msgspec.Struct, frozen=True):
    """A job, or the administrator, with its pins."""

    holder: str
    """`job:<id>` or `administrator`."""
    job_id: int | None
    uid: int | None
    """None: only root may read the ledger."""
    since_at: float | None
    """Its first pin, epoch seconds."""
    datasets: tuple[HeldDataset, ...]


def group_holders(datasets: Iterable[DatasetStatus], pins: Iterable[Pin] = ()) -> tuple[Holder, ...]:
    """Turn datasets with their holders into holders with their datasets.

    Args:
        datasets: what the daemon, or the node without it, told; their order is kept within a holder.
        pins: the ledger's pins, for the times and users; without them these are None.
    Returns: the administrator first, then the jobs by number.
    """
    known = {(pin.holder, pin.dataset): pin for pin in pins}
    held: dict[str, list[HeldDataset]] = {}
    for dataset in datasets:
        for holder in dataset.holders:
            pin = known.get((holder, dataset.name))
            held.setdefault(holder, []).append(HeldDataset(dataset.name, dataset.state, pin.asked_at if pin else None))
    uids = {pin.holder: pin.uid for pin in known.values()}
    holders = [
        Holder(
            holder,
            job_id(holder),
            uids.get(holder),
            min((one.since_at for one in some if one.since_at is not None), default=None),
            tuple(some),
        )
        for holder, some in held.items()
    ]
    return tuple(sorted(holders, key=lambda one: (one.job_id is not None, one.job_id or 0, one.holder)))


def job_id(holder: str) -> int | None:
    """Tell the job's number of `job:<id>`; None for any other holder."""
    kind, _, number = holder.partition(":")
    return int(number) if kind == "job" and number.isdecimal() else None


def job_ids(dataset: DatasetStatus) -> list[int]:
    """List the jobs that pin a dataset, by number."""
    return sorted(number for holder in dataset.holders if (number := job_id(holder)) is not None)


def held_by_administrator(dataset: DatasetStatus) -> bool:
    """Tell whether the administrator pins a dataset."""
    return ADMINISTRATOR in dataset.holders


def choose_datasets(node: NodeStatus, names: Sequence[str]) -> tuple[DatasetStatus, ...]:
    """Choose the named datasets in the order of asking; all of them for no names.

    Raises: NotFoundError: the node knows no such dataset; the hint has the nearest names.
    """
    if not names:
        return node.datasets
    return tuple(find_dataset(node.datasets, name) for name in dict.fromkeys(names))


def find_dataset(datasets: Iterable[DatasetStatus], name: str) -> DatasetStatus:
    """Find a dataset that exists on this node.

    Raises: NotFoundError: there is none of this name, or it is only pinned and not in the source.
    """
    by_name: Mapping[str, DatasetStatus] = {dataset.name: dataset for dataset in datasets}
    if name in by_name and by_name[name].state is not DatasetState.UNKNOWN:
        return by_name[name]
    known = [other for other, dataset in by_name.items() if dataset.state is not DatasetState.UNKNOWN]
    hint = nearest_hint(name, known) or f"`scratch-slurm status` lists the {len(known)} datasets of this node"
    raise NotFoundError(f"dataset {name!r} is not known on this node", hint=hint)
