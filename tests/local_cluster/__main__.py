"""`python -m tests.local_cluster up|down|status|shell-env`: a local cluster for people."""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.local_cluster.claim import is_running
from tests.local_cluster.cluster import LocalCluster
from tests.local_cluster.errors import ClusterError
from tests.local_cluster.layout import Layout

DEFAULT_DIRECTORY: Final = Path("/tmp/scratch-slurm-cluster")

_HELP: Final = """
Slurm's commands work from any shell:
  export SLURM_CONF={conf}
  sinfo -N -o "%N %T %b"
  srun -N{count} hostname
  sbatch --wrap 'hostname; sleep 60' && squeue
A shell on a node (own host name, processes, cache and mounts):
  {python} -m tests.local_cluster shell {first}{option}
Datasets go to {source}, the nodes see them below {mounts}, the logs are in {log}.
End it:
  {python} -m tests.local_cluster down{option}
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        return int(options.run(options))
    except ClusterError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


_told_to_end = 0


def _end(number: int, _frame: object) -> None:
    # An exception, so that a start in its middle is undone. Python drops it when it comes while an object is finalized.
    global _told_to_end
    _told_to_end = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.local_cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, about in (
        ("up", run_up, "start a cluster that runs until `down`"),
        ("down", run_down, "end it and remove its files"),
        ("status", run_status, "show its nodes and jobs; exit code 3 if none runs"),
        ("shell-env", run_shell_env, "print the environment of its client commands, for eval"),
        ("shell", run_shell, "open a shell on a node"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(run=function)
        command.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="default: %(default)s")
        if name == "up":
            command.add_argument("--nodes", type=int, default=4, help="default: %(default)s")
            command.add_argument("--no-daemons", action="store_true", help="do not start scratch-slurmd")
        if name == "shell":
            command.add_argument("node", nargs="?", default="n1", help="default: %(default)s")
    return parser


def run_up(options: argparse.Namespace) -> int:
    started = time.monotonic()
    if options.nodes < 1:
        raise ClusterError(f"--nodes {options.nodes}: at least one is needed")
    cluster = LocalCluster(options.nodes, directory=options.dir, daemons=False if options.no_daemons else None)
    cluster.start(detach=True)
    if _told_to_end:
        cluster.stop()
        return 128 + _told_to_end
    print(f"{options.nodes} nodes up in {time.monotonic() - started:.1f} s")
    print(help_text(cluster.layout))
    return 0


def run_down(options: argparse.Namespace) -> int:
    if not is_running(options.dir):
        print(f"no cluster runs in {options.dir}")
        return 0
    LocalCluster.attach(options.dir).stop()
    print(f"the cluster in {options.dir} has ended")
    return 0


def run_status(options: argparse.Namespace) -> int:
    if not is_running(options.dir):
        print(f"no cluster runs in {options.dir}")
        return 3
    cluster = LocalCluster.attach(options.dir)
    print(cluster.run(["sinfo", "--Node", "--format=%N %T %b"]).stdout, end="")
    print(cluster.run(["squeue"]).stdout, end="")
    return 0


def run_shell_env(options: argparse.Namespace) -> int:
    layout = LocalCluster.attach(options.dir).layout
    print(f"export SLURM_CONF={shlex.quote(str(layout.slurm_conf))}")
    print(f"export SCRATCH_SLURM_CONFIG={shlex.quote(str(layout.config))}")
    print(f'export PATH={shlex.quote(str(layout.bin_dir))}:"$PATH"')
    return 0


def run_shell(options: argparse.Namespace) -> int:
    cluster = LocalCluster.attach(options.dir)
    env = {**cluster.layout.client_environment(), "SCRATCH_SLURM_CONFIG": str(cluster.layout.config)}
    env |= {"TERM": "xterm", "HOME": "/root", "PS1": f"{options.node}# "}
    return subprocess.run(cluster.nsenter(options.node, ["/bin/sh"]), env=env, check=False).returncode


def help_text(layout: Layout) -> str:
    """Say how to play with a cluster that runs."""
    option = "" if layout.directory == DEFAULT_DIRECTORY else f" --dir {shlex.quote(str(layout.directory))}"
    return _HELP.format(
        conf=layout.slurm_conf,
        count=len(layout.node_names),
        python=shlex.quote(sys.executable),
        first=layout.node_names[0],
        option=option,
        source=layout.source_dir,
        mounts=layout.settings["mount_dir"],
        log=layout.log_dir,
    )


if __name__ == "__main__":
    sys.exit(main())
