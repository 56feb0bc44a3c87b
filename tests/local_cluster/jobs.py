"""What Slurm's commands print about jobs and nodes, parsed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# job_state_string() of Slurm, without the states that a job leaves again.
FINAL_STATES: Final = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
    }
)

_FIELD: Final = re.compile(r"(?:^|\s)([A-Z][A-Za-z/:_]*)=")


@dataclass(frozen=True)
class JobInfo:
    """One job (or task of an array, or part of a heterogeneous job) as `scontrol show job -o` tells it.

    Args:
        fields: every field as it was printed.
    """

    job_id: int
    state: str
    reason: str
    exit_code: str
    restarts: int
    node_list: str
    fields: Mapping[str, str]

    @property
    def is_final(self) -> bool:
        """The job has ended, its epilogs too."""
        return self.state in FINAL_STATES

    @property
    def in_prolog(self) -> bool:
        """The job has its nodes, and their prologs run; Slurm calls this RUNNING too."""
        return self.reason == "Prolog" or self.state == "CONFIGURING"

    @property
    def output(self) -> str:
        """The path of the batch output."""
        return self.fields.get("StdOut", "")


@dataclass(frozen=True)
class DrainedNode:
    """A node that Slurm no longer gives to jobs, and why."""

    name: str
    state: str
    reason: str


def parse_job(line: str) -> JobInfo:
    """Parse one line of `scontrol show job -o`."""
    marks = list(_FIELD.finditer(line))
    ends = [mark.start() for mark in marks[1:]] + [len(line)]
    fields = {mark[1]: line[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)}
    return JobInfo(
        job_id=int(fields["JobId"]),
        state=fields["JobState"],
        reason=fields.get("Reason", ""),
        exit_code=fields.get("ExitCode", ""),
        restarts=int(fields.get("Restarts", "0")),
        node_list=fields.get("NodeList", ""),
        fields=fields,
    )


def parse_drained(text: str) -> list[DrainedNode]:
    """Parse `sinfo --noheader --Node --list-reasons --format=%N|%T|%E`."""
    return [DrainedNode(*line.split("|", 2)) for line in text.splitlines() if line]
