"""What Slurm knows of all nodes at once. For people who ask, never for something that repeats itself."""

import shutil
from collections.abc import Mapping

from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.slurm.programs import Programs, clean_environment

_NULL = "(null)"


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
