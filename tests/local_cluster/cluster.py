"""A private Slurm cluster on this machine, to use and to break."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.local_cluster import client, kernel, machines, programs, teardown
from tests.local_cluster.control import Control
from tests.local_cluster.errors import ClusterError
from tests.local_cluster.jobs import DrainedNode, JobInfo, parse_drained, parse_job
from tests.local_cluster.layout import HEAD
from tests.local_cluster.lifecycle import Lifecycle
from tests.local_cluster.node import Node

_POLL_S: Final = 0.05
_END_TIMEOUT_S: Final = 10.0


class LocalCluster(Lifecycle):
    """A Slurm cluster with `nodes` nodes on this machine, with scratch-slurm wired in.

    Everything of it is below one directory, in namespaces of its own, and ends with the process that
    started it, even when that is killed, unless it was started with `detach`. Each node is a machine of
    its own as far as PID, mount and host names go; the file system, the network and the clock are shared.

    Args:
        nodes: how many; they are named n1, n2, ...
        settings: scratch-slurm's configuration keys, laid over the defaults of `default_settings`.
        directory: where; an absent or empty directory. Default: a fresh one below /tmp.
        slurm: lines of slurm.conf, laid over the generated ones.
        cpus: CPUs that Slurm believes each node has.
        daemons: start `scratch-slurmd` on every node. Default: if it is installed.
        bin_dir: where scratch-slurm's scripts are. Default: beside this Python.
        files: more configuration files beside slurm.conf, name -> text.
        slurm_runs_hooks: Prolog= and Epilog= of slurm.conf name the hooks; otherwise the SPANK plugin runs them.
        keep: leave the directory for a look at the logs. Default: $SCRATCH_SLURM_KEEP is set.
    """

    @property
    def directory(self) -> Path:
        return self.layout.directory

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(Node(name, self.layout) for name in self.layout.node_names)

    def node(self, name: str) -> Node:
        """Find a node by its name."""
        return next(node for node in self.nodes if node.name == name)

    @property
    def settings(self) -> Mapping[str, Any]:
        """scratch-slurm's whole configuration."""
        return self.layout.settings

    @property
    def source_dir(self) -> Path:
        """The shared directory of images; the same on every node and on the host."""
        return self.layout.source_dir

    # Use.

    def run(
        self,
        argv: Sequence[str],
        node: str | None = None,
        user: str | int | None = None,
        timeout: float = 60.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, or on the head like on a login node; SLURM_CONF is set.

        Args:
            argv: the command; it starts with a clean environment and `env`.
            node: name of the node; None is the head.
            user: name or number; None is root.
            timeout: seconds; then the command is killed.
            cwd: default is a directory that every user may write to.
        Raises: ClusterError: exit code not 0 and `check` is set, or it took too long.
        """
        return client.run_client(
            self.layout,
            argv,
            machine=node or HEAD,
            user=user,
            timeout_s=timeout,
            check=check,
            env=env,
            stdin=stdin,
            cwd=cwd,
        )

    def nsenter(self, node: str, argv: Sequence[str]) -> list[str]:
        """Word the command that runs `argv` in a node's namespaces, for a Popen of the caller's own."""
        return client.enter_argv(self.layout, node, argv)

    def spawn(self, name: str, argv: Sequence[str], node: str | None = None) -> None:
        """Start a program that lives as long as the machine it is on; it logs to `log/<name>.log`."""
        env = self.layout.daemon_environment()
        Control(self.layout.control_socket(node or HEAD)).spawn(name, argv, env, self.layout.log(name))

    def sbatch(
        self,
        script: str,
        *options: str,
        user: str | int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Submit a batch script and return the job id; a script without `#!` runs in sh."""
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}\n"
        found = self.run(["sbatch", "--parsable", *options], user=user, env=env, stdin=text)
        return int(found.stdout.strip().partition(";")[0])

    def jobs(self, job_id: int) -> list[JobInfo]:
        """The job as it is now; of an array, every task."""
        found = self.run(["scontrol", "show", "job", "--oneliner", str(job_id)])
        return [parse_job(line) for line in found.stdout.splitlines() if line]

    def wait_jobs(self, job_id: int, timeout: float = 60.0) -> list[JobInfo]:
        """Wait until the job, or every task of the array, has ended on all nodes, epilogs included.

        Raises: ClusterError: it has not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            jobs = self.jobs(job_id)
            if all(job.is_final for job in jobs):
                return jobs
            if time.monotonic() > deadline:
                states = ", ".join(f"{job.job_id} {job.state} ({job.reason})" for job in jobs)
                raise ClusterError(f"job {job_id}: not at its end after {timeout:g} s: {states}")
            time.sleep(_POLL_S)

    def wait_job(self, job_id: int, timeout: float = 60.0) -> JobInfo:
        """Wait for the end of a job that is no array; see `wait_jobs`."""
        return self.wait_jobs(job_id, timeout)[0]

    def wait_state(self, job_id: int, *states: str, timeout: float = 60.0) -> JobInfo:
        """Wait until a job is in one of `states`, such as PENDING.

        Raises: ClusterError: it is not within `timeout` seconds, or has ended otherwise.
        """
        return self._wait(job_id, lambda job: job.state in states, " or ".join(states), timeout)

    def wait_prolog(self, job_id: int, timeout: float = 60.0) -> JobInfo:
        """Wait until a job has nodes and its prolog runs there; a short prolog may be missed.

        Raises: ClusterError: it does not within `timeout` seconds, or has ended.
        """
        return self._wait(job_id, lambda job: job.in_prolog, "in its prolog", timeout)

    def wait_running(self, job_id: int, timeout: float = 60.0) -> JobInfo:
        """Wait until a job's prologs are over and its script runs.

        Raises: ClusterError: it does not within `timeout` seconds, or has ended.
        """
        return self._wait(job_id, lambda job: job.state == "RUNNING" and not job.in_prolog, "running", timeout)

    def _wait(self, job_id: int, is_there: Callable[[JobInfo], bool], what: str, timeout: float) -> JobInfo:
        deadline = time.monotonic() + timeout
        while True:
            job = self.jobs(job_id)[0]
            if is_there(job):
                return job
            if job.is_final or time.monotonic() > deadline:
                raise ClusterError(f"job {job_id}: is {job.state} ({job.reason}), not {what}")
            time.sleep(_POLL_S)

    def job_output(self, job_id: int) -> str:
        """What the batch script of a job printed; empty before it starts."""
        path = Path(self.jobs(job_id)[0].output)
        return path.read_text() if path.exists() else ""

    def drained(self) -> list[DrainedNode]:
        """The nodes that Slurm has taken out of service, and why."""
        argv = ["sinfo", "--noheader", "--Node", "--list-reasons", "--format=%N|%T|%E"]
        return parse_drained(self.run(argv).stdout)

    # Slurm's daemons.

    def restart_slurmctld(self) -> None:
        """End the controller as an administrator does, start it again and wait for the nodes."""
        self._head.end("slurmctld", signal.SIGTERM, _END_TIMEOUT_S)
        programs.start_slurmctld(self.layout)
        programs.await_idle(self.layout, self.layout.node_names)

    def kill_slurmd(self, node: str) -> None:
        """kill -9; jobs go on."""
        self._control(node).end("slurmd", signal.SIGKILL, _END_TIMEOUT_S)

    def start_slurmd(self, node: str) -> None:
        """Start a node's slurmd after `kill_slurmd`, and wait until it listens."""
        programs.spawn_slurmd(self.layout, node)
        programs.await_slurmd(self.layout, node)

    def crash_node(self, node: str) -> None:
        """Take a node down as a power cut does: everything on it is gone, its files stay."""
        pid = self.node(node).init_pid
        # All in them dies with their init, and the kernel gives their numbers to others.
        self._namespaces -= kernel.namespaces_of(pid)
        os.kill(pid, signal.SIGKILL)
        teardown.await_process_end(pid, _END_TIMEOUT_S)
        self._head.wait_end(machines.machine_process(node), _END_TIMEOUT_S)

    def boot_node(self, node: str) -> None:
        """Start a node after `crash_node`, with a new boot id."""
        machines.start_node_machine(self.layout, node)
        self._bring_nodes_up([node])

    # scratch-slurm's daemon.

    def start_daemon(self, node: str) -> None:
        """Start a node's scratch-slurmd and wait until its socket accepts a connection."""
        programs.spawn_daemon(self.layout, node)
        programs.await_daemon(self.layout, node)

    def stop_daemon(self, node: str, timeout: float = _END_TIMEOUT_S) -> int | None:
        """SIGTERM and wait; return the exit code, None if it did not run."""
        return self._control(node).end("daemon", signal.SIGTERM, timeout)

    def kill_daemon(self, node: str) -> None:
        """kill -9 and wait."""
        self._control(node).end("daemon", signal.SIGKILL, _END_TIMEOUT_S)

    def daemon_log(self, node: str) -> str:
        path = programs.daemon_log(self.layout, node)
        return path.read_text(errors="replace") if path.exists() else ""

    def _control(self, node: str) -> Control:
        return Control(self.layout.control_socket(node))
