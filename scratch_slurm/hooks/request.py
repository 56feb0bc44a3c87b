"""What Slurm's environment says of a job: written by users, so checked here, before root acts on it. Pure."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from scratch_slurm.domain.errors import UsageError

# The stub's default limit for the whole hook; it passes a different one on in SCRATCH_SLURM_HOOK_LIMIT.
DEFAULT_LIMIT_S = 900.0

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_WORD = "datasets="
_MAX_UINT32 = 2**32 - 1


class JobRequest(NamedTuple):
    """One job as its hook sees it. The texts are the user's, unchecked."""

    job_id: int
    uid: int
    datasets_text: str
    wait_text: str
    limit_s: float
    """The hook is killed so long after its start."""
    node: str = ""
    """What slurmd calls this node: slurmd's own word, not the user's."""


def parse_request(environ: Mapping[str, str]) -> JobRequest:
    """Read a job's request.

    Without a valid SLURM_JOB_UID root owns the pins.

    Raises: UsageError: SLURM_JOB_ID is not a job's id.
    """
    job_id = _parse_number(environ.get("SLURM_JOB_ID", ""))
    if not job_id:
        raise UsageError(f"SLURM_JOB_ID {environ.get('SLURM_JOB_ID', '')[:40]!r} is not a job id")
    limit_s = _parse_number(environ.get("SCRATCH_SLURM_HOOK_LIMIT", ""))
    return JobRequest(
        job_id=job_id,
        uid=_parse_number(environ.get("SLURM_JOB_UID", "")) or 0,
        datasets_text=environ.get("SPANK_DATASETS", "") or _asked_in_comment(environ.get("SLURM_JOB_COMMENT", "")),
        wait_text=environ.get("SPANK_DATASETS_WAIT", ""),
        limit_s=DEFAULT_LIMIT_S if limit_s is None else float(limit_s),
        node=environ.get("SLURMD_NODENAME", ""),
    )


def _asked_in_comment(comment: str) -> str:
    """Find the word `datasets=a,b` in a job's comment: what submits without plugins (slurmrestd) can set that."""
    return next(
        (word.removeprefix(_WORD) for word in comment.split(" ") if word.startswith(_WORD) and word != _WORD), ""
    )


def _parse_number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) and int(text) <= _MAX_UINT32 else None
