"""Run mksquashfs(1). Must not decide where an image goes or what is published."""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scratch_slurm.build.directory import Directory
from scratch_slurm.build.rights import OWN, Rights, taken
from scratch_slurm.build.signals import undisturbed
from scratch_slurm.build.tree import LATEST_TIME
from scratch_slurm.domain.access import is_public
from scratch_slurm.domain.errors import ConfigError, ImageError
from scratch_slurm.domain.limits import MIB, Resources
from scratch_slurm.domain.model import Permissions
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.domain.words import clean

COMPRESSIONS = {
    "zstd": ("-comp", "zstd"),
    "lz4": ("-comp", "lz4", "-Xhc"),
    "gzip": ("-comp", "gzip"),
    "xz": ("-comp", "xz"),
    # The superblock names a compressor all the same: gzip, which every kernel with squashfs has.
    "none": ("-comp", "gzip", "-noI", "-noD", "-noF", "-noX"),
}
"""Choice -> options."""

MODES_VERSION = (4, 5)
"""From here on mksquashfs can change the modes of all files."""
_TIMES_VERSION = (4, 4)

_POLL_S = 0.25
_KILL_S = 10.0
_VERSION = re.compile(r"version (\d+)\.(\d+)")
_PROGRESS = re.compile(rb"\]\s+(\d+)/(\d+)\s+\d+%")
_STDERR_LIMIT_BYTES = 4096
_SCARCE_BYTES = 64 * MIB

Watch = Callable[[int, int | None], None]
"""Called now and then with blocks done and blocks in all, None while that is unknown."""


def find_program() -> tuple[str, tuple[int, int]]:
    """Find mksquashfs.

    Returns: its path, and its version's first two numbers; (0, 0) for a version that it does not tell.
    Raises: ConfigError: it is not installed, or cannot be started.
    """
    program = shutil.which("mksquashfs")
    if program is None:
        raise ConfigError(
            "mksquashfs: not found in PATH",
            hint="install squashfs-tools (Debian, Ubuntu, RHEL, Fedora) or squashfs (SUSE)",
        )
    command = [program, "-version"]
    try:
        told = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as exc:
        raise ConfigError(f"{program}: cannot start it: {exc.strerror}") from exc
    version = _VERSION.search(told.stdout)
    return program, (int(version[1]), int(version[2])) if version else (0, 0)


def choose_options(
    version: tuple[int, int],
    compression: str,
    *,
    newest_at: float,
    fixed_times: bool,
    readers: Permissions = Permissions(),  # noqa: B008 - a frozen value
) -> tuple[str, ...]:
    """Choose mksquashfs's options. Pure.

    Blocks of 128 KiB and no fragments: a random read of a small file then reads one block from the device and nothing
    of its neighbours; fragments and larger blocks read 1.7 to 7.5 times as much. All files belong to root and everybody
    may read them who gets past the root directory: it lets in who may read the image.

    Args:
        version: of mksquashfs; before 4.5 it cannot change modes, before 4.4 it sets no times.
        newest_at: the newest modification time in the tree, epoch seconds: the file system's own time, so that equal
            trees give equal images.
        fixed_times: SOURCE_DATE_EPOCH is in the environment, and mksquashfs refuses a time besides.
        readers: of the image's file; unless everybody may read it, the root directory is given the same ones.
    """
    options = ["-noappend", "-no-recovery", "-exit-on-error"]
    options += [*COMPRESSIONS[compression], "-b", "131072", "-no-fragments", "-no-xattrs"]
    private = not is_public(readers)
    if private:
        # With -all-root, or an action that takes the root directory in, its own owner would be lost.
        mode = readers.mode | (readers.mode & 0o444) >> 2  # who may read may enter
        options += ["-root-mode", f"{mode:04o}", "-root-uid", str(readers.uid), "-root-gid", str(readers.gid)]
        options += ["-action", "guid(0,0)@!depth(0)"]
    else:
        options += ["-all-root", *(["-root-mode", "0755"] if version >= _TIMES_VERSION else [])]
    if version >= _TIMES_VERSION and not fixed_times:
        options += ["-mkfs-time", str(max(0, min(int(newest_at), LATEST_TIME)))]
    if version >= MODES_VERSION:
        options += ["-action", f"chmod(a+rX,u-s,g-s,o-t)@{'!depth(0)' if private else 'true'}"]
    return tuple(options)


