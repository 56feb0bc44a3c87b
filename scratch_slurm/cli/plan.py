"""`scratch-slurm plan`: what the node would do now, and why."""

import click

from scratch_slurm.cli import client
from scratch_slurm.cli.app import App, json_option, make_console, pass_app, print_json
from scratch_slurm.domain.messages import PlanRequest
from scratch_slurm.domain.sizes import parse_duration, parse_size

_ANY_DISK_BYTES = 2**60


@click.command("plan")
@click.option("--capacity", default="", metavar="SIZE", help="As if the capacity were this: 500 GB, 2 TiB, 80%.")
@click.option("--period", default="", metavar="TIME", help="As if read rates were taken over this: 90s, 10m.")
@click.option("--horizon", default="", metavar="TIME", help="As if they were trusted for so long: 30m, 2h.")
@json_option
@pass_app
def command(app: App, capacity: str, period: str, horizon: str) -> None:
    """Show what the node would stage or evict now, and the reason for each dataset; changes nothing.

    A dataset is worth the reads of the slow storage that caching it saves over the horizon at its present read rate,
    but no more than has been read of it so far and once the image, less what its copy has to read. With options it
    shows what the node would do if it were configured so.
    """
    config = app.config()
    if capacity:
        parse_size(capacity, whole_bytes=_ANY_DISK_BYTES)
    asked = PlanRequest(
        capacity, parse_duration(period) if period else 0.0, parse_duration(horizon) if horizon else 0.0
    )
    answer = client.plan(config, asked)
    if app.json:
        print_json(answer)
        return
    from scratch_slurm.cli.render_plan import render_plan

    make_console().print(render_plan(answer))
