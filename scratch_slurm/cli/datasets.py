"""`scratch-slurm datasets`: what there is, on how many nodes of the cluster. Needs neither daemon nor root."""

import os
import stat
import threading
from pathlib import Path

import click

from scratch_slurm.cli.app import App, find_config, json_option, make_console, note_error, pass_app, print_json
from scratch_slurm.cli.cluster_views import ClusterDatasets, choose, list_datasets, render
from scratch_slurm.domain.config import SlurmSettings
from scratch_slurm.domain.errors import ScratchError, SlurmError, SourceError
from scratch_slurm.domain.names import parse_image_name

SOURCE_TIMEOUT_S = 10.0
SLURM_TIMEOUT_S = 20.0


@click.command("datasets")
@click.argument("pattern", required=False)
@click.option("--source", metavar="DIR", type=click.Path(path_type=Path), help="List DIR instead of source_dir.")
@json_option
@pass_app
def command(app: App, pattern: str | None, source: Path | None) -> None:
    """List the datasets: their sizes, and on how many nodes of the cluster each is cached.

    PATTERN chooses by a shell pattern, or by a part of the name. The sizes come from the source, where this host sees
    it; the nodes from their features in Slurm. What is not known is a dash. With --source, or without a source, no
    configuration is needed.
    """
    config = find_config(app)
    directory = source or (config.source_dir if config else None)
    sizes, problem = _try_sizes(directory)
    if problem and source:
        raise problem
    features, silence = _try_features()
    for why in (problem, silence):
        if why:
            note_error(why)
    if sizes is None and features is None:
        raise SourceError(
            "datasets: neither a source nor Slurm can be asked on this host", hint="name the source with --source DIR"
        )
    prefix = config.feature_prefix if config else SlurmSettings().feature_prefix
    answer = ClusterDatasets(
        source_dir=str(directory) if sizes is not None else None,
        node_count=None if features is None else len(features),
        datasets=choose(list_datasets(sizes, features, prefix=prefix), pattern),
    )
    if app.json:
        print_json(answer)
    else:
        make_console().print(render(answer))


def _try_features() -> tuple[dict[str, tuple[str, ...]] | None, ScratchError | None]:
    from scratch_slurm.slurm.cluster import read_active_features

    try:
        return read_active_features(os.environ, timeout_s=SLURM_TIMEOUT_S), None
    except SlurmError as exc:
        return None, exc


def _try_sizes(directory: Path | None) -> tuple[dict[str, int] | None, ScratchError | None]:
    if directory is None:
        return None, None
    try:
        return read_sizes(directory, timeout_s=SOURCE_TIMEOUT_S), None
    except SourceError as exc:
        return None, exc


def read_sizes(directory: Path, *, timeout_s: float) -> dict[str, int]:
    """Read the sizes of the images in a source: dataset -> bytes.

    The source may hang: it is read in a thread that this process does not wait for, and that ends with it.

    Raises: SourceError: the directory cannot be listed, or not in time.
    """
    found: list[dict[str, int] | OSError] = []

    def read() -> None:
        try:
            found.append(_read_sizes(directory))
        except OSError as exc:
            found.append(exc)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout_s)
    if not found:
        raise SourceError(f"{directory}: no answer within {timeout_s:g} s")
    if isinstance(found[0], OSError):
        raise SourceError(f"{directory}: cannot list the source: {found[0].strerror}") from found[0]
    return found[0]


def _read_sizes(directory: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for path in sorted(directory.iterdir()):
        parsed = parse_image_name(path.name)
        if parsed is None:
            continue
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # replaced just now
        if stat.S_ISREG(status.st_mode):
            sizes.setdefault(parsed[0], status.st_size)
    return sizes
