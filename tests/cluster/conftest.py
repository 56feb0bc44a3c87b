"""One real Slurm cluster for all tests here."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.kit.support import MB, Dataset, Gate, NodeView, four_nodes, make_dataset, set_right
from tests.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """A cluster of four nodes, shared by the session: leave the nodes idle and the daemons running.

    Copies are slow enough to be met under way: 40 MB/s each.
    """
    settings = {"copy": {"bandwidth": "40 MB"}, "capacity": "10 GB", "preheat": {"wait": "20s"}}
    # What jobs read without asking is worth no copy, but where a test says so.
    settings["horizon"] = "0.01"
    # Thousands of nodes would ask Slurm less often.
    settings["slurm"] = {"reconcile_interval": "0.5s"}
    with four_nodes(settings) as running:
        yield running


@pytest.fixture(scope="module")
def scribes() -> Iterator[LocalCluster]:
    """Two nodes whose prolog only writes down what it is asked for (`asked`), and no job_submit script."""
    with LocalCluster(nodes=2, daemons=False, slurm={"ScronParameters": "enable"}) as running:
        stub = running.directory / "prolog.d" / "50-scratch-slurm"
        stub.write_text(
            f"#!/bin/sh\n/usr/bin/env | /bin/grep ^SPANK_ >{running.layout.work_dir}/asked.$SLURMD_NODENAME\n"
        )
        functions = [f"function slurm_job_{what}() return slurm.SUCCESS end\n" for what in ("submit", "modify")]
        (running.directory / "job_submit.lua").write_text("".join(functions))
        running.restart_slurmctld()
        yield running


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def make(cluster: LocalCluster, numbers: Iterator[int]) -> Iterator[Callable[..., Dataset]]:
    """Make datasets of the test's own, with the arguments of `make_dataset`; they leave the source with the test."""
    made = []

    def make_one(*, data_bytes: int = 2 * MB, image_bytes: int = 0) -> Dataset:
        number = next(numbers)
        made.append(make_dataset(cluster.source_dir, f"d{number}", data_bytes=data_bytes, image_bytes=image_bytes))
        return made[-1]

    yield make_one
    for dataset in made:
        dataset.image.unlink(missing_ok=True)


@pytest.fixture
def node(cluster: LocalCluster) -> Callable[[str], NodeView]:
    """Look at a node of the cluster: `node("n1")`."""
    return lambda name: NodeView(cluster, name)


@pytest.fixture
def gate(cluster: LocalCluster, numbers: Iterator[int]) -> Callable[[], Gate]:
    """Make a gate for a job."""
    return lambda: Gate(cluster.layout.work_dir, f"gate{next(numbers)}")


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no node drained, no job left, no pin on any node."""
    yield
    if "cluster" in request.fixturenames:
        wrong = set_right(request.getfixturevalue("cluster"))
        assert not wrong, "; ".join(wrong)
