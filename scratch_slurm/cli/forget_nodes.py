"""`scratch-slurm forget-nodes`: on the controller, for SuspendProgram: what is powered down has nothing cached."""

import os

import click

from scratch_slurm.cli.app import App, find_config, json_option, pass_app, print_json
from scratch_slurm.domain.config import SlurmSettings
from scratch_slurm.domain.errors import SlurmError, UsageError
from scratch_slurm.domain.features import group_to_forget

TIMEOUT_S = 20.0
_LONGEST_LIST = 100_000


@click.command("forget-nodes")
@click.argument("nodes")
@json_option
@pass_app
def command(app: App, nodes: str) -> None:
    """Take the features (and Extra) of nodes back: NODES as Slurm writes them, n[1-3,7].

    For SuspendProgram, after the line that powers the nodes down: what was on their SSDs is not to be had, and a job
    that prefers it would boot them. The administrator's own features stay. Needs the rights of SlurmUser or root, no
    daemon, and a configuration only where slurm.feature_prefix is not the usual one.
    """
    from scratch_slurm.slurm.cluster import Cluster

    if len(nodes) > _LONGEST_LIST or nodes.startswith("-"):
        raise UsageError(f"forget-nodes: {nodes[:80]!r} is no list of nodes")
    config = find_config(app)
    prefix = config.feature_prefix if config else SlurmSettings().feature_prefix
    cluster = Cluster(os.environ, timeout_s=TIMEOUT_S)
    asked, known = cluster.expand(nodes), cluster.read_features()
    forgotten: list[str] = []
    for features, some in group_to_forget({node: known[node] for node in asked if node in known}, prefix=prefix):
        cluster.write_features(some, features)
        forgotten += some
    if app.json:
        print_json({"forgotten": sorted(forgotten)})
    for node in () if app.json else sorted(forgotten):
        click.echo(f"{node}: features taken back")
    unknown = [node for node in asked if node not in known]
    if unknown:
        raise SlurmError(f"forget-nodes: {', '.join(unknown[:10])}: Slurm does not tell their features")
