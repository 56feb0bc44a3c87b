"""Mount what a job asks for while the daemon is down: by the daemon's own worker, so with its checks and its tag.

The next daemon finds the mounts by their tags and takes them over. Must not copy, replace or unmount anything, nor
mount while a daemon is there. Killed at any point it leaves a mount or none: the worker dies with the hook.
"""

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from scratch_slurm.domain.backing import FromSource
from scratch_slurm.domain.errors import DaemonError, ScratchError, SourceError, error_by_name
from scratch_slurm.domain.model import SourceImage
from scratch_slurm.domain.names import IMAGE_SUFFIXES, device_tag
from scratch_slurm.node.hookconfig import HookConfig
from scratch_slurm.service import operations as op

_LOCK_PAUSE_S = 0.05
_READ_BYTES = 2**16


def mount_missing(config: HookConfig, datasets: Sequence[str], patience_s: float) -> dict[str, str]:
    """Mount datasets from the source.

    Args:
        datasets: checked names, on whose paths nothing is mounted.
        patience_s: for all of it.
    Returns: dataset -> why it was not mounted, for those that were not.
    """
    give_up_at = time.monotonic() + patience_s
    try:
        with _alone(config, give_up_at), _Worker(give_up_at) as worker:
            found = _find(worker, config, datasets)
            return {name: why for name in datasets if (why := _mount(worker, config, name, found.get(name)))}
    except (ScratchError, OSError) as exc:
        why = exc.message if isinstance(exc, ScratchError) else str(exc)
        return dict.fromkeys(datasets, why)


@contextlib.contextmanager
def _alone(config: HookConfig, give_up_at: float) -> Iterator[None]:
    """Keep other hooks, and a daemon that begins, from mounting meanwhile.

    A daemon takes its own lock first and then waits for this one: whatever finds the daemon's lock free while it holds
    this one is alone until it lets go.

    Raises: DaemonError: a daemon is there, or another hook takes too long.
    """
    with _opened(config.mounting_lock_path) as turn:
        while not _locks(turn, fcntl.LOCK_EX):
            if time.monotonic() >= give_up_at:
                raise DaemonError("another job's prolog is mounting for too long")
            time.sleep(_LOCK_PAUSE_S)
        with _opened(config.lock_path) as daemon:
            if not _locks(daemon, fcntl.LOCK_SH):
                raise DaemonError("a daemon that gives no answer sees to it")
        yield


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locks(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Worker:
    """The daemon's worker process, for this hook alone; what hangs in it is killed, and not waited for."""

    def __init__(self, give_up_at: float) -> None:
        self._give_up_at = give_up_at
        command = [sys.executable, "-I", "-m", "scratch_slurm.service.worker", str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._unread = b""

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def run(self, request: op.Request, on_line: Callable[[op.Line], None] = lambda line: None) -> None:
        """Do one request.

        Raises: ScratchError: what the worker answered. SourceError: it gave no answer in time, or died.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()
        while True:
            line = msgspec.json.decode(self._read_line(), type=op.AnyLine)
            if isinstance(line, op.Done):
                return
            if isinstance(line, op.Failed):
                raise error_by_name(line.error, line.message, line.hint)
            on_line(line)

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, self._give_up_at - time.monotonic()))
            if not ready:
                raise SourceError("the source gives no answer")
            piece = os.read(descriptor, _READ_BYTES)
            if not piece:
                raise SourceError("the worker process ended")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _find(worker: _Worker, config: HookConfig, datasets: Sequence[str]) -> dict[str, SourceImage | str]:
    """Look for the datasets' images; dataset -> its image, or why it is not served."""
    names = tuple(sorted(name + suffix for name in datasets for suffix in IMAGE_SUFFIXES))
    found: dict[str, SourceImage | str] = {}

    def on_line(line: op.Line) -> None:
        if not isinstance(line, op.Scanned):
            return
        # As in the catalog: the first file in order of names serves, and one that is skipped only if there is no other.
        if line.image and not isinstance(found.get(line.image.dataset), SourceImage):
            found[line.image.dataset] = line.image
        elif line.skipped:
            found.setdefault(line.file_name.rpartition(".")[0], f"skipped: {line.file_name} {line.skipped.reason}")

    worker.run(op.Scan(config.source_dir, names, (), {}, config.source_owners), on_line)
    return found


def _mount(worker: _Worker, config: HookConfig, dataset: str, image: SourceImage | str | None) -> str:
    """Mount one image. Returns: why it was not; empty when it was."""
    if not isinstance(image, SourceImage):
        return image or f"no such dataset in {config.source_dir}"
    mount_point = f"{os.path.realpath(config.mount_dir)}/{dataset}"
    tag = device_tag(image.generation.id)
    try:
        worker.run(op.MountImage(image, FromSource(image), mount_point, tag, False))
    except SourceError:
        raise
    except ScratchError as exc:
        return exc.message
    return ""
