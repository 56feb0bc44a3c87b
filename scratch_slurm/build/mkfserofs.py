"""Pack a directory with mkfs.erofs(1)."""

import os
import re
import select
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from scratch_slurm.build.directory import Directory
from scratch_slurm.build.erofsimage import Contents, settle
from scratch_slurm.build.packing import POLL_S, Packing, Process, Wanted, Watch, ask_version, choose_root, dotted
from scratch_slurm.build.rights import OWN, Rights, taken
from scratch_slurm.build.tree import Tree
from scratch_slurm.domain.errors import ConfigError, DeniedError, ImageError, UsageError
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.domain.words import clean, plural

SUFFIX = ".erofs"

COMPRESSIONS = {"none": (), "lz4": ("-zlz4",), "lz4hc": ("-zlz4hc",)}
"""Choice -> options. Kernels from 5.4 on read these: later ones than LZ4, and larger clusters, need later kernels."""

_LEAST_VERSION = (1, 4)
_FAULTS = {
    (1, 7, 0): "mixes up directories with hard links",
    (1, 8, 0): "cuts files of more than 4 GiB short",
}
"""Source: erofs-utils, commits 8cbc205 and b9b6493: the next patch release is without."""

_LOST_FOUND_VERSION = _SHORT_PATHS_VERSION = (1, 6)
_NAMES_VERSION = (1, 8, 5)
_NAME_LIMIT_BYTES = 254

_PATH_BYTES = 5120
"""What 1.5 and older keep in memory for each path, to the end; seen: 4.9 kB."""
_SHORT_PATH_BYTES = 1024

_VERSION = re.compile(r"mkfs\.erofs[^0-9\n]*(\d+(?:\.\d+)+)")
_READ = re.compile(rb"^rchar: (\d+)$", re.MULTILINE)
_STEERING = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
_SAID_LIMIT_BYTES = 4096


def find_mkfs_erofs() -> "MkfsErofs":
    """Find mkfs.erofs.

    Raises: ConfigError: it is not installed, cannot be started, or is a version that loses data.
    """
    program = shutil.which("mkfs.erofs")
    if program is None:
        raise ConfigError(
            "mkfs.erofs: not found in PATH",
            hint="install erofs-utils, 1.4 or later (Debian, Ubuntu, RHEL, Fedora, SUSE), or use --format squashfs",
        )
    found = _VERSION.search(ask_version(program, "-V"))
    version = _parse_version(found[1]) if found else (0, 0, 0)
    fault = _FAULTS.get(version)
    if fault or version < _LEAST_VERSION:
        need = f"{version[0]}.{version[1]}.1" if fault else dotted(_LEAST_VERSION)
        raise ConfigError(
            f"{program}: version {dotted(version) if found else 'unknown'} {fault or 'is too old'}",
            hint=f"install erofs-utils {need} or later, or use --format squashfs",
        )
    return MkfsErofs(program, version)


def _parse_version(text: str) -> tuple[int, int, int]:
    major, minor, patch, *_ = (*map(int, text.split(".")), 0, 0)
    return major, minor, patch


@dataclass(frozen=True)
class MkfsErofs:
    """mkfs.erofs as it is installed here."""

    program: str
    version: tuple[int, int, int]
    suffix = SUFFIX
    compressions = tuple(COMPRESSIONS)
    preferred = "lz4hc"

    def unfit(self, path: str) -> bool:
        """Tell whether this version would leave a path out.

        Source: erofs-utils, commits b1dfb6e (`lost+found...` was left out) and a8a1034 (names were cut to 254 bytes).
        """
        name = path.rpartition("/")[2]
        return (self.version < _LOST_FOUND_VERSION and name.startswith("lost+found")) or (
            self.version < _NAMES_VERSION and len(os.fsencode(name)) > _NAME_LIMIT_BYTES
        )

    def check(self, directory: Directory, wanted: Wanted) -> None:
        """See `formats.Packer`."""
        unfit = wanted.found.unfit
        if unfit.count:
            raise ImageError(
                f"{directory.path}: {plural(unfit.count, 'path')} below it that mkfs.erofs {dotted(self.version)}"
                f" leaves out: {unfit}",
                hint="lost+found and names of 255 bytes need erofs-utils 1.8.5 or later, or --format squashfs",
            )
        self._check_memory(directory, wanted)
        check_way(directory, wanted.rights)

    def _check_memory(self, directory: Directory, wanted: Wanted) -> None:
        """Refuse a tree that the kernel would kill mkfs.erofs for: it cannot be told how much it may use."""
        path_bytes = _PATH_BYTES if self.version < _SHORT_PATHS_VERSION else _SHORT_PATH_BYTES
        need_bytes = wanted.found.entries * path_bytes
        have_bytes = 2 * wanted.resources.memory_bytes  # which leaves as much to other uses
        if need_bytes > have_bytes:
            raise ImageError(
                f"{directory.path}: mkfs.erofs {dotted(self.version)} needs {format_bytes(need_bytes)} of memory for"
                f" {plural(wanted.found.entries, 'path')}, and has {format_bytes(have_bytes)},"
                f" bounded by {wanted.resources.by}",
                hint="build where there is more, or use --format squashfs",
            )

    def pack(self, directory: Directory, image_fd: int, wanted: Wanted, watch: Watch | None) -> None:
        """See `formats.Packer`."""
        latest_at = parse_epoch(wanted.source_date_epoch)
        command = (
            self.program,
            *COMPRESSIONS[wanted.compression],
            *("--all-root", "-x", "-1", "-E", "force-inode-extended"),
            Packing.image(image_fd),
            ".",
        )
        # With SOURCE_DATE_EPOCH mkfs.erofs takes times before 1970 for later ones.
        environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
        packing = Packing(command, directory, image_fd, wanted.resources, wanted.rights, environment)
        total = wanted.found.content_bytes
        with _Output() as output:
            packing.run(output.to_fd, lambda process: output.follow(process, total, watch))
        made = settle(image_fd, choose_root(wanted.readers), newest_at=wanted.found.newest_at, latest_at=latest_at)
        check_contents(directory, wanted.found, made)

    def tell_times(self, wanted: Wanted) -> str | None:
        """Keeps all times."""
        return None


