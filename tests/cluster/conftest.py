"""One real Slurm cluster for all tests here."""

from collections.abc import Iterator

import pytest

from tests.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """A cluster of four nodes, shared by the session: leave the nodes idle and the daemons running."""
    with LocalCluster(nodes=4) as running:
        yield running
