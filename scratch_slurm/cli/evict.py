"""`scratch-slurm evict`: the administrator lets datasets go."""

import click

from scratch_slurm.cli import client
from scratch_slurm.cli.app import App, json_option, note, pass_app, print_json, require_root
from scratch_slurm.cli.offline import read_offline
from scratch_slurm.cli.pins import open_ledger
from scratch_slurm.cli.views import find_dataset, held_by_administrator, job_ids
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DaemonError, NotFoundError, PinnedError
from scratch_slurm.domain.messages import DatasetStatus, NodeStatus
from scratch_slurm.domain.model import ADMINISTRATOR
from scratch_slurm.domain.names import parse_dataset_name
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.domain.words import join_some, plural


@click.command("evict")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@json_option
@pass_app
def command(app: App, datasets: tuple[str, ...]) -> None:
    """Release the administrator's pins of datasets and free what they hold in the cache. Needs root.

    All or nothing: with a name that is unknown or a dataset that a job pins nothing is released, and with the daemon
    down only what is not cached. Jobs that read an evicted dataset go on reading, from the source.
    """
    require_root("evict")
    names = tuple(dict.fromkeys(parse_dataset_name(name) for name in datasets))
    config = app.config()
    try:
        node = client.read_status(config)
    except DaemonError as exc:
        freed = _take_back(config, names, exc)
    else:
        _check(node, names)
        freed = _run_evict(config, names)
    if app.json:
        print_json({"evicted": [{"dataset": name, "freed_bytes": freed_bytes} for name, freed_bytes in freed.items()]})
        return
    for name, freed_bytes in freed.items():
        click.echo(
            f"{name}: freed {format_bytes(freed_bytes)}" if freed_bytes else f"{name}: let go; it was not cached"
        )


def _take_back(config: Config, names: tuple[str, ...], down: DaemonError) -> dict[str, int]:
    """Without the daemon: release the administrator's pins of what is not cached, which takes nobody's copy.

    Raises: DaemonError: one of the names needs the daemon.
    """
    node = read_offline(config)
    listed = {dataset.name: dataset for dataset in node.datasets}
    if node.used_bytes is None or not all(
        name in listed and held_by_administrator(listed[name]) and not listed[name].cached_bytes for name in names
    ):
        raise down
    with open_ledger(config) as ledger:
        ledger.release(ADMINISTRATOR, names)
    return dict.fromkeys(names, 0)


def _check(node: NodeStatus, names: tuple[str, ...]) -> None:
    by_name = {dataset.name: dataset for dataset in node.datasets}
    chosen: list[DatasetStatus] = []
    for name in names:
        listed = by_name.get(name)
        # A dataset that left the source may still be pinned or cached: letting it go is what the command is for.
        known = listed is not None and (listed.holders or listed.cached_bytes)
        chosen.append(listed if listed is not None and known else find_dataset(node.datasets, name))
    pinned = [dataset for dataset in chosen if dataset.use_count]
    if pinned:
        raise PinnedError(
            "; ".join(f"{dataset.name}: pinned by {_jobs(dataset)}" for dataset in pinned) + "; nothing was evicted",
            hint="a job's pins go with its epilog, or with `scancel`",
        )


def _jobs(dataset: DatasetStatus) -> str:
    numbers = job_ids(dataset)
    if not numbers:
        return plural(dataset.use_count, "job")
    return f"{'job' if len(numbers) == 1 else 'jobs'} {join_some([str(number) for number in numbers], 10)}"


def _run_evict(config: Config, names: tuple[str, ...]) -> dict[str, int]:
    """Release and evict; what could not be evicted gets its pin back.

    Returns: dataset -> bytes freed.
    """
    freed: dict[str, int] = {}
    with open_ledger(config) as ledger:
        released = ledger.release(ADMINISTRATOR, names)
        try:
            for name in names:
                freed[name] = _evict(config, name, released)
        except BaseException:
            kept = [name for name in released if name not in freed]
            if kept:
                ledger.pin(ADMINISTRATOR, kept, uid=0)
            for name, freed_bytes in freed.items():
                note(f"{name}: freed {format_bytes(freed_bytes)}")
            raise
    return freed


def _evict(config: Config, name: str, released: tuple[str, ...]) -> int:
    try:
        return client.evict(config, name).freed_bytes
    except NotFoundError:
        if name not in released:
            raise
        return 0  # a pin of what never came was all that there was
