"""What the commands ask of the node daemon, as values."""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DaemonError
from scratch_slurm.domain.messages import (
    EvictAnswer,
    EvictRequest,
    NodeStatus,
    PlanAnswer,
    PlanRequest,
    ReleaseAnswer,
    ReleaseRequest,
    WaitAnswer,
    WaitRequest,
)
from scratch_slurm.node import daemon_client

Answer = TypeVar("Answer")

ANSWER_TIMEOUT_S = 10.0
EVICT_TIMEOUT_S = 120.0


def read_status(config: Config) -> NodeStatus:
    """Ask what the node has.

    Raises: DaemonError: the daemon does not answer.
    """
    return _ask(config, "GET", "/v1/status", None, NodeStatus, ANSWER_TIMEOUT_S)


def wait(config: Config, datasets: tuple[str, ...], timeout_s: float = 0.0) -> WaitAnswer:
    """Have the daemon look at the ledger now, and ask for the datasets' states then.

    Raises: DaemonError: the daemon does not answer. ScratchError: what the daemon says instead.
    """
    request = WaitRequest(datasets, timeout_s)
    return _ask(config, "POST", "/v1/wait", request, WaitAnswer, timeout_s + ANSWER_TIMEOUT_S)


def evict(config: Config, dataset: str) -> EvictAnswer:
    """Have a dataset evicted.

    Raises: PinnedError, NotFoundError, DeniedError: the daemon refuses. DaemonError: it does not answer.
    """
    return _ask(config, "POST", "/v1/evict", EvictRequest(dataset), EvictAnswer, EVICT_TIMEOUT_S)


def plan(config: Config, request: PlanRequest) -> PlanAnswer:
    """Ask what the daemon would do, with its own figures or others; it does nothing.

    Raises: DaemonError: the daemon does not answer. UsageError: it refuses a figure.
    """
    return _ask(config, "POST", "/v1/plan", request, PlanAnswer, ANSWER_TIMEOUT_S)


def release(config: Config, request: ReleaseRequest) -> ReleaseAnswer:
    """Give pins of a job back before its end.

    Raises: DaemonError: the daemon does not answer. DeniedError: they are another user's.
        NotFoundError: the job has no datasets on this node.
    """
    return _ask(config, "POST", "/v1/release", request, ReleaseAnswer, ANSWER_TIMEOUT_S)


def _ask(
    config: Config, method: str, path: str, request: msgspec.Struct | None, kind: type[Answer], timeout_s: float
) -> Answer:
    body = None if request is None else msgspec.json.encode(request)
    socket_path = _choose_socket(config)
    answer = daemon_client.request(socket_path, method, path, body, timeout_s)
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as exc:
        raise DaemonError(
            f"{socket_path}: the daemon's answer is not understood: {exc}",
            hint="command and daemon are of different versions: restart the daemon",
        ) from exc


def _choose_socket(config: Config) -> Path:
    """Choose the daemon's socket: root has one of its own, which strangers cannot fill."""
    own = config.root_socket_path
    return own if os.geteuid() == 0 and own.is_socket() else config.socket_path
