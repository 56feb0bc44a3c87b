"""A Slurm in memory, for the daemon's side to it; `slurm_contract` holds it to what the real one does."""

from collections.abc import Collection

from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.features import NodeFeatures
from scratch_slurm.domain.jobs import Presence, judge
from scratch_slurm.domain.prolog import PrologRules


class FakeSlurm:
    """Jobs by id, as (state, nodes), and features by node; `down` makes every call fail."""

    name = "a fake Slurm 1.2.3"

    def __init__(self, *nodes: str) -> None:
        self.jobs: dict[int, tuple[str, tuple[str, ...]]] = {}
        self.features = {node: NodeFeatures() for node in nodes}
        self.hosts = {node: node for node in nodes}
        self.rules = PrologRules()
        self.down = False
        self.calls: list[str] = []

    def job_presence(self, job_ids: Collection[int], nodes: Collection[str]) -> dict[int, Presence]:
        self.calls.append("presence")
        if self.down:
            return dict.fromkeys(job_ids, Presence.UNKNOWN)
        found = {}
        for job_id in job_ids:
            state, held = self.jobs.get(job_id, ("COMPLETED", ()))
            found[job_id] = judge(state, on_node=not set(nodes).isdisjoint(held) if nodes else None)
        return found

    def read_hosts(self, node: str | None) -> dict[str, str]:
        if node is None:
            self.calls.append("all hosts")
        self._check()
        return {name: host for name, host in self.hosts.items() if node in (None, name)}

    def read_prolog_rules(self) -> PrologRules:
        self.calls.append("rules")
        self._check()
        return self.rules

    def read_features(self, node: str) -> NodeFeatures | None:
        self.calls.append("read")
        self._check()
        return self.features.get(node)

    def write_features(self, node: str, features: NodeFeatures) -> None:
        self.calls.append("write")
        self._check()
        if node not in self.features or not set(features.active) <= set(features.available):
            raise SlurmError("fake: refused")
        extra = self.features[node].extra if features.extra is None else features.extra
        self.features[node] = NodeFeatures(features.available, features.active, extra)

    def close(self) -> None:
        self.down = True

    def _check(self) -> None:
        if self.down:
            raise SlurmError("fake: down")
