"""`scratch-slurm build` where memory or processors are limited, and with times that squashfs cannot keep."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratch_slurm.build import packing
from scratch_slurm.cli.main import run
from scratch_slurm.domain.limits import MIB, Resources
from scratch_slurm.node.kernel.cgroups import read_limits, read_total_bytes
from tests.kit.formats import KINDS, SQUASHFS, Kind

pytestmark = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="needs squashfs-tools")

REPOSITORY = Path(__file__).parents[2]
MEMORY = Path("/sys/fs/cgroup/memory")
GROUP_BYTES = 160 * MIB


@pytest.fixture
def where(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    (path / "f").write_bytes(b"x" * 1000)
    return path


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A memory cgroup of GROUP_BYTES, where this machine lets root make one."""
    path = MEMORY / f"scratch-slurm-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as exc:
        pytest.skip(f"no memory cgroup (v1) can be made: {exc}")
    try:
        (path / "memory.limit_in_bytes").write_text(str(GROUP_BYTES))
        yield path
    finally:
        deadline = time.monotonic() + 20
        while path.exists() and time.monotonic() < deadline:  # busy until the last process is reaped
            try:
                path.rmdir()
            except OSError:
                time.sleep(0.05)


def command(*arguments: object) -> list[str]:
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from scratch_slurm.cli.main import main; main()"
    return [sys.executable, "-c", code, "build", *map(str, arguments)]


def tell_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a mksquashfs that tells its arguments, and fails."""
    fake = SQUASHFS.fake(tmp_path / "bin", 'echo "$@" >&2; exit 3')
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_a_group_with_little_memory_does_not_kill_a_build(
    tmp_path: Path, where: Path, memory_group: Path, kind: Kind
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(4):
        (tree / f"f{number}").write_bytes(os.urandom(60 * MIB))
    join = f'echo $$ >{memory_group}/cgroup.procs; exec "$@"'
    built = subprocess.run(
        ["sh", "-c", join, "sh", *command(tree, "big", "--to", where, "--compression", "lz4", "--format", kind.name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert kind.image(where, "big").stat().st_size > 240 * MIB


@pytest.mark.root
def test_the_limits_of_a_group_are_read(memory_group: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r});"
        "from scratch_slurm.node.kernel.cgroups import read_limits;"
        "limits = read_limits(); print(limits.memory.amount, limits.memory.by)"
    )
    join = f'echo $$ >{memory_group}/cgroup.procs; exec "$@"'
    told = subprocess.run(
        ["sh", "-c", join, "sh", sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    amount, by = told.stdout.split()
    assert 0 < int(amount) <= GROUP_BYTES
    assert by == str(memory_group / "memory.limit_in_bytes")


def test_what_is_read_here_is_plausible() -> None:
    limits = read_limits()
    assert limits.memory is not None
    assert 0 < limits.memory.amount <= read_total_bytes()
    assert 1 <= limits.processors <= len(os.sched_getaffinity(0))


def test_mksquashfs_is_told_the_processors_that_it_may_use(
    tmp_path: Path, tree: Path, where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell_arguments(tmp_path, monkeypatch)
    first = str(min(os.sched_getaffinity(0)))
    told = subprocess.run(
        ["taskset", "-c", first, *command(tree, "coco", "--to", where)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 8
    assert "-processors 1 " in told.stderr


def test_mksquashfs_is_told_less_than_the_address_space_that_it_has(
    tmp_path: Path, tree: Path, where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell_arguments(tmp_path, monkeypatch)
    limited = ["sh", "-c", 'ulimit -v 900000; exec "$@"', "sh"]
    told = subprocess.run(
        [*limited, *command(tree, "coco", "--to", where)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 8
    mib = int(told.stderr.partition("-mem ")[2].partition("M ")[0])
    assert 16 <= mib < 900_000 // 1024 // 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_by_the_kernel_comes_with_a_way_out(
    tmp_path: Path,
    tree: Path,
    where: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: Kind,
) -> None:
    fake = kind.fake(tmp_path / "bin", "kill -9 $$")
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    assert kind.build(tree, "coco", "--to", where) == 8
    told = capsys.readouterr().err
    assert f"{kind.program} was ended by signal 9" in told
    assert "hint: the kernel kills so when memory is short" in told


HINTS = [(-9, 512, "kills"), (-6, 512, "may have been short"), (1, 16, "may have been short"), (1, 512, None)]


@pytest.mark.parametrize(("code", "mib", "expected"), HINTS)
def test_choose_hint(code: int, mib: int, expected: str | None) -> None:
    hint = packing.choose_hint(code, Resources(mib * MIB, 1, "a group"))
    assert hint is None if expected is None else hint and expected in hint and "bounded by a group" in hint


def test_mksquashfs_that_cannot_be_started_is_no_bug(
    tmp_path: Path, tree: Path, where: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_arguments(tmp_path, monkeypatch)
    (tmp_path / "bin" / "mksquashfs").write_text("#!/nowhere/sh\n")
    assert run(["build", str(tree), "coco", "--to", str(where)]) == 3
    assert "cannot start it" in capsys.readouterr().err
    assert list(where.iterdir()) == []


# ---- times


def test_times_that_squashfs_cannot_keep_are_told_with_what_they_become(
    tree: Path, where: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    make_old_and_new(tree)
    assert build_and_list(tree, where, "coco") == {"new": "1970-01-02", "old": "2101-02-07"}
    told = capsys.readouterr().err
    assert "warning: 2 paths with a time before 1970 or after 2106" in told
    assert "old (1965-01-01 becomes 2101-02-07)" in told
    assert "new (2106-02-08 becomes 1970-01-02)" in told


def test_with_source_date_epoch_later_times_become_it(
    tree: Path, where: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    make_old_and_new(tree)
    assert build_and_list(tree, where, "coco") == {"new": "2001-09-09", "old": "2101-02-07"}
    assert "new (2106-02-08 becomes 2001-09-09)" in capsys.readouterr().err


def test_a_time_of_the_directory_itself_counts_too(tree: Path, where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(tree, (-1, -1))
    assert run(["build", str(tree), "coco", "--to", str(where), "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert "1 path with a time" in warning
    assert ". (1969-12-31 becomes 2106-02-07)" in warning


@pytest.mark.parametrize("at", [0, 2**32 - 1])
def test_the_earliest_and_the_latest_time_are_kept(
    tree: Path, where: Path, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    os.utime(tree / "f", (at, at))
    assert run(["build", str(tree), "coco", "--to", str(where)]) == 0
    assert "warning" not in capsys.readouterr().err


def make_old_and_new(tree: Path) -> None:
    for name, at in (("old", -157_766_400), ("new", 2**32 + 86_400 + 60)):
        (tree / name).touch()
        os.utime(tree / name, (at, at))


def build_and_list(tree: Path, where: Path, name: str) -> dict[str, str]:
    assert run(["build", str(tree), name, "--to", str(where)]) == 0
    listed = subprocess.run(
        ["unsquashfs", "-lls", where / f"{name}.squashfs"],
        env={**os.environ, "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in listed.stdout.splitlines() if line.endswith(("/old", "/new"))]
    return {fields[-1].rpartition("/")[2]: fields[3] for fields in lines}
