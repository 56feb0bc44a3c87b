"""What Slurm knows of all nodes at once. For people who ask, never for something that repeats itself."""

import shutil
from collections.abc import Mapping, Sequence

from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.domain.features import NodeFeatures
from scratch_slurm.slurm.programs import Programs, clean_environment

_NULL = "(null)"
_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# So that an argument stays far below the 128 KiB that execve(2) takes.
_NODES_AT_ONCE = 250


def read_active_features(environ: Mapping[str, str], *, timeout_s: float) -> dict[str, tuple[str, ...]] | None:
    """Ask the controller once for the active features of every node, those in hidden partitions too.

    Args:
        environ: the caller's environment: PATH, SLURM_CONF.
    Returns: node -> its features; None where Slurm's commands are not installed.
    Raises: SlurmError: the controller does not answer in time.
    """
    programs = Programs(clean_environment(environ), timeout_s=timeout_s)
    if shutil.which("sinfo", path=programs.environment.get("PATH", "")) is None:
        return None
    form = "--Format=NodeList:|,features_act:|"
    return parse_active_features(programs.run(["sinfo", "--all", "--local", "--noheader", "--Node", form]))


def parse_active_features(text: str) -> dict[str, tuple[str, ...]]:
    """Parse sinfo's lines `node|feature,feature|`; a node in several partitions has a line in each.

    Raises: SlurmError: a line is none of these.
    """
    found = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 2 or not fields[0]:
            raise SlurmError(f"sinfo: said {line[:80]!r}")
        features = "" if fields[1] == _NULL else fields[1]
        found[fields[0]] = tuple(feature for feature in features.split(",") if feature)
    return found


class Cluster:
    """The features of many nodes, read and written by the administrator's commands.

    Args:
        environ: the caller's environment: PATH, SLURM_CONF. A program that slurmctld starts may have no PATH.
        timeout_s: the time limit of each question.
    """

    def __init__(self, environ: Mapping[str, str], *, timeout_s: float) -> None:
        self._programs = Programs({"PATH": _USUAL_PATH, **clean_environment(environ)}, timeout_s=timeout_s)

    def expand(self, nodes: str) -> tuple[str, ...]:
        """Expand a list such as `n[1-3,7]`, which asks nobody.

        Raises: SlurmError: it is no list of nodes, or Slurm's commands are not installed.
        """
        names = tuple(dict.fromkeys(self._programs.run(["scontrol", "show", "hostnames", nodes]).split()))
        if not names:  # some releases say nothing of what they cannot read
            raise SlurmError(f"scontrol: {nodes[:80]!r} is no list of nodes")
        return names

    def read_features(self) -> dict[str, NodeFeatures]:
        """Ask for all nodes, as a list with one node that Slurm does not know would tell nothing of the others.

        sinfo tells nothing of cloud nodes that are powered down.

        Raises: SlurmError: the controller does not answer.
        """
        return parse_nodes(self._programs.run(["scontrol", "--all", "show", "node"]))

    def write_features(self, nodes: Sequence[str], features: NodeFeatures) -> None:
        """Replace the features of nodes, both lists at once; their Extra too, unless that is None.

        Raises: SlurmError: the controller does not answer, or refuses.
        """
        words = [f"availablefeatures={','.join(features.available)}", f"activefeatures={','.join(features.active)}"]
        if features.extra is not None:
            words.append(f"extra={features.extra}")
        for first in range(0, len(nodes), _NODES_AT_ONCE):
            some = ",".join(nodes[first : first + _NODES_AT_ONCE])
            self._programs.run(["scontrol", "update", f"nodename={some}", *words])


def parse_nodes(text: str) -> dict[str, NodeFeatures]:
    """Parse what `scontrol show node` says: a paragraph for each node, a field at the start of a line."""
    found: dict[str, NodeFeatures] = {}
    for paragraph in text.split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        fields = dict(reversed([line.partition("=")[::2] for line in lines]))  # of two the first: texts come last
        node = fields.get("NodeName", "").partition(" ")[0]
        if node:
            available, active = (_split(fields.get(key, "")) for key in ("AvailableFeatures", "ActiveFeatures"))
            found[node] = NodeFeatures(available, active, fields.get("Extra", "").replace(_NULL, ""))
    return found


def _split(field: str) -> tuple[str, ...]:
    return tuple(feature for feature in field.split(",") if feature and feature != _NULL)
