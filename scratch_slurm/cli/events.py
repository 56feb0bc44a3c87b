"""`scratch-slurm events`: what happened lately."""

import click

from scratch_slurm.cli.app import App, json_option, make_console, pass_app, print_json, require_root
from scratch_slurm.cli.pins import read_events


@click.command("events")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=30, show_default=True, help="At most so many.")
@json_option
@pass_app
def command(app: App, limit: int) -> None:
    """Show the newest events of this node, the newest last. Needs root, not the daemon."""
    require_root("events")
    events = read_events(app.config(), limit)[::-1]
    if app.json:
        print_json({"events": [event._asdict() for event in events]})
        return
    from scratch_slurm.cli.render import render_events

    make_console().print(render_events(events))
