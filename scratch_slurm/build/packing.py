"""Run a program that packs a directory into an image. Must not decide where an image goes or what is published."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scratch_slurm.build.directory import Directory
from scratch_slurm.build.rights import OWN, Rights, taken
from scratch_slurm.build.signals import undisturbed
from scratch_slurm.build.tree import Tree
from scratch_slurm.domain.access import is_public
from scratch_slurm.domain.errors import ConfigError, ImageError
from scratch_slurm.domain.limits import MIB, Resources
from scratch_slurm.domain.model import Permissions
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.domain.words import clean

POLL_S = 0.25
_KILL_S = 10.0
_STDERR_LIMIT_BYTES = 4096
_SCARCE_BYTES = 64 * MIB

Watch = Callable[[int, int | None], None]
"""Called now and then with what is done and what there is in all, in one unit; None while that is unknown."""

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Wanted:
    """What an image is to be.

    Args:
        found: what is in the directory.
        readers: of the image's file; unless everybody may read it, the image's root directory is given the same ones.
        source_date_epoch: the variable of that name, which fixes the newest time in the image; None: it is not set.
    """

    compression: str
    found: Tree
    readers: Permissions
    resources: Resources
    rights: Rights = OWN
    source_date_epoch: str | None = None


def choose_root(readers: Permissions) -> Permissions:
    """Choose owner, group and mode of an image's root directory, so that it lets in the readers of the image's file."""
    if is_public(readers):
        return Permissions(0, 0, 0o755)
    return Permissions(readers.uid, readers.gid, readers.mode | (readers.mode & 0o444) >> 2)  # who may read may enter


def dotted(version: tuple[int, ...]) -> str:
    """Write a version."""
    return ".".join(map(str, version))


@dataclass(frozen=True)
class Packing:
    """One run of such a program.

    Args:
        command: its path, and its arguments; the directory is `.`.
        image_fd: the file that it writes, over what the file held. It opens it again, so these rights must do for that.
        rights: with which it reads the directory and opens the file.
        environment: None: this process's.
    """

    command: tuple[str, ...]
    directory: Directory
    image_fd: int
    resources: Resources
    rights: Rights = OWN
    environment: dict[str, str] | None = None

    @staticmethod
    def image(image_fd: int) -> str:
        """Name the file for the command: by descriptor, as its name may lead elsewhere by now."""
        return f"/proc/self/fd/{image_fd}"

    def run(self, output: int, follow: Callable[[Process], str]) -> None:
        """Pack the directory's contents.

        Args:
            output: where its standard output goes.
            follow: called once when it runs, and returns when it has ended or there is nothing to follow: the last
                that it said there.
        Raises: ImageError: it failed; with what it said. ConfigError: it cannot be started.
        """
        with tempfile.TemporaryFile() as errors:
            process = None
            try:
                with undisturbed():  # nobody else would end it
                    process = self._start(output, errors.fileno())
                said = follow(process)
                code = process.wait()
            except BaseException:
                if process is not None:
                    process.kill()
                    # Writes to dead storage cannot be killed: then it is left to itself.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_KILL_S)
                raise
            if code != 0:
                words = "; ".join(filter(None, (said, _read_tail(errors.fileno()))))
                raise ImageError(
                    f"{self.directory.path}: {Path(self.command[0]).name} {_ending(code)}{': ' * bool(words)}{words}",
                    hint=choose_hint(code, self.resources),
                )

    def _start(self, output: int, errors: int) -> Process:
        try:
            with taken(self.rights):
                return subprocess.Popen(
                    self.command,
                    cwd=self.directory.base,
                    pass_fds=(self.image_fd,),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    env=self.environment,
                )
        except OSError as exc:
            raise ConfigError(
                f"{self.command[0]}: cannot start it: {exc.strerror}",
                hint="its file, and the directories above it, must be open to all" if self.rights is not OWN else None,
            ) from exc


def choose_hint(code: int, resources: Resources) -> str | None:
    """Choose what to say to somebody whose packing has ended badly. Pure.

    Args:
        code: as subprocess has it; negative: the signal.
    """
    had = f"it was to use {format_bytes(resources.memory_bytes)}, bounded by {resources.by}"
    if code == -signal.SIGKILL:
        return f"the kernel kills so when memory is short: {had}; build where there is more, or free some"
    if code < 0 or resources.memory_bytes < _SCARCE_BYTES:
        return f"memory may have been short: {had}; build where there is more, or free some"
    return None


def ask_version(program: str, option: str) -> str:
    """Have a program say its version; returns all that it says.

    Raises: ConfigError: it cannot be started.
    """
    try:
        told = subprocess.run([program, option], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as exc:
        raise ConfigError(f"{program}: cannot start it: {exc.strerror}") from exc
    return (told.stdout + told.stderr).decode(errors="replace")


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _read_tail(errors: int) -> str:
    size_bytes = os.fstat(errors).st_size
    tail = os.pread(errors, _STDERR_LIMIT_BYTES, max(0, size_bytes - _STDERR_LIMIT_BYTES))
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    return clean("; ".join(lines[-4:]))
