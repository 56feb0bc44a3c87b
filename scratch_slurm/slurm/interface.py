"""The contract with Slurm: what each implementation of it keeps."""

from collections.abc import Collection
from typing import Protocol

from scratch_slurm.domain.features import NodeFeatures
from scratch_slurm.domain.jobs import Presence
from scratch_slurm.domain.prolog import PrologRules


class Slurm(Protocol):
    """Jobs and features of one node, as the controller knows them.

    Every call returns within a bounded time, whatever the controller does, and asks it for single jobs and nodes:
    thousands of nodes share it. Threads may share an object. A call that can be answered neither way raises
    SlurmError; only `job_presence` never does, because not to know is one of its answers.
    """

    @property
    def name(self) -> str:
        """What serves, for people: `Slurm's commands 22.05.8`."""
        ...

    def job_presence(self, job_ids: Collection[int], nodes: Collection[str]) -> dict[int, Presence]:
        """Tell for each job whether it may still use what it pinned on this node.

        LIVE: running, suspended, configuring or completing on this node, or waiting to run (again). GONE: ended and
        not completing, not known to a controller that answered, or on other nodes only. UNKNOWN: everything else.
        Without any name a job that holds nodes is UNKNOWN: it may be here. Tasks of arrays and parts of heterogeneous
        jobs have ids of their own and are told apart by them.

        Args:
            nodes: the names of this node; several slurmd on one host have one each.
        Returns: an entry for each job id, also when no node of that name exists.
        """
        ...

    def read_hosts(self, node: str | None) -> dict[str, str]:
        """Read the host names (NodeHostName) of one node, or, None, of all: the whole list, so seldom.

        Returns: node -> host; empty when there is no such node.
        Raises: SlurmError: the controller does not answer.
        """
        ...

    def read_prolog_rules(self) -> PrologRules:
        """Read how prologs are run.

        Raises: SlurmError: the controller does not answer.
        """
        ...

    def read_features(self, node: str) -> NodeFeatures | None:
        """Read a node's features and Extra.

        Returns: None when the controller answers that it has no such node.
        Raises: SlurmError: the controller does not answer.
        """
        ...

    def write_features(self, node: str, features: NodeFeatures) -> None:
        """Replace a node's features, both lists at once; its Extra too, unless that is None.

        Raises: SlurmError: the controller does not answer, or refuses.
        """
        ...

    def close(self) -> None:
        """End the call under way; it and every later one fail at once."""
        ...
