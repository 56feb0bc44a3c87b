"""What Slurm says of its prologs, as far as it bounds a job's wait. Pure."""

import re
from dataclasses import dataclass

_LINE = re.compile(r"\s*([A-Za-z]+)\s*=\s*(.*?)\s*")
_SECONDS = re.compile(r"([0-9]{1,9})\s*(?:sec)?")
_NO_LIMIT = 65534  # NO_VAL16, as some releases print it


@dataclass(frozen=True)
class PrologRules:
    """How Slurm runs prologs."""

    timeout_s: float | None = None
    """A prolog that takes longer drains its node; None: there is no limit, or it is not known."""
    timeout_key: str = ""
    """What it is called in slurm.conf."""
    serial: bool = False
    """One prolog at a time on each node: one that waits keeps strangers' jobs from starting."""


def parse_prolog_rules(text: str) -> PrologRules:
    """Read the lines of `scontrol show config`.

    Source: slurm.conf(5): PrologEpilogTimeout, and PrologTimeout from 25.05 on, which goes before it; PrologFlags.
    """
    values = {match[1].lower(): match[2] for line in text.splitlines() if (match := _LINE.fullmatch(line))}
    flags = {flag.strip().lower() for flag in values.get("prologflags", "").split(",")}
    for key in ("PrologTimeout", "PrologEpilogTimeout"):
        found = _SECONDS.fullmatch(values.get(key.lower(), ""))
        if found and 0 < int(found[1]) < _NO_LIMIT:
            return PrologRules(float(found[1]), key, "serial" in flags)
    return PrologRules(serial="serial" in flags)
