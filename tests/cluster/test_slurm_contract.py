"""The real ways to Slurm keep the contract: Slurm's commands, and pyslurm where it is installed and of its release."""

import contextlib
import signal
from collections.abc import Iterator

import pytest

from scratch_slurm.slurm.choose import choose_slurm, pyslurm_problem, pyslurm_release
from scratch_slurm.slurm.commands import Commands
from scratch_slurm.slurm.interface import Slurm
from scratch_slurm.slurm.pyslurm_classes import PyslurmClasses
from tests.kit.slurm_contract import SlurmContract
from tests.kit.support import NodeView
from tests.local_cluster import LocalCluster
from tests.local_cluster.control import Control
from tests.local_cluster.layout import HEAD
from tests.local_cluster.requirements import slurm_release

pytestmark = [pytest.mark.cluster, pytest.mark.root]


class RealWorld:
    """The cluster's Slurm; the daemons of n3 and n4 do not tell their features meanwhile."""

    def __init__(self, cluster: LocalCluster, kind: type[Slurm]) -> None:
        self._kind = kind
        self._cluster = cluster
        self.slurm = self._choose(20.0)

    def _choose(self, timeout_s: float) -> Slurm:
        slurm = choose_slurm(self._cluster.layout.client_environment(), timeout_s=timeout_s)
        if self._kind is Commands and isinstance(slurm, PyslurmClasses):
            slurm = slurm.commands
        assert isinstance(slurm, self._kind)
        return slurm

    def run_job(self, *nodes: str) -> int:
        job_id = self._cluster.sbatch("exec sleep 600", f"-N{len(nodes)}", f"-w{','.join(nodes)}", "--requeue")
        self._cluster.wait_running(job_id)
        return job_id

    def hold_job(self) -> int:
        return self._cluster.sbatch("true", "--hold")

    def suspend(self, job_id: int) -> None:
        self._cluster.run(["scontrol", "suspend", str(job_id)])

    def requeue(self, job_id: int) -> None:
        self._cluster.run(["scontrol", "requeuehold", str(job_id)])
        self._cluster.wait_state(job_id, "PENDING")

    def end(self, job_id: int) -> None:
        self._cluster.run(["scancel", str(job_id)])
        self._cluster.wait_job(job_id)

    @contextlib.contextmanager
    def controller_down(self) -> Iterator[None]:
        """As hard as it gets: it takes connections and says nothing; nobody here has the patience to wait long."""
        patient, self.slurm = self.slurm, self._choose(0.5)
        control = Control(self._cluster.layout.control_socket(HEAD))
        control.send_signal("slurmctld", signal.SIGSTOP)
        try:
            yield
        finally:
            control.send_signal("slurmctld", signal.SIGCONT)
            self.slurm = patient


@pytest.fixture(scope="module", autouse=True)
def no_daemons(cluster: LocalCluster) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("n3", "n4"):
            view = NodeView(cluster, name)
            stack.enter_context(view.daemon_stopped())
            cluster.run(["scontrol", "update", f"nodename={name}", "availablefeatures=", "activefeatures=", "extra="])
        yield


class TestCommands(SlurmContract):
    @pytest.fixture
    def world(self, cluster: LocalCluster) -> RealWorld:
        return RealWorld(cluster, Commands)


def why_no_pyslurm() -> str:
    release = pyslurm_release()
    return "pyslurm is not installed" if release is None else pyslurm_problem(release, "{}.{}".format(*slurm_release()))


@pytest.mark.skipif(bool(why_no_pyslurm()), reason=why_no_pyslurm())
class TestPyslurm(SlurmContract):
    @pytest.fixture
    def world(self, cluster: LocalCluster) -> RealWorld:
        return RealWorld(cluster, PyslurmClasses)
