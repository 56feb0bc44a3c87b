"""The word that the prolog leaves for a job: <run_dir>/jobs/<job id>, which the SPANK plugin reads.

Lines `SCRATCH_...=value`, exported to the job, and `message=...`, shown in its log. Root alone may write there: a
directory of somebody else's is refused, and no symlink is followed below `run_dir`. Root alone reads it, too: it names
datasets that may be private.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from scratch_slurm.domain.errors import DeniedError
from scratch_slurm.domain.names import dataset_variables
from scratch_slurm.hooks.answer import Seen
from scratch_slurm.node.owner import others_may_write

# The plugin passes over lines of more than 8192 bytes; no message needs so much.
_MAX_MESSAGE = 500
_MAX_BYTES = 64 * 1024  # REPORT_SIZE_MAX in spank/report.h: a larger file is not read at all
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Report(NamedTuple):
    """What a job is told."""

    mount_dir: str
    names: tuple[str, ...] = ()
    statuses: tuple[Seen, ...] = ()
    messages: tuple[str, ...] = ()


def format_report(report: Report) -> str:
    """Write the lines of a report; messages become one printable line each.

    What does not fit into what the plugin reads is left out, the last lines first.
    """
    lines = [f"SCRATCH_DATASETS_DIR={report.mount_dir}"]
    if report.names:
        lines.append("SCRATCH_DATASETS=" + ",".join(report.names))
    if report.statuses:
        lines.append("SCRATCH_DATASETS_STATE=" + ",".join(f"{each.name}:{each.state}" for each in report.statuses))
    lines += [f"{variable}={report.mount_dir}/{name}" for variable, name in dataset_variables(report.names).items()]
    lines += [f"message={_printable(message)}" for message in report.messages if message]
    return _first_of([f"{line}\n" for line in lines])


def _first_of(lines: list[str]) -> str:
    sizes = accumulate(len(line.encode("utf-8", "backslashreplace")) for line in lines)
    return "".join(line for line, size in zip(lines, sizes, strict=True) if size <= _MAX_BYTES)


def write_report(jobs_dir: str, job_id: int, text: str) -> None:
    """Put a job's report in its place, at once and whole.

    Raises: DeniedError: others than root may write there. OSError: it cannot be written.
    """
    new_name = _new_name(job_id)
    with _open_directory(jobs_dir) as directory:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new_name, dir_fd=directory)  # of a hook that was killed
        with open(os.open(new_name, _NEW_FILE, 0o600, dir_fd=directory), "wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
        os.rename(new_name, str(job_id), src_dir_fd=directory, dst_dir_fd=directory)


def remove_report(jobs_dir: str, job_id: int) -> None:
    """Remove a job's report; one that is not there is no error.

    Raises: DeniedError: others than root may write there. OSError: it cannot be removed.
    """
    if not os.access(jobs_dir, os.F_OK):
        return
    with _open_directory(jobs_dir) as directory:
        for name in (str(job_id), _new_name(job_id)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)


def _new_name(job_id: int) -> str:
    return f".{job_id}.new"


@contextlib.contextmanager
def _open_directory(jobs_dir: str) -> Iterator[int]:
    """Open the jobs' directory; it and `run_dir` are made if missing."""
    with _open_owned(jobs_dir.rpartition("/")[0], None) as run_dir, _open_owned(jobs_dir, run_dir) as directory:
        yield directory


@contextlib.contextmanager
def _open_owned(path: str, parent: int | None) -> Iterator[int]:
    """Open a directory below the directory `parent`, None: by its whole path; refuse one that others may write."""
    name = path if parent is None else path.rpartition("/")[2]
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
        made = True
    except FileExistsError:
        made = False
    directory = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        if made:
            os.fchmod(directory, 0o755)  # whatever the umask
        status = os.fstat(directory)
        if others_may_write(status):
            raise DeniedError(
                f"{path}: belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}",
                hint="others could tell jobs what to believe there: chown root and chmod 0755",
            )
        yield directory
    finally:
        os.close(directory)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:_MAX_MESSAGE]
