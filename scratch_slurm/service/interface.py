"""The daemon's interface: HTTP with JSON on a Unix socket, callers known by their peer credentials.

Anybody on the node may connect: whatever a caller says is hostile until it is checked here.
"""

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import web

from scratch_slurm.domain.access import Person, may_read
from scratch_slurm.domain.errors import DeniedError, NotFoundError, PinnedError, ScratchError, UsageError
from scratch_slurm.domain.messages import (
    DatasetState,
    DatasetStatus,
    ErrorAnswer,
    EvictAnswer,
    EvictRequest,
    PlanRequest,
    ReleaseAnswer,
    ReleaseRequest,
    WaitAnswer,
    WaitRequest,
)
from scratch_slurm.domain.names import MAX_DATASETS_PER_JOB, parse_dataset_name
from scratch_slurm.service import status
from scratch_slurm.service.loop import Loop
from scratch_slurm.service.slurm_side import SlurmSide

log = logging.getLogger(__name__)

_BODY_LIMIT_BYTES = 64 * 1024
_WAIT_LIMIT_S = 60.0
_MOUNT_PATIENCE_S = 5.0
_LOOK_PATIENCE_S = 5.0
_PEER = struct.Struct("iII")
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h
_GROUPS_BYTES = 1024  # the most that Python's getsockopt takes

Shape = TypeVar("Shape", bound=msgspec.Struct)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Interface:
    """The requests that the daemon answers; `domain.messages` tells their shapes."""

    def __init__(self, loop: Loop, slurm: SlurmSide) -> None:
        self._loop = loop
        self._slurm = slurm
        self._runner: web.AppRunner | None = None

    async def start(self, socket_path: Path) -> None:
        """Listen; a socket left by an earlier daemon is replaced."""
        app = web.Application(client_max_size=_BODY_LIMIT_BYTES, middlewares=[_errors_as_answers])
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.post("/v1/wait", self._wait),
                web.post("/v1/evict", self._evict),
                web.post("/v1/plan", self._plan),
                web.post("/v1/release", self._release),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        # A private name first, then rename: nobody ever meets a socket that does not listen or has other permissions.
        private = socket_path.with_name(socket_path.name + ".new")
        private.unlink(missing_ok=True)
        await web.UnixSite(self._runner, str(private)).start()
        private.chmod(0o666)
        private.rename(socket_path)

    async def stop(self) -> None:
        """Stop listening, and end the requests under way."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        may_see = self._judge(peer(request))
        return _answer(status.node_status(self._loop, os.getpid(), may_see, slurm=self._slurm.describe()))

    async def _wait(self, request: web.Request) -> web.Response:
        asked = await _body(request, WaitRequest)
        if len(asked.datasets) > MAX_DATASETS_PER_JOB:
            raise UsageError(f"wait: {len(asked.datasets)} datasets, at most {MAX_DATASETS_PER_JOB} at once")
        names = [parse_dataset_name(name) for name in asked.datasets]
        began = time.monotonic()
        caller = peer(request)
        await self._look_for_new(names, caller.uid)
        if caller.uid == 0 and asked.uid is not None:
            caller = Person(asked.uid, None)
        judge = self._judge(caller)
        await self._loop.after_next_round()
        deadline = began + min(max(0.0, asked.timeout_s), _WAIT_LIMIT_S)
        while True:
            view = status.view(self._loop)
            permitted = [name for name in names if view and view.permits(name, judge)]
            untold = not self._loop.people.problem(caller.uid) and any(
                view.permits(name, judge) is None for name in names if view
            )
            settled = view is not None and not untold and all(view.is_settled(name) for name in permitted)
            changing = untold or (view is not None and any(view.is_changing_hands(name) for name in permitted))
            now = time.monotonic()
            until = max(deadline, began + _MOUNT_PATIENCE_S) if changing else deadline
            if (settled and not changing) or now >= until:
                break
            await _within(self._loop.wait_for_change(), until - now)
        view = status.view(self._loop)
        found = tuple(self._explain(view, name, judge, caller.uid) for name in names) if view else ()
        return _answer(WaitAnswer(found, settled))

    def _judge(self, person: Person) -> status.Judge:
        """Make the function that tells what a person may read; without his groups the name service is asked."""
        if person.gids is None:
            return partial(self._loop.people.judge, person.uid)
        return partial(may_read, person)

    def _explain(self, view: status.StatusView, name: str, judge: status.Judge, uid: int) -> DatasetStatus:
        """Tell one dataset's status, and of a private one why no more is told."""
        told = view.dataset_for(name, judge)
        if told.state is not DatasetState.PRIVATE:
            return told
        why = f"user {uid} may not read its image"
        if view.permits(name, judge) is None:
            problem = self._loop.people.problem(uid)
            why = f"whether user {uid} may read it is not known" + (f": {problem}" if problem else " yet")
        return msgspec.structs.replace(told, problem=why)

    async def _look_for_new(self, names: list[str], uid: int) -> None:
        """Look for datasets that are newer than the latest listing; only for root, as it costs the slow storage."""
        known = self._loop.source.catalog
        new = [name for name in names if name not in known.images and name not in known.skipped]
        if new and uid == 0:
            await _within(self._loop.source.look(new), _LOOK_PATIENCE_S)

    async def _evict(self, request: web.Request) -> web.Response:
        uid = peer(request).uid
        if uid != os.geteuid():
            raise DeniedError(f"evict: only root may, you are uid {uid}")
        asked = await _body(request, EvictRequest)
        freed_bytes = await self._loop.evict(parse_dataset_name(asked.dataset))
        return _answer(EvictAnswer(freed_bytes))

    async def _plan(self, request: web.Request) -> web.Response:
        asked = await _body(request, PlanRequest)
        if not (0 <= asked.period_s < 1e9 and 0 <= asked.horizon_s < 1e9):
            raise UsageError("plan: period and horizon are from 0 to 1e9 seconds")
        may_see = self._judge(peer(request))
        await self._loop.after_next_round()
        private = self._loop.memory.private
        hidden = {name for name, permissions in private.items() if not may_see(permissions)}
        plan = self._loop.what_if(asked)
        return _answer(
            msgspec.structs.replace(
                plan,
                actions=tuple(action for action in plan.actions if action.dataset not in hidden),
                verdicts=tuple(verdict for verdict in plan.verdicts if verdict.name not in hidden),
            )
        )

    async def _release(self, request: web.Request) -> web.Response:
        """A job gives pins back early: the word of the pins' own user, or of root, is enough."""
        caller = peer(request)
        asked = await _body(request, ReleaseRequest)
        if not 0 < asked.job_id < 2**32:
            raise UsageError(f"release: {asked.job_id} is not a job id")
        names = [parse_dataset_name(name) for name in asked.datasets]
        released = await asyncio.to_thread(self._loop.release_early, asked.job_id, names or None, caller.uid)
        await _within(self._loop.after_next_round(), _LOOK_PATIENCE_S)
        return _answer(ReleaseAnswer(released))


