"""Slurm through its own commands: sinfo, squeue, scontrol. Must not read their words, only fields and exit codes."""

from collections.abc import Collection, Iterable

from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.features import NodeFeatures
from scratch_slurm.domain.jobs import Presence, has_nodes, judge
from scratch_slurm.domain.prolog import PrologRules, parse_prolog_rules
from scratch_slurm.slurm.programs import Programs

# A null text of Slurm's, where a field has no value; no feature can be called so.
_NULL = "(null)"
# This cluster only, partitions that are hidden too.
_EVERYTHING = ("--all", "--local", "--noheader")


class Commands:
    """Slurm's commands, found on the PATH. Implements `interface.Slurm`.

    Args:
        programs: runs them.
        version: theirs.
    """

    def __init__(self, programs: Programs, version: str) -> None:
        self._programs = programs
        self._version = version

    @property
    def name(self) -> str:
        return f"Slurm's commands {self._version}"

    def job_presence(self, job_ids: Collection[int], nodes: Collection[str]) -> dict[int, Presence]:
        """Ask for the jobs one by one, which is cheap for the controller.

        squeue's exit code is the same for a job that is not known and a controller that is down, and only words tell
        them apart. So after the first one that fails, the list of all jobs decides, once: if it comes, whoever is not
        in it is not known to Slurm.
        """
        found: dict[int, Presence] = {}
        for job_id in sorted(job_ids):
            try:
                text = self._squeue(f"--jobs={job_id}")
            except SlurmError:
                break
            found |= self._judge_all([job_id], text, nodes)
        left = [job_id for job_id in job_ids if job_id not in found]
        if left:
            try:
                found |= self._judge_all(left, self._squeue(), nodes)
            except SlurmError:
                found |= dict.fromkeys(left, Presence.UNKNOWN)
        return found

    def read_features(self, node: str) -> NodeFeatures | None:
        """Ask sinfo, which asks for the one node; scontrol would ask for all of them."""
        form = "--Format=NodeList:|,features:|,features_act:|,extra:"
        text = self._programs.run(["sinfo", *_EVERYTHING, "--Node", f"--nodes={node}", form])
        if not text.strip():
            return None
        # A node in several partitions has a line in each. Extra is the only free text, and comes last.
        fields = text.split("\n", 1)[0].split("|", 3)
        if len(fields) != 4 or fields[0].strip() != node:
            raise SlurmError(f"sinfo: said {text[:80]!r} of node {node}")
        return NodeFeatures(_parse_list(fields[1]), _parse_list(fields[2]), _parse_text(fields[3]))

    def write_features(self, node: str, features: NodeFeatures) -> None:
        """Write both lists always: one alone would change the other (Slurm 22.05)."""
        words = [
            f"nodename={node}",
            f"availablefeatures={','.join(features.available)}",
            f"activefeatures={','.join(features.active)}",
        ]
        if features.extra is not None:
            words.append(f"extra={features.extra}")
        self._programs.run(["scontrol", "update", *words])

    def read_hosts(self, node: str | None) -> dict[str, str]:
        which = [] if node is None else [f"--nodes={node}"]
        text = self._programs.run(["sinfo", *_EVERYTHING, "--Node", *which, "--Format=NodeList:|,NodeHost:"])
        found = {}
        for line in text.splitlines():
            name, _, host = (field.strip() for field in line.partition("|"))
            if not name or not host:
                raise SlurmError(f"sinfo: said {line[:80]!r}")
            found[name] = host
        return found if node is None else {name: host for name, host in found.items() if name == node}

    def read_prolog_rules(self) -> PrologRules:
        return parse_prolog_rules(self._programs.run(["scontrol", "show", "config"]))

    def close(self) -> None:
        self._programs.close()

    def _squeue(self, *options: str) -> str:
        return self._programs.run(["squeue", *_EVERYTHING, "--states=all", "--format=%A|%T|%N", *options])

    def _judge_all(self, job_ids: Iterable[int], text: str, nodes: Collection[str]) -> dict[int, Presence]:
        """Judge jobs by squeue's lines; the array's or the heterogeneous job's other parts may be among them."""
        lines = [line.split("|", 2) for line in text.splitlines()]
        jobs = {fields[0]: (fields[1], fields[2]) for fields in lines if len(fields) == 3}
        return {job_id: self._judge(jobs.get(str(job_id)), nodes) for job_id in job_ids}

    def _judge(self, job: tuple[str, str] | None, names: Collection[str]) -> Presence:
        if job is None:
            return Presence.GONE
        state, nodes = job
        return judge(state, on_node=self._is_among(names, nodes) if has_nodes(state) else None)

    def _is_among(self, names: Collection[str], nodes: str) -> bool | None:
        """Tell whether one of the names is in a list like `n[1-3,7]`; None when that cannot be told."""
        if not nodes or not names:
            return None
        if nodes in names:
            return True
        try:
            listed = self._programs.run(["scontrol", "show", "hostnames", nodes]).split()
        except SlurmError:
            return None
        return not set(names).isdisjoint(listed)


def _parse_text(field: str) -> str:
    text = field.strip()
    return "" if text == _NULL else text


def _parse_list(field: str) -> tuple[str, ...]:
    return tuple(feature for feature in _parse_text(field).split(",") if feature)
