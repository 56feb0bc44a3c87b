"""What Slurm's word about a job means for its pins. Pure."""

import enum


class Presence(enum.StrEnum):
    """Whether a job may still use what it pinned on a node."""

    LIVE = "live"
    """It is on the node, or may come back to it: suspended, completing, configuring, requeued, held."""
    GONE = "gone"
    """Certainly over: ended, forgotten by Slurm, or on other nodes only."""
    UNKNOWN = "unknown"
    """Slurm did not answer, or nothing that is clear; never a reason to release."""


# Slurm's names of job states, as squeue's %T gives them. Source: job_state_string() in Slurm.
ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
_ON_NODES = frozenset(
    {
        "COMPLETING",
        "CONFIGURING",
        "POWER_UP_NODE",
        "RESIZING",
        "RUNNING",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
        "SUSPENDED",
    }
)


def has_nodes(state: str) -> bool:
    """Tell whether a job in this state holds nodes, so that it matters which."""
    return state in _ON_NODES


def judge(state: str, *, on_node: bool | None) -> Presence:
    """Judge a job that Slurm knows.

    Args:
        state: Slurm's name of the job's state; a name unknown here is never a reason to release.
        on_node: whether the node is among the job's; while a job completes, among those that are not done yet.
            None: that is not clear.
    """
    if state in ENDED:
        return Presence.GONE
    if state in _WAITING:
        return Presence.LIVE
    if state not in _ON_NODES or on_node is None:
        return Presence.UNKNOWN
    return Presence.LIVE if on_node else Presence.GONE
