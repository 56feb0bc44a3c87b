"""A real Slurm cluster with several nodes on one machine, for the demo, the tests and developers."""

from tests.local_cluster.cluster import LocalCluster
from tests.local_cluster.errors import AlreadyRunsError, ClusterError, MissingRequirementsError
from tests.local_cluster.jobs import DrainedNode, JobInfo
from tests.local_cluster.node import Node
from tests.local_cluster.requirements import missing_for_cluster, missing_for_root_tests

__all__ = [
    "AlreadyRunsError",
    "ClusterError",
    "DrainedNode",
    "JobInfo",
    "LocalCluster",
    "MissingRequirementsError",
    "Node",
    "missing_for_cluster",
    "missing_for_root_tests",
]
