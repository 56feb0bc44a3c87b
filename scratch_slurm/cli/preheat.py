"""`scratch-slurm preheat`: the administrator wants datasets cached, and keeps them so."""

import contextlib
import time
from collections.abc import Callable, Iterator

import click

from scratch_slurm.cli import client
from scratch_slurm.cli.app import App, json_option, make_console, note, pass_app, print_json, require_root
from scratch_slurm.cli.pins import open_ledger
from scratch_slurm.cli.views import find_dataset
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DaemonError, ImageError, NoSpaceError, NotFoundError
from scratch_slurm.domain.messages import DatasetState, DatasetStatus, WaitAnswer
from scratch_slurm.domain.model import ADMINISTRATOR
from scratch_slurm.domain.names import parse_dataset_name
from scratch_slurm.domain.words import clean

_POLL_S = 0.5

Show = Callable[[tuple[DatasetStatus, ...]], None]


@click.command("preheat")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@click.option("--wait/--no-wait", "waits", default=True, show_default=True, help="Wait until they are cached.")
@json_option
@pass_app
def command(app: App, datasets: tuple[str, ...], waits: bool) -> None:
    """Pin datasets for the administrator, and follow their copies into the cache. Needs root.

    The pins stay until `scratch-slurm evict`, through reboots too. Ctrl-C ends the waiting, not the copying. While the
    daemon is down the pins are recorded all the same, and the exit code is 5.
    """
    require_root("preheat")
    names = tuple(dict.fromkeys(parse_dataset_name(name) for name in datasets))
    config = app.config()
    down = _check(config, names)
    with open_ledger(config) as ledger:
        ledger.pin(ADMINISTRATOR, names, uid=0)
    if down is not None:
        raise DaemonError(
            f"{down.message}; pinned all the same: {', '.join(names)}",
            hint="the daemon copies them when it runs: systemctl start scratch-slurmd",
        ) from down
    try:
        answer = client.wait(config, names)
        if waits and not answer.settled:
            answer = _follow(config, names, answer, quiet=app.json)
    except KeyboardInterrupt:
        note(f"the pins stay, and the copying goes on: {', '.join(names)}")
        raise
    except DaemonError as exc:
        raise DaemonError(f"{exc.message}; the pins stay: {', '.join(names)}", hint=exc.hint) from exc
    _report(app, config, answer, waits=waits)


def _check(config: Config, names: tuple[str, ...]) -> DaemonError | None:
    """Refuse names that the node does not know; without the daemon nobody can tell, and the error is returned.

    Raises: NotFoundError: a name is unknown.
    """
    try:
        # Asked with a round of the daemon's loop, so that it is not older than this command.
        answered = client.wait(config, names)
        if any(dataset.state is DatasetState.UNKNOWN for dataset in answered.datasets):
            listed = client.read_status(config).datasets
            for dataset in answered.datasets:
                if dataset.state is DatasetState.UNKNOWN:
                    _refuse(dataset, listed)
    except DaemonError as exc:
        return exc
    return None


def _refuse(dataset: DatasetStatus, listed: tuple[DatasetStatus, ...]) -> None:
    """Say what the daemon says: before the source has been listed nobody can tell that there is no such dataset."""
    if dataset.problem:
        raise NotFoundError(
            f"dataset {dataset.name!r}: {dataset.problem}", hint="nothing was pinned; `scratch-slurm status` lists all"
        )
    find_dataset(listed, dataset.name)


def _follow(config: Config, names: tuple[str, ...], answer: WaitAnswer, *, quiet: bool) -> WaitAnswer:
    with _shown(quiet) as show:
        while True:
            show(answer.datasets)
            if answer.settled:
                return answer
            asked_at = time.monotonic()
            answer = client.wait(config, names, _POLL_S)
            if not answer.settled:
                time.sleep(max(0.0, _POLL_S - (time.monotonic() - asked_at)))


@contextlib.contextmanager
def _shown(quiet: bool) -> Iterator[Show]:
    """Give a function that shows how far the copies are: bars on a terminal, a line for each change elsewhere."""
    if quiet:
        yield lambda _datasets: None
        return
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield _line_shower()
        return
    from scratch_slurm.cli.progress import copy_bars

    with copy_bars(console) as show:
        yield show


def _line_shower() -> Show:
    seen: dict[str, tuple[DatasetState, str]] = {}

    def show(datasets: tuple[DatasetStatus, ...]) -> None:
        for dataset in datasets:
            if seen.get(dataset.name) != (dataset.state, dataset.problem):
                seen[dataset.name] = (dataset.state, dataset.problem)
                note(_line(dataset))

    return show


def _report(app: App, config: Config, answer: WaitAnswer, *, waits: bool) -> None:
    """Print how it ended; without --wait any state is fine.

    Raises: NoSpaceError, ImageError: a dataset will not be cached as things are.
    """
    left = [dataset for dataset in answer.datasets if dataset.state is not DatasetState.CACHED]
    failure = _failure(config, left) if waits and left else None
    if app.json and failure is None:
        print_json(answer)
    elif not app.json:
        for dataset in answer.datasets:
            click.echo(_line(dataset))
    if failure is not None:
        raise failure


def _failure(config: Config, left: list[DatasetStatus]) -> NoSpaceError | ImageError:
    capacity_bytes = client.read_status(config).capacity_bytes
    reasons = "; ".join(f"{dataset.name}: {dataset.problem or dataset.state.value}" for dataset in left)
    kind = NoSpaceError if all(dataset.size_bytes > capacity_bytes for dataset in left) else ImageError
    return kind(
        f"not cached: {reasons}",
        hint="the pins stay and the daemon tries again; `scratch-slurm evict` takes them back",
    )


def _line(dataset: DatasetStatus) -> str:
    from scratch_slurm.cli.render import describe_dataset

    return clean(describe_dataset(dataset))