class _Output:
    """What mkfs.erofs says on its way: the end of it, as that tells where it failed."""

    def __enter__(self) -> Self:
        self._from_fd, self.to_fd = os.pipe2(os.O_CLOEXEC)
        self._tail = b""
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._from_fd, self.to_fd):
            if fd != -1:
                os.close(fd)

    def follow(self, process: Process, total: int, watch: Watch | None) -> str:
        """Read until the process has ended; returns the last that it said."""
        os.close(self.to_fd)
        self.to_fd = -1  # the process's own is the last one
        watched_at = 0.0
        while True:
            ready, _, _ = select.select([self._from_fd], [], [], POLL_S)
            if watch is not None and time.monotonic() - watched_at >= POLL_S:
                watch(*_read_progress(process.pid, total))
                watched_at = time.monotonic()
            if not ready:
                continue
            piece = os.read(self._from_fd, 65536)
            if not piece:
                break
            self._tail = (self._tail + piece)[-_SAID_LIMIT_BYTES:]
        words = _STEERING.sub(b"", self._tail).decode(errors="replace").replace("\r", "\n").split("\n")
        return clean(next((word for word in reversed(words) if word.strip()), ""))


def _read_progress(pid: int, total: int) -> tuple[int, int | None]:
    """Tell how many of the bytes to be packed a process has read. Source: proc(5), /proc/PID/io."""
    try:
        read = _READ.search(Path(f"/proc/{pid}/io").read_bytes())
    except OSError:  # it has just ended, or the kernel was built without
        read = None
    return (min(int(read[1]), total), total) if read else (0, None)


def parse_epoch(text: str | None) -> int | None:
    """Parse SOURCE_DATE_EPOCH: seconds since 1970, the newest time that an image may hold.

    Raises: UsageError: it is none.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:20]) < 2**63):
        raise UsageError(f"SOURCE_DATE_EPOCH {text[:40]!r}: is no number of seconds since 1970")
    return int(text[:20])


def check_contents(directory: Directory, found: Tree, made: Contents) -> None:
    """Compare an image with what the directory held before: what has come since does no harm.

    Raises: ImageError: something is missing.
    """
    pairs = (
        ("paths", made.entries, found.entries),
        ("files", made.files, found.files),
        ("bytes in files", made.content_bytes, found.content_bytes),
    )
    missing = [f"{has:,} {what} of {had:,}" for what, has, had in pairs if has < had]
    if missing:
        raise ImageError(
            f"{directory.path}: mkfs.erofs packed only {', '.join(missing)}",
            hint="if nobody changed the directory meanwhile, use another version of erofs-utils, or --format squashfs",
        )


def check_way(directory: Directory, rights: Rights) -> None:
    """See that a directory's name leads root to it as long as it is packed: mkfs.erofs goes by names.

    Raises: DeniedError: others may put another directory in its place, or these rights do not suffice to get there.
    """
    if os.geteuid() != 0:
        return  # whatever is put there, it is read with the caller's own rights
    trusted = {0} if rights is OWN else {0, rights.uid}
    above = Path("/")
    try:
        with taken(rights):
            same = os.path.samestat(directory.path.stat(), os.fstat(directory.fd))
        for name in directory.path.parts[1:]:
            loose, step = above.lstat(), above / name
            others = loose.st_mode & 0o022 and not (loose.st_mode & stat.S_ISVTX and step.lstat().st_uid in trusted)
            if loose.st_uid not in trusted or others:
                raise DeniedError(
                    f"{directory.path}: others may put another directory in its place, in {above}",
                    hint="mkfs.erofs reads by name: have its owner build, move it, or use --format squashfs",
                )
            above = step
    except OSError as exc:
        raise DeniedError(
            f"{directory.path}: {rights.name} cannot get there by name: {exc.strerror}",
            hint="open the directories above it, or use --format squashfs",
        ) from exc
    if not same:
        raise DeniedError(f"{directory.path}: somebody has just put another directory in its place")
