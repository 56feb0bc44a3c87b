"""The daemon's interface: HTTP with JSON on a Unix socket, callers known by their peer credentials.

Anybody on the node may connect: whatever a caller says is hostile until it is checked here.
"""

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from scratch_slurm.domain.access import ROOT, Person, may_read
from scratch_slurm.domain.errors import DeniedError, UsageError
from scratch_slurm.domain.messages import (
    DatasetState,
    DatasetStatus,
    EvictAnswer,
    EvictRequest,
    PlanAnswer,
    PlanRequest,
    ReleaseAnswer,
    ReleaseRequest,
    WaitAnswer,
    WaitRequest,
)
from scratch_slurm.domain.names import MAX_DATASETS_PER_JOB, parse_dataset_name
from scratch_slurm.service import status
from scratch_slurm.service.door import Door, Limits, Make
from scratch_slurm.service.http import RefusedError, Request
from scratch_slurm.service.paced import Paced
from scratch_slurm.service.parts import Parts
from scratch_slurm.service.people import People
from scratch_slurm.service.plans import what_if
from scratch_slurm.service.requests import evict, release_early
from scratch_slurm.service.slurm_side import SlurmSide

_WAIT_LIMIT_S = 60.0
_MOUNT_PATIENCE_S = 5.0
_LOOK_PATIENCE_S = 5.0
_STRANGERS_PAUSE_S = 1.0
"""The least time between two rounds that strangers ask for."""
_CALLERS_KNOWN = 256
"""Callers in more groups than the kernel tells of, whose groups are remembered."""
_MOST_CONNECTIONS = 256
_MOST_FOR_ROOT = 1024
_MOST_OF_A_USER = 32
_DESCRIPTORS_SHARE = 8
"""One of so many descriptors may be a stranger's connection: the rounds need theirs."""
_ROOT_ANSWER_S = 3600.0
"""An eviction waits for whatever is under way with its dataset."""

Shape = TypeVar("Shape", bound=msgspec.Struct)
_Answer = Callable[[Request, Person], Coroutine[None, None, Make]]


