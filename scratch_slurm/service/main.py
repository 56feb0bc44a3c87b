"""`scratch-slurmd`: the node daemon's command line, start and end."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from scratch_slurm.node.configfile import load_config
from scratch_slurm.node.hookconfig import save_hook_config
from scratch_slurm.node.kernel import mounts
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.service.logs import complain, set_up_logging
from scratch_slurm.service.notify import system_is_stopping
from scratch_slurm.service.run_dir import make_run_dir, refuse_shared
from scratch_slurm.service.serve import serve
from scratch_slurm.service.slurm_calls import take_features_back
from scratch_slurm.service.unmount import unmount_all

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
                again = asyncio.run(serve(config, lambda: _check_again(options), lambda: _prepare_hooks(options)))
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


if __name__ == "__main__":
    main()