@dataclass(frozen=True)
class Packing:
    """One run of mksquashfs.

    Args:
        program: its path.
        image_fd: the file that it writes, over what the file held. It opens it again, so these rights must do for that.
        rights: with which it reads the directory and opens the file.
    """

    program: str
    directory: Directory
    image_fd: int
    options: tuple[str, ...]
    resources: Resources
    rights: Rights = OWN

    def run(self, watch: Watch | None) -> None:
        """Pack the directory's contents.

        Args:
            watch: called about four times a second; None: nobody looks.
        Raises: ImageError: mksquashfs failed; with what it said. ConfigError: it cannot be started.
        """
        with tempfile.TemporaryFile() as errors, _progress_terminal(watch) as (output, master):
            process = None
            try:
                with undisturbed():  # nobody else would end it
                    process = self._start("-progress" if watch else "-no-progress", output, errors.fileno())
                if watch is not None:
                    _follow(process, master, watch)
                code = process.wait()
            except BaseException:
                if process is not None:
                    process.kill()
                    # Writes to dead storage cannot be killed: then it is left to itself.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_KILL_S)
                raise
            if code != 0:
                raise ImageError(
                    f"{self.directory.path}: mksquashfs {_ending(code)}{_read_tail(errors.fileno())}",
                    hint=choose_hint(code, self.resources),
                )

    def _start(self, progress: str, output: int, errors: int) -> subprocess.Popen[bytes]:
        use = ["-mem", f"{self.resources.memory_bytes // MIB}M", "-processors", str(self.resources.processors)]
        # Directory and file by descriptor: their names may lead elsewhere by now.
        image = f"/proc/self/fd/{self.image_fd}"
        try:
            with taken(self.rights):
                return subprocess.Popen(
                    [self.program, ".", image, *self.options, *use, progress],
                    cwd=self.directory.base,
                    pass_fds=(self.image_fd,),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                )
        except OSError as exc:
            raise ConfigError(
                f"{self.program}: cannot start it: {exc.strerror}",
                hint="its file, and the directories above it, must be open to all" if self.rights is not OWN else None,
            ) from exc


def choose_hint(code: int, resources: Resources) -> str | None:
    """Choose what to say to somebody whose mksquashfs has ended badly. Pure.

    Args:
        code: as subprocess has it; negative: the signal.
    """
    had = f"it was to use {format_bytes(resources.memory_bytes)}, bounded by {resources.by}"
    if code == -signal.SIGKILL:
        return f"the kernel kills so when memory is short: {had}; build where there is more, or free some"
    if code < 0 or resources.memory_bytes < _SCARCE_BYTES:
        return f"memory may have been short: {had}; build where there is more, or free some"
    return None


def parse_progress(text: bytes) -> tuple[int, int] | None:
    """Parse the last `[=====  ] 3800/7775  48%` of mksquashfs's output; None if there is none.

    Returns: blocks done, blocks in all.
    """
    found = _PROGRESS.findall(text)
    return (int(found[-1][0]), int(found[-1][1])) if found else None


@contextlib.contextmanager
def _progress_terminal(watch: Watch | None) -> Iterator[tuple[int, int]]:
    """Give mksquashfs a terminal to draw its bar on: into a pipe it tells its progress too seldom."""
    if watch is None:
        yield subprocess.DEVNULL, -1
        return
    master, terminal = os.openpty()
    try:
        termios.tcsetwinsize(terminal, (25, 80))
        os.set_blocking(master, False)
        yield terminal, master
    finally:
        os.close(master)
        os.close(terminal)


def _follow(process: subprocess.Popen[bytes], master: int, watch: Watch) -> None:
    done, total = 0, None
    while process.poll() is None:
        select.select([master], [], [], _POLL_S)
        with contextlib.suppress(BlockingIOError):
            done, total = parse_progress(os.read(master, 65536)) or (done, total)
        watch(done, total)


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _read_tail(errors: int) -> str:
    size_bytes = os.fstat(errors).st_size
    tail = os.pread(errors, _STDERR_LIMIT_BYTES, max(0, size_bytes - _STDERR_LIMIT_BYTES))
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    return ": " + clean("; ".join(lines[-4:])) if lines else ""
