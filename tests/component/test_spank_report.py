import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.hooks.report import write_report
from tests.kit.spank_library import REPORT_SIZE_MAX, Reports, build

pytestmark = pytest.mark.root  # the plugin believes root's files only

JOB = 42
TEXT = b"SCRATCH_DATASETS=a\nmessage=hello\n"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return Reports(build(tmp_path_factory.mktemp("spank")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir(mode=0o755)
    return tmp_path / "jobs" / str(JOB)


def test_reads_what_the_prolog_wrote(reports: Reports, tmp_path: Path) -> None:
    write_report(str(tmp_path / "jobs"), JOB, TEXT.decode())
    assert reports.read(tmp_path, JOB) == (TEXT, True)


def test_messages_are_for_the_first_step_only(reports: Reports, tmp_path: Path, path: Path) -> None:
    path.write_bytes(TEXT)
    assert [reports.read(tmp_path, JOB)[1] for _ in range(3)] == [True, False, False]


def test_messages_are_new_when_a_requeued_job_starts_again(reports: Reports, tmp_path: Path) -> None:
    for _ in range(2):
        write_report(str(tmp_path / "jobs"), JOB, TEXT.decode())
        assert reports.read(tmp_path, JOB) == (TEXT, True)
        assert reports.read(tmp_path, JOB) == (TEXT, False)


def test_the_largest_report(reports: Reports, tmp_path: Path, path: Path) -> None:
    path.write_bytes(b"x" * REPORT_SIZE_MAX)
    assert reports.read(tmp_path, JOB) == (b"x" * REPORT_SIZE_MAX, True)


def symlink(path) -> None:
    (path.parent / "target").write_bytes(TEXT)
    path.symlink_to("target")


def of_a_user(path) -> None:
    path.write_bytes(TEXT)
    os.chown(path, 65534, 65534)


def writable_by_all(path) -> None:
    path.write_bytes(TEXT)
    path.chmod(0o666)


BAD = [
    pytest.param(lambda path: None, errno.ENOENT, id="no-word"),
    pytest.param(symlink, errno.ELOOP, id="symlink"),
    pytest.param(of_a_user, errno.EPERM, id="of-a-user"),
    pytest.param(writable_by_all, errno.EPERM, id="writable-by-all"),
    pytest.param(os.mkfifo, errno.EPERM, id="fifo-does-not-block"),
    pytest.param(lambda path: path.mkdir(), errno.EPERM, id="directory"),
    pytest.param(lambda path: path.write_bytes(b"x" * (REPORT_SIZE_MAX + 1)), errno.EFBIG, id="too-large"),
]


@pytest.mark.parametrize(("make", "number"), BAD)
def test_refuses(reports: Reports, tmp_path: Path, path: Path, make: Callable[..., Any], number: int) -> None:
    make(path)
    with pytest.raises(OSError) as refusal:
        reports.read(tmp_path, JOB)
    assert refusal.value.errno == number
