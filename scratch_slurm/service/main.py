"""`scratch-slurmd`: the node daemon's command line, start and end."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import msgspec

from scratch_slurm import __version__
from scratch_slurm.domain.config import Config, refuse_twins
from scratch_slurm.domain.errors import (
    ConfigError,
    DaemonError,
    DeniedError,
    DeviceError,
    PinnedError,
    ScratchError,
)
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.node.configfile import load_config
from scratch_slurm.node.hookconfig import save_hook_config
from scratch_slurm.node.kernel import mountinfo, mounts
from scratch_slurm.node.ledger.ledger import Ledger, read_boot_id
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.service.calls import start_executor
from scratch_slurm.service.children import children_of_this_process, reap, watch_children
from scratch_slurm.service.former import Former
from scratch_slurm.service.interface import Interface
from scratch_slurm.service.ledger_side import LedgerSide
from scratch_slurm.service.logs import complain, set_up_logging
from scratch_slurm.service.loop import Loop
from scratch_slurm.service.notify import keep_watchdog, notify, notify_reloading, system_is_stopping, watchdog_s
from scratch_slurm.service.ready import until_ready
from scratch_slurm.service.run_dir import keep_run_dir, make_run_dir, refuse_shared
from scratch_slurm.service.slurm_calls import take_features_back
from scratch_slurm.service.slurm_side import SlurmSide
from scratch_slurm.service.source import Source
from scratch_slurm.service.supervise import Supervisor
from scratch_slurm.service.unmount import unmount_all
from scratch_slurm.service.worker_hands import WorkerHands
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGINT)
_LAST_WORDS_S = 2.0
_RESOLVE_S = 5.0
_THREADS = 6
"""For what is done with `asyncio.to_thread`; what may hang has a thread of its own."""

# scratch_manager's options: all it takes to run without Slurm and without a file.
_OPTIONS = {
    "--datadir": ("source_dir", "DIR", "the slow directory of images (source_dir)"),
    "--cachedir": ("cache_dir", "DIR", "the directory on the SSD for cached images (cache_dir)"),
    "--mountdir": ("mount_dir", "DIR", "where the datasets are mounted (mount_dir)"),
    "--capacity": ("capacity", "SIZE", "what cached images may take: 500 GB, 2 TiB, 80%%"),
    "--period": ("period", "TIME", "the window over which read rates are taken: 600 (seconds), 10m"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `scratch-slurmd`; ends the process with the error's exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.force and not options.unmount:
        parser.error("--force goes with --unmount")
    again = False
    try:
        config = load_config(options.config, _given(options))
        if options.check_config:
            _say([_describe(config)])
            return
        if options.leaving:
            for line in take_features_back(config) if system_is_stopping() else ():
                print(line)
            return
        if os.geteuid() != 0:
            raise DeniedError("must run as root: it mounts images")
        set_up_logging(config.log_level)
        for note in config.notes:
            log.warning("configuration note=%r", note)
        if not options.unmount:
            # Its default would end the daemon; whoever asks for a reload before this one serves has its way anyway.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        config = _prepare_directories(config)
        with _only_daemon(config):
            _await_hooks(config)
            if options.unmount:
                _unmount(config, force=options.force)
            else:
                _close_mount_points(config)
                _prepare_hooks(options)
                again = asyncio.run(_serve(config, lambda: _check_again(options), lambda: _prepare_hooks(options)))
        if again:
            _begin_again()
    except ScratchError as exc:
        complain(f"scratch-slurmd: {exc}")
        sys.exit(exc.exit_code)


def _unmount(config: Config, *, force: bool) -> None:
    done = asyncio.run(unmount_all(config, force=force))
    _say([*done.lines, *take_features_back(config)])
    if done.left:
        raise PinnedError(
            f"unmount: left mounted for jobs: {', '.join(done.left)}",
            hint="run it again when these jobs have ended; --force takes their datasets from them",
        )


def _say(lines: Sequence[str]) -> None:
    try:
        for line in lines:
            print(line, flush=True)
    except OSError as exc:  # nobody reads on, or a full disk: what was asked for is done
        sys.stdout = None
        raise ScratchError(f"standard output: {word_os_error(exc)}") from exc


def _check_again(options: argparse.Namespace) -> None:
    """See whether a daemon could start with the configuration as it is now.

    Raises: ScratchError: it could not.
    """
    _prepare_directories(load_config(options.config, _given(options)))


def _begin_again() -> None:
    """Run this program anew in this process: systemd goes on watching it, and nobody else can be served in between."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # stays so through execve(2)
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is meant
    except OSError as exc:
        raise DaemonError(f"{sys.executable}: cannot be started again: {exc.strerror}") from exc


