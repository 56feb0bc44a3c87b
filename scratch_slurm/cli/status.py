"""`scratch-slurm status`: what this node has."""

import time
from typing import TYPE_CHECKING

import click

from scratch_slurm.cli import client
from scratch_slurm.cli.app import (
    App,
    draws_blocks,
    json_option,
    make_console,
    note_error,
    pass_app,
    print_json,
    to_plain,
)
from scratch_slurm.cli.views import choose_datasets
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DaemonError, UsageError
from scratch_slurm.domain.names import parse_dataset_name

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WATCH_S = 2.0


@click.command("status")
@click.argument("datasets", nargs=-1, metavar="[DATASET]...")
@click.option("-w", "--watch", is_flag=True, help="Draw anew every two seconds until Ctrl-C.")
@json_option
@pass_app
def command(app: App, datasets: tuple[str, ...], watch: bool) -> int:
    """Show what is cached, being copied and in use on this node: all datasets, or those named.

    Of a single one it also shows what its manifest says of it. READS is what each dataset's device read lately; what
    memory served does not count. While the daemon is down, mounts, cached files and (for root) pins are shown as far
    as they can be read, and the exit code is 5.
    """
    config = app.config()
    names = tuple(parse_dataset_name(name) for name in datasets)
    if watch and app.json:
        raise UsageError("--watch and --json exclude each other")
    try:
        if watch:
            _run_watch(config, names)  # until Ctrl-C
        _run_status(app, config, names)
    except DaemonError as exc:
        return _run_offline(app, config, names, exc)
    return 0


def _run_status(app: App, config: Config, names: tuple[str, ...]) -> None:
    if app.json:
        node = client.read_status(config)
        print_json({"daemon": True, **to_plain(node), "datasets": choose_datasets(node, names)})
        return
    console = make_console()
    console.print(_draw(config, names, console))


def _draw(config: Config, names: tuple[str, ...], console: "Console") -> "RenderableType":
    from scratch_slurm.cli.render import render_node

    node = client.read_status(config)
    datasets = choose_datasets(node, names)
    return render_node(node, datasets, now=time.time(), width=console.width, blocks=draws_blocks(console))


def _run_watch(config: Config, names: tuple[str, ...]) -> None:
    from rich.live import Live

    console = make_console()
    with Live(_draw(config, names, console), console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_S)
            live.update(_draw(config, names, console), refresh=True)


def _run_offline(app: App, config: Config, names: tuple[str, ...], why: DaemonError) -> int:
    from scratch_slurm.cli.offline import read_offline

    offline = read_offline(config)
    # Without the daemon nobody knows what the source has: a name that is not here may be right all the same.
    datasets = tuple(dataset for dataset in offline.datasets if not names or dataset.name in names)
    note_error(why)
    if app.json:
        print_json({**to_plain(offline), "datasets": datasets})
    else:
        from scratch_slurm.cli.render import render_offline

        console = make_console()
        console.print(render_offline(offline, datasets, width=console.width, blocks=draws_blocks(console)))
    return why.exit_code
