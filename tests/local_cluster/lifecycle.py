"""The life of a local cluster: start it, take hold of a running one, and end it without a trace."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.local_cluster import kernel, machines, programs, teardown
from tests.local_cluster.claim import Claim, choose_ports, claim_directory, is_running
from tests.local_cluster.control import Control
from tests.local_cluster.errors import ClusterError, MissingRequirementsError
from tests.local_cluster.layout import HEAD, Layout, default_settings, merge_settings, parse_layout
from tests.local_cluster.requirements import has_job_submit_lua, missing_for_cluster

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_INIT_TIMEOUT_S: Final = 15.0
_END_TIMEOUT_S: Final = 30.0


class Lifecycle:
    """Starts and ends a cluster; `LocalCluster` says with what arguments and adds its use."""

    def __init__(
        self,
        nodes: int = 4,
        settings: Mapping[str, Any] | None = None,
        directory: Path | str | None = None,
        *,
        slurm: Mapping[str, str] | None = None,
        cpus: int = 8,
        daemons: bool | None = None,
        bin_dir: Path | None = None,
        files: Mapping[str, str] | None = None,
        slurm_runs_hooks: bool = False,
        keep: bool | None = None,
    ) -> None:
        if nodes < 1:
            raise ValueError(f"nodes: {nodes}: at least one is needed")
        self._node_names = tuple(f"n{number}" for number in range(1, nodes + 1))
        self._settings = dict(settings or {})
        self._directory = None if directory is None else Path(directory)
        self._slurm = dict(slurm or {})
        self._cpus = cpus
        self._daemons = daemons
        self._bin_dir = bin_dir or Path(sys.executable).parent
        self._files = dict(files or {})
        self._slurm_runs_hooks = slurm_runs_hooks
        self._keep = bool(os.environ.get("SCRATCH_SLURM_KEEP")) if keep is None else keep
        self._layout: Layout | None = None
        self._lifeline: machines.Lifeline | None = None
        self._namespaces: frozenset[str] = frozenset()

    @property
    def layout(self) -> Layout:
        """Where everything is.

        Raises: ClusterError: the cluster is not started.
        """
        if self._layout is None:
            raise ClusterError("the cluster is not started")
        return self._layout

    @property
    def _head(self) -> Control:
        return Control(self.layout.control_socket(HEAD))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @classmethod
    def attach(cls, directory: Path | str) -> Self:
        """Take hold of a cluster that another process started with `detach`.

        Raises: ClusterError: none runs there.
        """
        path = Path(directory).resolve()
        if not is_running(path):
            raise ClusterError(f"{path}: no cluster runs there")
        try:
            layout = parse_layout((path / "cluster.json").read_text())
        except (OSError, ValueError) as exc:
            raise ClusterError(f"{path}: the cluster there is just starting or ending") from exc
        cluster = cls(len(layout.node_names), layout.settings, path, bin_dir=layout.bin_dir)
        cluster._layout = layout
        cluster._note_namespaces()
        return cluster

    def start(self, *, detach: bool = False) -> None:
        """Start the cluster, and return when every node is idle and every node daemon answers.

        Args:
            detach: let the cluster outlive this process; `attach` and `stop` end it.
        Raises:
            MissingRequirementsError: this machine lacks something.
            AlreadyRunsError: one runs in the directory.
            ClusterError: it could not be started; nothing is left of it.
        """
        if missing := missing_for_cluster():
            raise MissingRequirementsError(f"this machine lacks {', '.join(missing)}")
        claim = claim_directory(self._directory)
        try:
            self._layout = layout = self._make_layout(claim)
            machines.write_files(layout)
            self._lifeline = machines.start_head(layout, claim.lock_fd)
        except BaseException:
            self._layout = None
            kernel.remove_files(claim.directory)
            if claim.created:
                claim.directory.rmdir()
            raise
        finally:
            os.close(claim.lock_fd)
        try:
            self._bring_up()
            if detach:
                self._head.detach()
                self._lifeline.cut()
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """Unmount the datasets, end everything and remove the files.

        Raises: ClusterError: something is left; the message names it.
        """
        if self._layout is None:
            return
        try:
            programs.unmount_datasets(self._layout)
        finally:
            self._end()

    def _make_layout(self, claim: Claim) -> Layout:
        controller_port, *node_ports = choose_ports(1 + len(self._node_names))
        return Layout(
            directory=claim.directory,
            node_names=self._node_names,
            controller_port=controller_port,
            node_ports=tuple(node_ports),
            cpus_per_node=self._cpus,
            repository=_REPOSITORY,
            bin_dir=self._bin_dir,
            settings=merge_settings(default_settings(claim.directory), self._settings),
            slurm_options={**({"JobSubmitPlugins": "lua"} if has_job_submit_lua() else {}), **self._slurm},
            files=self._files,
            slurm_runs_hooks=self._slurm_runs_hooks,
            remove_directory=claim.created,
            keep=self._keep,
        )

    def _bring_up(self) -> None:
        layout = self.layout
        self._head.wait_ready(_INIT_TIMEOUT_S)
        for node in layout.node_names:
            machines.start_node_machine(layout, node)
        programs.start_munged(layout)
        programs.start_slurmctld(layout)
        self._bring_nodes_up(layout.node_names)

    def _bring_nodes_up(self, nodes: Sequence[str]) -> None:
        layout = self.layout
        for node in nodes:
            Control(layout.control_socket(node)).wait_ready(_INIT_TIMEOUT_S)
            programs.spawn_slurmd(layout, node)
        self._note_namespaces()
        wanted = layout.daemon_script.exists() if self._daemons is None else self._daemons
        for node in nodes if wanted else ():
            programs.spawn_daemon(layout, node)
        for node in nodes:
            programs.await_slurmd(layout, node)
        programs.await_idle(layout, nodes)
        for node in nodes if wanted else ():
            programs.await_daemon(layout, node)

    def _note_namespaces(self) -> None:
        """Remember the namespaces, to find whoever is left in them at the end."""
        for machine in (HEAD, *self.layout.node_names):
            try:
                pid = Control(self.layout.control_socket(machine)).init_pid()
            except ClusterError:
                continue
            self._namespaces |= kernel.namespaces_of(pid)
        self._namespaces -= kernel.namespaces_of(os.getpid())

    def _end(self) -> None:
        layout, lifeline = self.layout, self._lifeline
        pid = None
        try:
            self._note_namespaces()
            pid = self._head.init_pid()
            self._head.stop()
        except ClusterError:
            pass  # not up yet, or ended by itself
        if lifeline is not None:
            lifeline.cut()
            try:
                lifeline.process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                lifeline.process.kill()  # --kill-child: init too
                lifeline.process.wait()
        elif pid is not None and not teardown.await_process_end(pid, _END_TIMEOUT_S):
            os.kill(pid, signal.SIGKILL)
            teardown.await_process_end(pid, _END_TIMEOUT_S)
        teardown.remove_remains(layout)
        self._layout = self._lifeline = None
        if left := teardown.find_leftovers(layout, self._namespaces):
            raise ClusterError(f"the cluster has ended but left: {', '.join(left)}")
