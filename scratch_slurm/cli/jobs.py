"""`scratch-slurm jobs`: who pins what."""

import os
import time

import click

from scratch_slurm.cli import client
from scratch_slurm.cli.app import App, json_option, make_console, note_error, pass_app, print_json
from scratch_slurm.cli.views import group_holders
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DaemonError, LedgerError
from scratch_slurm.domain.messages import DatasetStatus
from scratch_slurm.domain.model import Pin


@click.command("jobs")
@json_option
@pass_app
def command(app: App) -> int:
    """Show which jobs, and the administrator, pin which datasets on this node.

    The ledger, which only root may read, adds since when and which user. While the daemon is down root sees the
    ledger's pins, and the exit code is 5.
    """
    config = app.config()
    code = 0
    datasets: tuple[DatasetStatus, ...]
    try:
        datasets = client.read_status(config).datasets
    except DaemonError as exc:
        if os.geteuid() != 0:
            raise
        from scratch_slurm.cli.offline import read_offline

        note_error(exc)
        datasets, code = read_offline(config).datasets, exc.exit_code
    holders = group_holders(datasets, _read_pins(config))
    if app.json:
        print_json({"daemon": code == 0, "holders": holders})
        return code
    from scratch_slurm.cli.render import render_jobs

    make_console().print(render_jobs(holders, now=time.time()))
    return code


def _read_pins(config: Config) -> list[Pin]:
    """Read the ledger for times and users, which the list can do without."""
    if os.geteuid() != 0:
        return []
    from scratch_slurm.cli.pins import read_pins

    try:
        return read_pins(config)
    except LedgerError as exc:
        note_error(exc)
        return []