class Interface:
    """The requests that the daemon answers; `domain.messages` tells their shapes."""

    def __init__(self, parts: Parts, slurm: SlurmSide) -> None:
        self._parts = parts
        self._rounds = parts.rounds
        self._slurm = slurm
        self._strangers_round = Paced(parts.rounds.after_next_round, _STRANGERS_PAUSE_S)
        # Not those of the rounds: however many callers come, the groups of users with pins stay known.
        self._callers = People(parts.hands, on_news=self._strangers_round.ask, most=_CALLERS_KNOWN)
        self._releasing = asyncio.Semaphore()
        self._routes: dict[str, tuple[str, _Answer]] = {
            "/v1/status": ("GET", self._status),
            "/v1/wait": ("POST", self._wait),
            "/v1/evict": ("POST", self._evict),
            "/v1/plan": ("POST", self._plan),
            "/v1/release": ("POST", self._release),
        }
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        share = max(1, descriptors // _DESCRIPTORS_SHARE)
        self._door = Door(self._route, Limits(min(_MOST_CONNECTIONS, share), _MOST_OF_A_USER))
        self._root_door = Door(
            self._route, Limits(min(_MOST_FOR_ROOT, share), _MOST_OF_A_USER, answer_s=_ROOT_ANSWER_S)
        )

    def start(self, socket_path: Path, root_socket_path: Path) -> None:
        """Listen; sockets left by an earlier daemon are replaced.

        Args:
            socket_path: for everybody.
            root_socket_path: for root alone, so that hooks get through whatever everybody else does.
        Raises: OSError: a socket cannot be made.
        """
        self._door.open(socket_path, mode=0o666)
        self._root_door.open(root_socket_path, mode=0o600)

    def is_heard(self) -> bool:
        """Whether the sockets at their paths are still this daemon's."""
        return self._door.is_at_its_path() and self._root_door.is_at_its_path()

    async def stop(self) -> None:
        """Stop listening, and end the requests under way."""
        await self._door.close()
        await self._root_door.close()
        self._callers.close()

    async def _route(self, request: Request, caller: Person) -> Make:
        method, answer = self._routes.get(request.path, ("", None))
        if answer is None:
            raise RefusedError(404, f"{request.path}: no such path")
        if request.method != method:
            raise RefusedError(405, f"{request.path}: takes {method}")
        return await answer(request, caller)

    async def _status(self, request: Request, caller: Person) -> Make:
        judge = self._audience(caller).judge
        return lambda: status.node_status(self._parts, os.getpid(), judge, slurm=self._slurm)

    async def _wait(self, request: Request, caller: Person) -> Make:
        asked = _body(request, WaitRequest)
        if len(asked.datasets) > MAX_DATASETS_PER_JOB:
            raise UsageError(f"wait: {len(asked.datasets)} datasets, at most {MAX_DATASETS_PER_JOB} at once")
        names = [parse_dataset_name(name) for name in asked.datasets]
        if caller.uid == ROOT and asked.node:
            self._slurm.hear(asked.node)
        began = time.monotonic()
        await self._look_for_new(names, caller.uid)
        audience = self._audience(caller, asked.uid)
        judge = audience.judge
        await self._see_round(caller)
        deadline = began + min(max(0.0, asked.timeout_s), _WAIT_LIMIT_S)
        while True:
            view = status.view(self._parts)
            permitted = [name for name in names if view and view.permits(name, judge)]
            untold = not audience.problem() and any(view.awaits_verdict(name, judge) for name in names if view)
            settled = view is not None and not untold and all(view.is_settled(name, permitted) for name in permitted)
            changing = untold or (view is not None and any(view.is_changing_hands(name) for name in permitted))
            now = time.monotonic()
            until = max(deadline, began + _MOUNT_PATIENCE_S) if changing else deadline
            if (settled and not changing) or now >= until:
                break
            await _within(self._rounds.wait_for_change(), until - now)
        view = status.view(self._parts)
        found = tuple(_explain(view, name, audience) for name in names) if view else ()
        return lambda: WaitAnswer(found, settled)

    def _audience(self, caller: Person, asked_uid: int | None = None) -> "_Audience":
        """Find out for whom an answer is, and what may be told: root may ask for somebody else."""
        if caller.uid == ROOT and asked_uid is not None:
            return _Audience.known_by_name(asked_uid, self._rounds.people)
        if caller.gids is None:
            return _Audience.known_by_name(caller.uid, self._callers)
        return _Audience(caller.uid, partial(may_read, caller), lambda: "")

    async def _see_round(self, caller: Person) -> None:
        """Return when a round that began after this call has ended; strangers share theirs."""
        await (self._rounds.after_next_round() if caller.uid == ROOT else self._strangers_round.done())

    async def _look_for_new(self, names: list[str], uid: int) -> None:
        """Look for datasets that are newer than the latest listing; only for root, as it costs the slow storage."""
        known = self._parts.source.catalog
        new = [name for name in names if name not in known.images and name not in known.skipped]
        if new and uid == ROOT:
            await _within(self._parts.source.look(new), _LOOK_PATIENCE_S)

    async def _evict(self, request: Request, caller: Person) -> Make:
        if caller.uid != ROOT:
            raise DeniedError(f"evict: only root may, you are uid {caller.uid}")
        asked = _body(request, EvictRequest)
        # Whether or not the caller waits for its end: what is kept in mind of it comes then.
        evicting = asyncio.create_task(evict(self._rounds, parse_dataset_name(asked.dataset)))
        evicting.add_done_callback(lambda done: done.cancelled() or done.exception())
        freed_bytes = await asyncio.shield(evicting)
        return lambda: EvictAnswer(freed_bytes)

    async def _plan(self, request: Request, caller: Person) -> Make:
        asked = _body(request, PlanRequest)
        if not (0 <= asked.period_s < 1e9 and 0 <= asked.horizon_s < 1e9):
            raise UsageError("plan: period and horizon are from 0 to 1e9 seconds")
        may_see = self._audience(caller).judge
        await self._see_round(caller)

        def make() -> PlanAnswer:
            rounds = self._rounds
            return what_if(
                self._parts.config, rounds.cards, rounds.latest().node, rounds.counters.by_dataset, asked,
                now=time.monotonic(), is_told=lambda name: may_see(rounds.cards[name].permissions),
            )  # fmt: skip

        return make

    async def _release(self, request: Request, caller: Person) -> Make:
        """A job gives pins back early: the word of the pins' own user, or of root, is enough."""
        asked = _body(request, ReleaseRequest)
        if not 0 < asked.job_id < 2**32:
            raise UsageError(f"release: {asked.job_id} is not a job id")
        names = [parse_dataset_name(name) for name in asked.datasets]
        # One at a time: the ledger has one thread, and the rounds need it too.
        async with self._releasing:
            released = await release_early(
                self._parts.config, self._parts.ledger, asked.job_id, names or None, caller.uid
            )
        await _within(self._see_round(caller), _LOOK_PATIENCE_S)
        return lambda: ReleaseAnswer(released)


@dataclass(frozen=True)
class _Audience:
    """For whom an answer is."""

    uid: int
    judge: status.Judge
    problem: Callable[[], str]
    """Why the user's groups cannot be told; empty when they are known, or nothing has gone wrong yet."""

    @classmethod
    def known_by_name(cls, uid: int, people: People) -> "_Audience":
        """Of a user whose groups the name service must tell."""
        return cls(uid, partial(people.judge, uid), partial(people.problem, uid))


def _explain(view: status.StatusView, name: str, audience: _Audience) -> DatasetStatus:
    """Tell one dataset's status, and of a private one why no more is told."""
    told = view.dataset_for(name, audience.judge)
    if told.state is not DatasetState.PRIVATE:
        return told
    why = f"user {audience.uid} may not read its image"
    if view.permits(name, audience.judge) is None:
        problem = audience.problem() if view.has_readers(name) else "its image has not been read"
        why = f"whether user {audience.uid} may read it is not known" + (f": {problem}" if problem else " yet")
    return msgspec.structs.replace(told, problem=why)


async def _within(work: Awaitable[None], limit_s: float) -> None:
    """Wait for something for a bounded time; it is cancelled when the time is over."""
    try:
        await asyncio.wait_for(work, limit_s)
    except TimeoutError:
        return


def _body(request: Request, shape: type[Shape]) -> Shape:
    """Read a request's body.

    Raises: UsageError: whatever is wrong with it. Bytes that are no text and what is nested too deep are ValueErrors
        and RecursionErrors of msgspec's.
    """
    try:
        return msgspec.json.decode(request.body, type=shape)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise UsageError(f"{request.path}: {exc}") from exc
