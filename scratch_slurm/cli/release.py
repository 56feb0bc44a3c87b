"""`scratch-slurm release`: a job gives datasets back before its end."""

import os

import click

from scratch_slurm.cli import client
from scratch_slurm.cli.app import App, json_option, pass_app, print_json
from scratch_slurm.domain.errors import NotFoundError, UsageError
from scratch_slurm.domain.messages import ReleaseRequest
from scratch_slurm.domain.names import nearest_hint, parse_dataset_name


@click.command("release")
@click.argument("datasets", nargs=-1, metavar="[DATASET]...")
@click.option("--job", "job_text", metavar="ID", help="Of this job of yours, instead of the one that this runs in.")
@json_option
@pass_app
def command(app: App, datasets: tuple[str, ...], job_text: str | None) -> None:
    """Give back what the job no longer needs on this node: all its datasets, or those named.

    Their paths stay as they are and go on being readable; only their copies may go when others need the room. For a
    job on several nodes run it on each: `srun scratch-slurm release`. Releasing twice is no error.
    """
    names = tuple(dict.fromkeys(parse_dataset_name(name) for name in datasets))
    job_id = _parse_job(job_text)
    if job_text is None:
        _check_asked(names)
    answer = client.release(app.config(), ReleaseRequest(job_id, names))
    if app.json:
        print_json(answer)
        return
    for name in answer.released:
        click.echo(f"{name}: released")
    if not answer.released:
        click.echo("nothing to release: the job had given it back before")


def _parse_job(text: str | None) -> int:
    # The plugin's word first: in a component of a heterogeneous job SLURM_JOB_ID is that of the leader.
    own = os.environ.get("SCRATCH_DATASETS_JOB") or os.environ.get("SLURM_JOB_ID", "")
    found = own if text is None else text
    if not found and text is None:
        raise UsageError("release: not in a job: SLURM_JOB_ID is not set", hint="name one of yours with --job ID")
    if not (found.isascii() and found.isdecimal() and 0 < int(found[:20]) < 2**32):
        raise UsageError(f"release: {found[:40]!r} is not a job id")
    return int(found)


def _check_asked(names: tuple[str, ...]) -> None:
    """Find slips of the pen: the daemon cannot tell a name that was never asked for from one that was given back."""
    asked = os.environ.get("SCRATCH_DATASETS", "").split(",")
    for name in names:
        if asked != [""] and name not in asked:
            hint = nearest_hint(name, asked) or f"it asked for {', '.join(asked)}"
            raise NotFoundError(f"dataset {name!r}: this job did not ask for it", hint=hint)
