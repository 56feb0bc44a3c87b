"""The pool of worker processes: everything that may block for ever is done in one, and given up on in time."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from scratch_slurm.domain.errors import ScratchError, SourceError, error_by_name
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.service import operations as op

log = logging.getLogger(__name__)

_LOOK_S = 10.0
_LINE_LIMIT_BYTES = 16 * 1024 * 1024
_COMMAND = (sys.executable, "-I", "-m", "scratch_slurm.service.worker")


class _GivenUpError(Exception):
    """A worker gave no sign for too long, and was killed; the kernel may not let go of it yet."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process.pid)
        self.process = process


class Workers:
    """Runs requests, each in a process of its own while it lasts; idle processes are kept for a while.

    A process that gives no sign for too long is killed. One that hangs in the kernel dies only when the storage is
    back: whoever asked waits for that, so that nothing else is tried on the same object meanwhile.
    """

    def __init__(self, *, slots: int = 8, max_idle: int = 2, idle_s: float = 75.0) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._idle: list[tuple[asyncio.subprocess.Process, asyncio.TimerHandle]] = []
        self._running: set[asyncio.subprocess.Process] = set()

    async def run(
        self,
        request: op.Request,
        *,
        silence_s: float,
        on_line: Callable[[op.Line], None] | None = None,
        on_hang: Callable[[], None] | None = None,
        takes_slot: bool = True,
    ) -> None:
        """Do one request.

        Args:
            silence_s: how long the worker may say nothing before it is killed.
            on_line: called with each line of progress.
            on_hang: called when the worker was given up; this call then lasts until its process is really gone.
            takes_slot: wait for one of the few slots that bound the number of processes; given back on a hang.
        Raises:
            ScratchError: what the worker answered.
            SourceError: it gave no sign for `silence_s` seconds, or died.
        """
        try:
            if takes_slot:
                async with self._slots:
                    await self._run_in_process(request, silence_s, on_line)
            else:
                await self._run_in_process(request, silence_s, on_line)
        except _GivenUpError as exc:
            if on_hang:
                on_hang()
            await _ended(exc.process)
            raise SourceError(f"no sign of life for {silence_s:.0f} s in {_describe(request)}") from exc

    async def _run_in_process(
        self, request: op.Request, silence_s: float, on_line: Callable[[op.Line], None] | None
    ) -> None:
        process = await self._take()
        self._running.add(process)
        try:
            await self._converse(process, request, silence_s, on_line)
        except TimeoutError as exc:
            _kill(process)
            raise _GivenUpError(process) from exc
        except ScratchError:
            if process.returncode is None:
                self._keep(process)
            raise
        except BaseException:
            # Cancelled, or nonsense was answered: what it does now, or says next, nobody waits for.
            _kill(process)
            await _ended(process)
            raise
        else:
            self._keep(process)
        finally:
            self._running.discard(process)

    async def close(self, *, patience_s: float) -> None:
        """Kill all processes, and wait for them for a bounded time: the ones that hang are left to the kernel."""
        processes = [*(process for process, _ in self._idle), *self._running]
        for _, timer in self._idle:
            timer.cancel()
        self._idle.clear()
        for process in processes:
            _kill(process)
        if processes:
            await asyncio.wait([asyncio.create_task(process.wait()) for process in processes], timeout=patience_s)

    async def _converse(
        self,
        process: asyncio.subprocess.Process,
        request: op.Request,
        silence_s: float,
        on_line: Callable[[op.Line], None] | None,
    ) -> None:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        while True:
            try:
                text = await asyncio.wait_for(process.stdout.readline(), silence_s)
                line = msgspec.json.decode(text, type=op.AnyLine) if text else None
            except (ValueError, msgspec.DecodeError) as exc:
                _kill(process)
                await _ended(process)
                raise SourceError(f"the worker process answered nonsense in {_describe(request)}") from exc
            if line is None:
                await _ended(process)
                raise SourceError(f"the worker process ended with {process.returncode} in {_describe(request)}")
            if isinstance(line, op.Done):
                return
            if isinstance(line, op.Failed):
                raise error_by_name(line.error, line.message, line.hint)
            if on_line:
                on_line(line)

    async def _take(self) -> asyncio.subprocess.Process:
        while self._idle:
            process, timer = self._idle.pop()
            timer.cancel()
            if process.returncode is None:
                return process
        try:
            return await asyncio.create_subprocess_exec(
                *_COMMAND,
                str(os.getpid()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_LIMIT_BYTES,
            )
        except OSError as exc:
            raise ScratchError(f"cannot start a worker process: {word_os_error(exc)}") from exc
        except MemoryError as exc:
            raise ScratchError("cannot start a worker process: no memory") from exc
        except RuntimeError as exc:  # "can't start new thread", before Linux 5.3
            raise ScratchError(f"cannot start a worker process: {exc}") from exc

    def _keep(self, process: asyncio.subprocess.Process) -> None:
        if len(self._idle) >= self._max_idle:
            _dismiss(process)
            return
        timer = asyncio.get_running_loop().call_later(self._idle_s, self._retire, process)
        self._idle.append((process, timer))

    def _retire(self, process: asyncio.subprocess.Process) -> None:
        self._idle = [kept for kept in self._idle if kept[0] is not process]
        _dismiss(process)


def _describe(request: op.Request) -> str:
    match request:
        case op.Scan():
            return f"listing {request.origin}"
        case op.MountImage():
            return f"mounting {request.backing}"
        case op.SwitchBacking():
            return f"switching {request.device} to {request.backing}"
        case op.CopyImage():
            return f"copying {request.image.at}"
        case op.UncoverMount():
            return f"uncovering {request.device} on {request.mount_point}"
        case op.UnmountImage():
            return f"unmounting {request.mount_point}"
        case op.ReadTag():
            return f"reading the tag of {request.device}"
        case op.ProbeMount():
            return f"looking at {request.mount_point}"
        case op.LookAtCache():
            return f"looking at {request.cache_dir}"
        case op.PublishCopy() | op.DropPartial():
            return f"writing {request.dataset} in {request.cache_dir}"
        case op.RetireImage() | op.RestoreImage() | op.DiscardImage():
            return f"moving {request.image.path}"
        case op.ReadGroups():
            return f"asking the name service for the groups of user {request.uid}"
        case _:
            return type(request).__name__


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait until the kernel has let go of a process.

    The event loop tells, unless it had no memory for it at that moment: so the kernel is asked as well.
    """
    while process.returncode is None:
        try:
            await asyncio.wait_for(process.wait(), _LOOK_S)
        except TimeoutError:
            if not _is_child(process.pid):
                return


def _is_child(pid: int) -> bool:
    """Whether a process of this one's runs still: the number may be another one's by now."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return False
    return state not in "ZX" and int(parent) == os.getpid()


def _dismiss(process: asyncio.subprocess.Process) -> None:
    """Let an idle worker end by itself."""
    if process.stdin is not None:
        process.stdin.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
