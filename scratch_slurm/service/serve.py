"""The daemon while it serves: its parts put together, what runs for ever, and an end in order."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from scratch_slurm import __version__
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.node.kernel import mountinfo
from scratch_slurm.node.ledger.ledger import Ledger, read_boot_id
from scratch_slurm.service.calls import start_executor
from scratch_slurm.service.children import children_of_this_process, reap, watch_children
from scratch_slurm.service.interface import Interface
from scratch_slurm.service.notify import keep_watchdog, notify, notify_reloading, watchdog_s
from scratch_slurm.service.parts import Parts, make_parts
from scratch_slurm.service.ready import until_ready
from scratch_slurm.service.run_dir import keep_run_dir
from scratch_slurm.service.slurm_side import SlurmSide
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

ENDING = (signal.SIGTERM, signal.SIGINT)
_LAST_WORDS_S = 2.0
_THREADS = 6
"""For what is done with `asyncio.to_thread`; what may hang has a thread of its own."""


async def serve(config: Config, check_again: Callable[[], None], prepare_hooks: Callable[[], None]) -> bool:
    """Serve until told to end.

    Args:
        check_again: raises ScratchError where a reload would fail.
        prepare_hooks: writes what hooks find in run_dir.
    Returns: whether to begin again, with the configuration as it is now.
    """
    inherited = children_of_this_process()
    watch_children()
    # For the threads, which keep it so: signals are the main thread's.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    asyncio.get_running_loop().set_default_executor(start_executor(_THREADS))
    log.info("starting version=%s node=%s source_dir=%s", __version__, config.node_name, config.source_dir)
    if not mountinfo.same_mount_namespace_as_init():
        log.warning("this daemon has a mount namespace of its own: jobs elsewhere on this node do not see its mounts")
    ledger = Ledger(config.ledger_path, boot_id=read_boot_id(), now=time.time, later=True)
    workers = Workers()
    parts = make_parts(config, ledger, workers)
    slurm = SlurmSide(config, parts.rounds, ledger, parts.supervisor)
    interface = Interface(parts, slurm)
    ended = asyncio.Event()
    for number in ENDING:
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    hangups: asyncio.Queue[None] = asyncio.Queue()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangups.put_nowait, None)
    end = asyncio.create_task(ended.wait())
    rounds = asyncio.create_task(parts.run())
    reload = asyncio.create_task(_await_reload(hangups, check_again))
    keep = parts.supervisor.keep
    beside = [asyncio.create_task(keep("the reaping of processes", partial(reap, inherited)))]
    every_s = watchdog_s(os.environ)
    if every_s is not None:
        watch = partial(keep_watchdog, every_s, parts.stalled)
        beside.append(asyncio.create_task(keep("the word to the watchdog", watch)))

    def restore() -> None:
        interface.start(config.socket_path, config.root_socket_path)
        prepare_hooks()

    watch_run_dir = partial(keep_run_dir, config, interface.is_heard, restore)
    beside.append(asyncio.create_task(keep("the watch over run_dir", watch_run_dir)))
    again = False
    try:
        interface.start(config.socket_path, config.root_socket_path)
        await _first(parts.rounds.after_next_round(), end, rounds)
        log.info("serving socket=%s capacity=%s", config.socket_path, _capacity(parts))
        slurm.start()
        await _first(until_ready(parts.rounds, parts.source), end, rounds, reload)
        notify("READY=1")
        await asyncio.wait([end, rounds, reload], return_when=asyncio.FIRST_COMPLETED)
        if rounds.done():
            rounds.result()
        again = reload.done() and not end.done()
    finally:
        if again:
            notify_reloading()
        else:
            notify("STOPPING=1")
        for task in (reload, *beside):
            task.cancel()
        await slurm.stop()
        rounds.cancel()
        await asyncio.wait([rounds], timeout=2 * _LAST_WORDS_S)
        await interface.stop()
        await workers.close(patience_s=_LAST_WORDS_S)
        ledger.close()
        again = again and not await _is_told_to_end(ended)
        log.info("ended%s; all mounts go on serving", ", to begin again" if again else "")
    return again


async def _is_told_to_end(ended: asyncio.Event) -> bool:
    """Whether a signal to end came during a reload; one that comes from now on waits for the next begin."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    # What was caught just before is told by the loop's next turns.
    for _ in range(3):
        await asyncio.sleep(0)
    return ended.is_set()


async def _await_reload(hangups: "asyncio.Queue[None]", check_again: Callable[[], None]) -> None:
    """Return when a reload was asked for that will go well; one that would not is refused, and nothing changes."""
    while True:
        await hangups.get()
        try:
            await asyncio.to_thread(check_again)
            return
        except ScratchError as exc:
            log.error("reload refused: everything stays as it is problem=%r", str(exc))
        except Exception:
            log.exception("reload refused: everything stays as it is")


async def _first(work: Coroutine[Any, Any, object], *others: asyncio.Future[Any]) -> None:
    """Wait until the work, or one of the others, is done; the work does not outlast this call."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task, *others], return_when=asyncio.FIRST_COMPLETED)
    task.cancel()


def _capacity(parts: Parts) -> str:
    snapshot = parts.rounds.snapshot
    return format_bytes(sum(disk.space.capacity_bytes for disk in snapshot.node.disks)) if snapshot else "unknown"