def _close_mount_points(config: Config) -> None:
    try:
        mounts.close_mount_points(config.mount_dir)
    except DeviceError as exc:
        log.info("mount points stay as they are problem=%r", exc.message)


def _prepare_hooks(options: argparse.Namespace) -> None:
    try:
        save_hook_config(options.config, _given(options))
    except (ConfigError, OSError) as exc:
        log.info("hooks parse the configuration themselves problem=%r", str(exc))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scratch-slurmd",
        description="The node daemon of scratch-slurm: mounts the source's images, and keeps the right ones cached.",
        epilog="A daemon that ends leaves all mounts serving; the next one takes them over.",
    )
    parser.add_argument("--config", metavar="PATH", help="configuration file instead of $SCRATCH_SLURM_CONFIG")
    parser.add_argument("--version", action="version", version=f"scratch-slurmd {__version__}")
    values = parser.add_argument_group("instead of the configuration's values")
    for option, (key, metavar, text) in _OPTIONS.items():
        values.add_argument(option, dest=key, metavar=metavar, help=text)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check-config", action="store_true", help="check the configuration, show it, and end")
    what.add_argument("--leaving", action="store_true", help="take node features down if the system is shutting down")
    what.add_argument("--unmount", action="store_true", help="take all mounts and node features down; the cache stays")
    parser.add_argument("--force", action="store_true", help="with --unmount: also what jobs pin")
    return parser


def _given(options: argparse.Namespace) -> dict[str, str]:
    """The configuration's keys that the command line gives."""
    given = {key: getattr(options, key) for key, _, _ in _OPTIONS.values() if getattr(options, key) is not None}
    # As scratch_manager was called: from wherever one stands.
    return {key: str(Path(value).absolute()) if key.endswith("_dir") else value for key, value in given.items()}


def _describe(config: Config) -> str:
    values = {field: getattr(config, field) for field in config.__struct_fields__ if field != "disks"}
    for disk in config.disks:
        values[f"disk {disk.dir}"] = f"capacity {disk.capacity}, reserve {disk.reserve}, mount {disk.mount or '-'}"
    width = max(len(name) for name in values)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())


def _prepare_directories(config: Config) -> Config:
    """Make the node's own directories, and resolve them as the kernel will name them."""
    try:
        make_run_dir(config)
        config.mount_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        refuse_shared(config.mount_dir)
    except OSError as exc:
        raise ConfigError(f"{exc.filename}: cannot make the directory: {exc.strerror}") from exc
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_shared(config.state_dir)
    except OSError as exc:  # its disk fails: without it the source is served all the same
        log.error("no state state_dir=%s problem=%r", config.state_dir, exc.strerror)
    disks = tuple(msgspec.structs.replace(each, dir=_resolve_within(each.dir, _RESOLVE_S)) for each in config.disks)
    refuse_twins(disks)
    return msgspec.structs.replace(config, mount_dir=config.mount_dir.resolve(), disks=disks)


