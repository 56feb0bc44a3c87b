"""One question to Slurm through pyslurm's classes, in a process of its own: JSON on standard input and output.

libslurm blocks without letting other threads run, and ends the process when it dislikes its configuration: the daemon
must not load it. Source: pyslurm 25.11, pyslurm/core/node.pyx and pyslurm/core/job/job.pyx.
"""

import importlib
import json
import os
import sys
from typing import Any

from scratch_slurm.domain.jobs import Presence, has_nodes, judge

# Slurm's error number for a job that it does not know. Source: slurm_errno.h.
_INVALID_JOB_ID = 2017


def main() -> None:
    """Answer the one question; another exit code than 0 is: no answer."""
    # Whatever a library prints must not pass for the answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pyslurm: Any = importlib.import_module("pyslurm")
    asked = json.load(sys.stdin)
    found: list[Any] = []
    match asked["do"]:
        case "presence":
            found = [_presence(pyslurm, job_id, asked["nodes"]) for job_id in asked["job_ids"]]
        case "read":
            node = pyslurm.Node.load(asked["node"])
            found = [list(node.available_features), list(node.active_features), node.extra or ""]
        case "write":
            pyslurm.Node.load(asked["node"]).modify(pyslurm.Node(**asked["changes"]))
        case other:
            raise ValueError(f"cannot {other}")
    json.dump(found, answers)
    answers.close()


def _presence(pyslurm: Any, job_id: int, names: list[str]) -> str:
    try:
        job = pyslurm.Job.load(job_id)
        if job.id != job_id:
            # The first record of its array or heterogeneous job.
            everybody = pyslurm.Jobs.load()
            if job_id not in everybody:
                return Presence.GONE
            job = everybody[job_id]
    except pyslurm.RPCError as exc:
        return Presence.GONE if exc.errno == _INVALID_JOB_ID else Presence.UNKNOWN
    nodes = job.allocated_nodes if has_nodes(job.state) else None
    listed = pyslurm.utils.nodelist_from_range_str(nodes) if nodes and names else None
    on_node = None if listed is None else not set(names).isdisjoint(listed)
    return judge(job.state, on_node=on_node)


if __name__ == "__main__":
    main()
