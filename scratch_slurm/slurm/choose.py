"""Choose how Slurm is reached on this node: pyslurm of the same release, Slurm's commands, or not at all."""

import importlib.metadata
import logging
import re
import shutil
from collections.abc import Mapping

from scratch_slurm.domain.errors import SlurmError
from scratch_slurm.slurm.commands import Commands
from scratch_slurm.slurm.interface import Slurm
from scratch_slurm.slurm.programs import Programs, clean_environment
from scratch_slurm.slurm.pyslurm_classes import PyslurmClasses

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 20.0
"""The longest that a question to Slurm may take; a controller that is down or hangs uses it up."""

_COMMANDS = ("scontrol", "sinfo", "squeue")
_VERSION = re.compile(r"\d+\.\d+(\.\d+)*")
# The first release that has pyslurm's classes.
_FIRST_CLASSES = (23, 2)


def choose_slurm(environ: Mapping[str, str], *, timeout_s: float = CALL_TIMEOUT_S) -> Slurm | None:
    """Find Slurm.

    Args:
        environ: the daemon's environment: PATH, SLURM_CONF.
        timeout_s: the time limit of each call.
    Returns: None where Slurm's commands are not installed. They may not be able to answer yet: on a cluster without
        configuration files slurmd brings the configuration, and it starts after the daemon.
    """
    programs = Programs(clean_environment(environ), timeout_s=timeout_s)
    if any(shutil.which(command, path=programs.environment.get("PATH", "")) is None for command in _COMMANDS):
        return None
    version = _read_version(programs)
    commands = Commands(programs, version or "of an unknown release")
    release = pyslurm_release()
    if release is None:
        return commands
    problem = pyslurm_problem(release, version)
    if problem:
        log.info("pyslurm-unused reason=%r", problem)
        return commands
    return PyslurmClasses(programs, release, commands)


def _read_version(programs: Programs) -> str:
    """Ask for Slurm's version; empty where it cannot be told. It asks nobody, but wants a configuration."""
    try:
        found = _VERSION.search(programs.run(["scontrol", "--version"]))
    except SlurmError as exc:
        log.info("slurm-version-unknown problem=%r", exc.message)
        return ""
    return found[0] if found else ""


def pyslurm_release() -> str | None:
    """Tell pyslurm's release without loading it; None where it is not installed."""
    try:
        return importlib.metadata.version("pyslurm")
    except importlib.metadata.PackageNotFoundError:
        return None


def pyslurm_problem(release: str, slurm_version: str) -> str:
    """Tell why a pyslurm cannot serve beside a Slurm; empty when it can."""
    ours, theirs = _major(release), _major(slurm_version)
    if ours is None or ours != theirs:
        return f"pyslurm {release} is not of the release of Slurm {slurm_version}"
    if ours < _FIRST_CLASSES:
        return f"pyslurm {release} has functions only; classes came with 23.2"
    return ""


def _major(version: str) -> tuple[int, int] | None:
    """(23, 2) of 23.02.7 and of 23.2.2 alike."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None
