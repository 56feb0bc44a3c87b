"""The daemon's answer as the hooks read it: of WaitAnswer (domain.messages) what a job is told, without msgspec.

msgspec takes a hook 40 ms to import, and json, which Python has anyway, 2. A test holds the two readings together.
"""

import json
import math
from typing import NamedTuple, NoReturn, TypeVar

from scratch_slurm.domain.states import DatasetState

T = TypeVar("T")


class Seen(NamedTuple):
    """One dataset as its job is told of it; the fields are those of DatasetStatus."""

    name: str
    state: DatasetState
    size_bytes: int = 0
    staged_bytes: int = 0
    eta_s: float | None = None
    problem: str = ""


class Answer(NamedTuple):
    """The states in the order asked for."""

    datasets: tuple[Seen, ...]
    settled: bool


def format_question(datasets: tuple[str, ...], timeout_s: float, uid: int | None = None, node: str = "") -> bytes:
    """Write a WaitRequest."""
    return json.dumps({"datasets": datasets, "timeout_s": timeout_s, "uid": uid, "node": node}).encode()


def parse_answer(content: bytes) -> Answer:
    """Read a WaitAnswer.

    Raises: ValueError: it is none.
    """
    try:
        told = json.loads(content, parse_constant=_refuse)
        return Answer(
            tuple(_parse_seen(each) for each in _typed(list, told["datasets"])), _typed(bool, told["settled"])
        )
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise ValueError(f"{type(exc).__name__}: {exc}") from exc


def _parse_seen(told: dict[str, object]) -> Seen:
    eta_s = told.get("eta_s")
    return Seen(
        name=_typed(str, told["name"]),
        state=DatasetState(_typed(str, told["state"])),
        size_bytes=_typed(int, told.get("size_bytes", 0)),
        staged_bytes=_typed(int, told.get("staged_bytes", 0)),
        eta_s=None if eta_s is None else _finite(eta_s),
        problem=_typed(str, told.get("problem", "")),
    )


def _typed(kind: type[T], value: object) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{str(value)[:40]!r} is not of type {kind.__name__}")
    return value


def _finite(value: object) -> float:
    number = float(_typed(int, value)) if isinstance(value, int) else _typed(float, value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a time")
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