def _resolve_within(path: Path, limit_s: float) -> Path:
    """Resolve a path whose disk may hang, in a process that may be lost; the path itself when there is no answer."""
    command = [sys.executable, "-I", "-S", "-c", "import os, sys; print(os.path.realpath(sys.argv[1]), end='')"]
    try:
        process = subprocess.Popen([*command, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        told, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        log.error("no answer path=%s after_s=%g", path, limit_s)
        return path
    except OSError as exc:
        raise DaemonError(f"{sys.executable}: cannot be started: {exc.strerror}") from exc
    return Path(os.fsdecode(told)) if process.returncode == 0 and told else path


@contextlib.contextmanager
def _only_daemon(config: Config) -> Iterator[None]:
    """Hold the locks that keep another daemon away. A cleaner may take the one in run_dir; the other one stays.

    Raises: DaemonError: there is another one.
    """
    with contextlib.ExitStack() as held:
        # A hook looks for a moment whether the lock is free.
        for path in (config.state_dir / config.lock_path.name, config.lock_path):
            try:
                held.enter_context(filelock.FileLock(path, timeout=1.0, mode=0o600))
            except filelock.Timeout as exc:
                raise DaemonError(f"{path}: a scratch-slurmd runs on this node already", hint="stop it first") from exc
            except OSError as exc:
                if path == config.lock_path:
                    raise DaemonError(f"{path}: cannot lock it: {word_os_error(exc, path)}") from exc
                log.error("no lock path=%s problem=%r", path, word_os_error(exc, path))
        yield


def _await_hooks(config: Config) -> None:
    """Wait for a prolog that mounts because no daemon was there; from now on none begins to."""
    try:
        with filelock.FileLock(config.mounting_lock_path, timeout=config.source_timeout_s, mode=0o600):
            pass
    except (filelock.Timeout, OSError) as exc:
        log.warning("a prolog is mounting still, or that cannot be told problem=%r", str(exc))


async def _serve(config: Config, check_again: Callable[[], None], prepare_hooks: Callable[[], None]) -> bool:
    """Serve until told to end.

    Args:
        check_again: raises ScratchError where a reload would fail.
        prepare_hooks: writes what hooks find in run_dir.
    Returns: whether to begin again, with the configuration as it is now.
    """
    inherited = children_of_this_process()
    watch_children()
    # For the threads, which keep it so: signals are the main thread's.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    asyncio.get_running_loop().set_default_executor(start_executor(_THREADS))
    log.info("starting version=%s node=%s source_dir=%s", __version__, config.node_name, config.source_dir)
    if not mountinfo.same_mount_namespace_as_init():
        log.warning("this daemon has a mount namespace of its own: jobs elsewhere on this node do not see its mounts")
    ledger = Ledger(config.ledger_path, boot_id=read_boot_id(), now=time.time, later=True)
    workers = Workers()
    source = Source(config.source_dir, workers, silence_s=config.source_timeout_s, owners=config.source_owners)
    supervisor = Supervisor()
    former = Former(config, workers)
    hands = WorkerHands(config, workers, former_caches=lambda: former.cache_dirs)
    loop = Loop(config, LedgerSide(ledger), hands, former, source, supervisor)
    slurm = SlurmSide(config, loop, ledger, supervisor)
    interface = Interface(loop, slurm, hands)
    ended = asyncio.Event()
    for number in _ENDING:
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    hangups: asyncio.Queue[None] = asyncio.Queue()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangups.put_nowait, None)
    end = asyncio.create_task(ended.wait())
    rounds = asyncio.create_task(loop.run())
    reload = asyncio.create_task(_await_reload(hangups, check_again))
    beside = [asyncio.create_task(supervisor.keep("the reaping of processes", partial(reap, inherited)))]
    every_s = watchdog_s(os.environ)
    if every_s is not None:
        beside.append(
            asyncio.create_task(
                supervisor.keep("the word to the watchdog", partial(keep_watchdog, every_s, loop.stalled))
            )
        )

    def restore() -> None:
        interface.start(config.socket_path, config.root_socket_path)
        prepare_hooks()

    beside.append(
        asyncio.create_task(
            supervisor.keep("the watch over run_dir", partial(keep_run_dir, config, interface.is_heard, restore))
        )
    )
    again = False
    try:
        interface.start(config.socket_path, config.root_socket_path)
        await _first(loop.after_next_round(), end, rounds)
        log.info("serving socket=%s capacity=%s", config.socket_path, _capacity(loop))
        slurm.start()
        await _first(until_ready(loop), end, rounds, reload)
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
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
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


def _capacity(loop: Loop) -> str:
    return format_bytes(loop.snapshot.seen.space.capacity_bytes) if loop.snapshot else "unknown"


if __name__ == "__main__":
    main()
