"""Pack a directory with mksquashfs(1)."""

import contextlib
import os
import re
import select
import shutil
import subprocess
import termios
from collections.abc import Iterator
from dataclasses import dataclass

from scratch_slurm.build.directory import Directory
from scratch_slurm.build.packing import (
    POLL_S,
    Packing,
    Process,
    Wanted,
    Watch,
    ask_version,
    choose_root,
    dotted,
)
from scratch_slurm.build.tree import LATEST_TIME, tell_times
from scratch_slurm.domain.access import is_public
from scratch_slurm.domain.errors import ConfigError, ImageError
from scratch_slurm.domain.limits import MIB
from scratch_slurm.domain.model import Permissions

SUFFIX = ".squashfs"

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

_VERSION = re.compile(r"version (\d+)\.(\d+)")
_PROGRESS = re.compile(rb"\]\s+(\d+)/(\d+)\s+\d+%")


def find_mksquashfs() -> "Mksquashfs":
    """Find mksquashfs; its version is (0, 0) when it does not tell it.

    Raises: ConfigError: it is not installed, or cannot be started.
    """
    program = shutil.which("mksquashfs")
    if program is None:
        raise ConfigError(
            "mksquashfs: not found in PATH",
            hint="install squashfs-tools (Debian, Ubuntu, RHEL, Fedora) or squashfs (SUSE)",
        )
    version = _VERSION.search(ask_version(program, "-version"))
    return Mksquashfs(program, (int(version[1]), int(version[2])) if version else (0, 0))


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
        root = choose_root(readers)
        options += ["-root-mode", f"{root.mode:04o}", "-root-uid", str(root.uid), "-root-gid", str(root.gid)]
        options += ["-action", "guid(0,0)@!depth(0)"]
    else:
        options += ["-all-root", *(["-root-mode", "0755"] if version >= _TIMES_VERSION else [])]
    if version >= _TIMES_VERSION and not fixed_times:
        options += ["-mkfs-time", str(max(0, min(int(newest_at), LATEST_TIME)))]
    if version >= MODES_VERSION:
        options += ["-action", f"chmod(a+rX,u-s,g-s,o-t)@{'!depth(0)' if private else 'true'}"]
    return tuple(options)


@dataclass(frozen=True)
class Mksquashfs:
    """mksquashfs as it is installed here."""

    program: str
    version: tuple[int, int]
    suffix = SUFFIX
    compressions = tuple(COMPRESSIONS)
    preferred = "zstd"

    def unfit(self, path: str) -> bool:
        """Packs all that a directory can hold."""
        return False

    def check(self, directory: Directory, wanted: Wanted) -> None:
        """Refuse what this version cannot make.

        Raises: ImageError: it cannot change modes, and some would have to be.
        """
        if self.version >= MODES_VERSION:
            return
        closed = wanted.found.closed
        if closed.count:
            raise ImageError(
                f"{directory.path}: not everybody may read {closed}",
                hint=f"chmod -R a+rX it; or use mksquashfs 4.5, which does so in the image"
                f" (found {dotted(self.version)})",
            )
        if not is_public(wanted.readers):
            raise ImageError(
                f"{directory.path}: mksquashfs {dotted(self.version)} cannot make an image that not all may read",
                hint="use mksquashfs 4.5 or later, or --mode 0644",
            )

    def pack(self, directory: Directory, image_fd: int, wanted: Wanted, watch: Watch | None) -> None:
        """See `formats.Packer`."""
        options = choose_options(
            self.version,
            wanted.compression,
            newest_at=wanted.found.newest_at,
            fixed_times=wanted.source_date_epoch is not None,
            readers=wanted.readers,
        )
        use = (
            "-mem",
            f"{wanted.resources.memory_bytes // MIB}M",
            "-processors",
            str(wanted.resources.processors),
            "-progress" if watch else "-no-progress",
        )
        command = (self.program, ".", Packing.image(image_fd), *options, *use)
        with _progress_terminal(watch) as (output, master):
            packing = Packing(command, directory, image_fd, wanted.resources, wanted.rights)
            packing.run(output, lambda process: _follow(process, master, watch))

    def tell_times(self, wanted: Wanted) -> str | None:
        """Say which times squashfs cannot keep."""
        found = wanted.found
        return tell_times(found, wanted.source_date_epoch) if found.strange_times.count else None


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


def _follow(process: Process, master: int, watch: Watch | None) -> str:
    done, total = 0, None
    while watch is not None and process.poll() is None:
        select.select([master], [], [], POLL_S)
        with contextlib.suppress(BlockingIOError):
            done, total = parse_progress(os.read(master, 65536)) or (done, total)
        watch(done, total)
    return ""
