"""Slurm through pyslurm's classes (its releases since 23.2), asked in a child process; see `pyslurm_child`."""

import json
import sys
from collections.abc import Collection
from typing import Any

from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.features import NodeFeatures
from scratch_slurm.domain.jobs import Presence
from scratch_slurm.domain.prolog import PrologRules
from scratch_slurm.slurm.commands import Commands
from scratch_slurm.slurm.programs import Programs


class PyslurmClasses:
    """pyslurm, of the release of the Slurm that runs. Implements `interface.Slurm`.

    Args:
        programs: runs the child.
        release: pyslurm's.
        commands: serve where pyslurm cannot say it: that a node is not there, and lists that are empty. For pyslurm
            an empty text is no text, which Slurm takes as no change.
    """

    def __init__(self, programs: Programs, release: str, commands: Commands) -> None:
        self._programs = programs
        self._release = release
        self.commands = commands

    @property
    def name(self) -> str:
        return f"pyslurm {self._release}"

    def job_presence(self, job_ids: Collection[int], nodes: Collection[str]) -> dict[int, Presence]:
        asked = sorted(set(job_ids))
        try:
            found = self._ask({"do": "presence", "job_ids": asked, "nodes": sorted(nodes)})
            return {job_id: Presence(word) for job_id, word in zip(asked, found, strict=True)}
        except (SlurmError, ValueError):
            return dict.fromkeys(asked, Presence.UNKNOWN)

    def read_features(self, node: str) -> NodeFeatures | None:
        try:
            available, active, extra = self._ask({"do": "read", "node": node})
        except (SlurmError, ValueError):
            return self.commands.read_features(node)
        return NodeFeatures(tuple(available), tuple(active), extra)

    def write_features(self, node: str, features: NodeFeatures) -> None:
        if not features.available or not features.active or features.extra == "":
            self.commands.write_features(node, features)
            return
        changes = {"available_features": list(features.available), "active_features": list(features.active)}
        extra = {} if features.extra is None else {"extra": features.extra}
        self._ask({"do": "write", "node": node, "changes": {**changes, **extra}})

    def read_hosts(self, node: str | None) -> dict[str, str]:
        return self.commands.read_hosts(node)

    def read_prolog_rules(self) -> PrologRules:
        return self.commands.read_prolog_rules()

    def close(self) -> None:
        self._programs.close()
        self.commands.close()

    def _ask(self, question: dict[str, Any]) -> list[Any]:
        argv = [sys.executable, "-m", "scratch_slurm.slurm.pyslurm_child"]
        found: list[Any] = json.loads(self._programs.run(argv, stdin=json.dumps(question)))
        return found