def peer(request: web.Request) -> Person:
    """Tell who is at the other end, by the kernel's word. Source: SO_PEERCRED and SO_PEERGROUPS in unix(7)."""
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is None:
        raise DeniedError("the caller is gone")
    _, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:  # ERANGE: more groups than Python has room for; ENOPROTOOPT before Linux 4.13
        return Person(uid, None)
    return Person(uid, frozenset((gid, *(number for (number,) in struct.iter_unpack("I", groups)))))


async def _within(work: Awaitable[None], limit_s: float) -> None:
    """Wait for something for a bounded time; it is cancelled when the time is over."""
    try:
        await asyncio.wait_for(work, limit_s)
    except TimeoutError:
        return


async def _body(request: web.Request, shape: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(await request.read(), type=shape)
    except (msgspec.ValidationError, msgspec.DecodeError) as exc:
        raise UsageError(f"{request.path}: {exc}") from exc


def _answer(value: msgspec.Struct, code: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=code, content_type="application/json")


@web.middleware
async def _errors_as_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn exceptions into answers: the one place."""
    try:
        return await handler(request)
    except ScratchError as exc:
        codes = {DeniedError: 403, NotFoundError: 404, PinnedError: 409, UsageError: 400}
        return _answer(ErrorAnswer(type(exc).__name__, exc.message, exc.hint), codes.get(type(exc), 500))
    except web.HTTPException as exc:
        return _answer(ErrorAnswer("UsageError", f"{request.path}: {exc.reason}"), exc.status)
    except Exception:
        log.exception("bug path=%s", request.path)
        return _answer(ErrorAnswer("ScratchError", "an error in the daemon itself; see its log"), 500)
