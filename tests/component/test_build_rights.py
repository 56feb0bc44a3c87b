"""`scratch-slurm build` by root: what it reads in a tree that others own, and where it writes."""

import contextlib
import json
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratch_slurm.build.directory import open_directory
from scratch_slurm.build.publish import Publication
from scratch_slurm.domain.errors import DeniedError, UsageError
from scratch_slurm.domain.manifest import Manifest
from tests.kit.formats import KINDS, SQUASHFS, Kind
from tests.kit.images import clean_up
from tests.kit.people import as_nobody, reachable_directory
from tests.kit.tracing import need_strace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

USER = pwd.getpwnam("games")
UNKNOWN_UID = 54_321
SECRET = b"TOP-SECRET-OF-ROOT"
PATIENCE_S = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_directory() as path:
        (path / "source").mkdir()
        (path / "rootonly").mkdir(0o700)
        (path / "rootonly" / "shadow").write_bytes(SECRET)
        (path / "rootonly" / "shadow").chmod(0o600)
        yield path
        clean_up(path)


@pytest.fixture
def tree(folder: Path) -> Path:
    """A tree of USER's, closed to everybody else."""
    path = folder / "raw"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "shadow").write_bytes(b"harmless")
    (path / "a").write_bytes(b"a" * 300_000)
    give(path, USER.pw_uid)
    return path


def give(path: Path, uid: int) -> None:
    for each in (path, *path.rglob("*")):
        os.chown(each, uid, uid, follow_symlinks=False)
        each.chmod(0o700 if each.is_dir() else 0o600)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def build(kind: Kind, folder: Path, tree: Path, *more: str) -> int:
    return kind.build(tree, "coco", "--to", folder / "source", *more)


def published(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "source").iterdir())


def unpacked(kind: Kind, folder: Path) -> Path:
    return kind.unpack(kind.image(folder / "source"), folder / "out")


def as_user(*command: object) -> subprocess.CompletedProcess[bytes]:
    user = ["setpriv", f"--reuid={USER.pw_uid}", f"--regid={USER.pw_gid}", "--clear-groups", "--"]
    return subprocess.run([*user, *map(str, command)], capture_output=True, check=False, timeout=60)


# ---- with whose rights


def test_a_closed_tree_of_a_user_is_packed_with_his_rights_and_published_by_root(
    kind: Kind, folder: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(kind, folder, tree, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["read_as"] == "games"
    assert "is read with the rights of games, its owner" in told.err
    assert published(folder) == kind.files()
    for name in published(folder):
        status = (folder / "source" / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o644)
    assert (unpacked(kind, folder) / "sub/shadow").read_bytes() == b"harmless"


def test_the_owner_of_a_tree_need_not_be_known_by_name(
    kind: Kind, folder: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(tree, UNKNOWN_UID)
    assert build(kind, folder, tree, "--mode", "0600", "--json") == 0
    assert json.loads(capsys.readouterr().out)["read_as"] == f"uid {UNKNOWN_UID}"
    status = kind.image(folder / "source").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)


def test_a_group_that_files_of_an_unknown_owner_have_gives_no_rights(
    kind: Kind, folder: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(tree, UNKNOWN_UID)
    os.chown(tree / "a", 0, UNKNOWN_UID)
    (tree / "a").chmod(0o640)
    assert build(kind, folder, tree) == 11


@pytest.mark.parametrize("way", ["root's own file", "hard link", "nested mount"])
def test_what_the_owner_may_not_read_is_an_error_that_names_it(
    kind: Kind, folder: Path, tree: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    if way == "root's own file":
        os.chown(tree / "sub/shadow", 0, 0)
    elif way == "hard link":
        (tree / "sub/linked-shadow").hardlink_to(folder / "rootonly/shadow")
    else:
        subprocess.run(["mount", "--bind", folder / "rootonly", tree / "sub"], check=True)
    assert build(kind, folder, tree) == 11
    told = capsys.readouterr().err
    assert "that games may not read" in told
    assert "shadow" in told or ": sub\n" in told
    assert "--as USER" in told
    assert published(folder) == []


def test_a_tree_of_root_that_others_may_change_is_read_as_everybody_could(
    kind: Kind, folder: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(tree, 0, 0)
    tree.chmod(0o755)
    (tree / "a").chmod(0o644)
    assert build(kind, folder, tree) == 11, "sub is closed to all but its owner"
    assert "that nobody may not read: sub" in capsys.readouterr().err
    (tree / "sub").chmod(0o755)
    (tree / "sub/shadow").chmod(0o644)
    assert build(kind, folder, tree) == 0
    assert "with the rights of nobody: others than root may change what is in sub" in capsys.readouterr().err


def test_a_tree_of_root_that_nobody_else_may_change_is_read_by_root(
    kind: Kind, folder: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(tree, 0)
    os.chown(tree / "a", USER.pw_uid, 0)  # a file of another is only a file
    assert build(kind, folder, tree, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["read_as"] == "you"
    assert "warning" not in told.err


def test_root_may_say_with_whose_rights(
    kind: Kind, folder: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(tree / "a", UNKNOWN_UID, UNKNOWN_UID)
    for user, code in (("daemon", 11), ("no-such-user", 2), ("99999999999999999999", 2), ("root", 0)):
        assert build(kind, folder, tree, "--as", user) == code
    assert (unpacked(kind, folder) / "a").stat().st_size == 300_000


def test_nobody_but_root_reads_with_the_rights_of_others(
    kind: Kind, folder: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with as_nobody():
        assert build(kind, folder, tree, "--as", "games") == 11
    assert "only root" in capsys.readouterr().err


def test_the_rights_are_given_back(kind: Kind, folder: Path, tree: Path) -> None:
    before = (os.getresuid(), os.getresgid(), os.getgroups())
    assert build(kind, folder, tree) == 0
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


# ---- what is swapped


@pytest.mark.parametrize("swapped", ["sub", "sub/shadow"])
def test_what_is_swapped_for_a_link_while_it_is_packed_brings_in_nothing_of_roots(
    kind: Kind, folder: Path, tree: Path, swapped: str
) -> None:
    """The owner has all the time of the world between the program's look at a file and its opening it."""
    with stopped_before_it_opens_the_file(kind, folder, tree) as (process, program):
        images = list((folder / "source").glob(".coco.*.building"))
        assert len(images) == 1
        assert as_user("ls", images[0]).returncode != 0, "nobody gets to the image while it is written"
        assert as_user("ls", f"/proc/{program}/fd").returncode != 0, "nor takes it from the program"
        target = folder / "rootonly" / Path(swapped).relative_to("sub")
        swap = f"mv {tree}/{swapped} {tree}/.before && ln -s {target} {tree}/{swapped}"
        assert as_user("sh", "-c", swap).returncode == 0
        os.kill(program, signal.SIGCONT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 8, err
    assert b"sub/shadow" in err
    assert published(folder) == []


@contextlib.contextmanager
def stopped_before_it_opens_the_file(
    kind: Kind, folder: Path, tree: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a build whose program gets SIGSTOP between its look at `sub/shadow` and opening it; gives both ids.

    mksquashfs looks at everything before it opens the first file; mkfs.erofs looks at a file and opens it.
    """
    need_strace()
    path, calls = ("./a", "openat,open") if kind is SQUASHFS else (f"{tree}/sub/shadow", "newfstatat,lstat")
    inject = ["-P", path, "-e", f"trace={calls}", "-e", f"inject={calls}:signal=STOP:when=1"]
    code = "from scratch_slurm.cli.main import main; main()"
    command = [sys.executable, "-c", code, "build", str(tree), "coco", "--to", str(folder / "source")]
    command += ["--format", kind.name]
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", *inject]
    process = subprocess.Popen([*strace, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    packer = 0
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (packer := find_stopped(kind, folder)):
            assert time.monotonic() < deadline, f"{kind.program} was not stopped"
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        yield process, packer
    finally:
        if packer:
            with contextlib.suppress(ProcessLookupError):
                os.kill(packer, signal.SIGCONT)
        process.terminate()
        process.communicate()


def find_stopped(kind: Kind, folder: Path) -> int:
    """Find the stopped program that writes below this folder; 0 for none."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "comm").read_text() != f"{kind.program}\n" or (entry / "cwd").readlink() != folder / "raw":
                continue
            states = {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in (entry / "task").iterdir()}
            if states <= {"T", "t"}:
                return int(entry.name)
    return 0


def test_a_link_of_a_user_does_not_send_root_to_what_is_roots(
    kind: Kind, folder: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = folder / "link"
    link.symlink_to(folder / "rootonly")
    assert open_directory(link).path == folder / "rootonly", "root's own link"
    os.chown(link, USER.pw_uid, USER.pw_gid, follow_symlinks=False)
    assert build(kind, folder, link) == 11
    assert "symbolic link 'link' of uid" in capsys.readouterr().err
    (folder / "inner").symlink_to("link/.")
    with pytest.raises(DeniedError):
        open_directory(folder / "inner")
    with pytest.raises(DeniedError):
        open_directory(folder / "link" / ".." / "source")
    assert published(folder) == []


def test_a_link_of_a_user_to_his_own_tree_is_followed(folder: Path, tree: Path) -> None:
    link = folder / "link"
    link.symlink_to("raw")
    os.chown(link, USER.pw_uid, USER.pw_gid, follow_symlinks=False)
    assert open_directory(link).path == tree


@pytest.mark.parametrize("name", ["loop", "missing", "file", "file/x", "a\0b"])
def test_what_is_no_directory_is_wrong_usage(folder: Path, name: str) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "file").touch()
    with pytest.raises(UsageError):
        open_directory(folder / name)


def test_an_image_goes_into_the_directory_that_was_looked_at_whatever_has_its_name_now(folder: Path) -> None:
    where = open_directory(folder / "source")
    with Publication(where, "coco") as publication:
        os.write(publication.fd, b"hsqs" * 1000)
        (folder / "source").rename(folder / "moved")
        (folder / "source").symlink_to(folder / "rootonly")
        seal = publication.seal(lambda _done, _total: None)
        publication.publish(Manifest(size_bytes=seal.size_bytes, blake3=seal.blake3), seal)
    assert sorted(path.name for path in (folder / "moved").iterdir()) == ["coco.chunks", "coco.json", "coco.squashfs"]
    assert [path.name for path in (folder / "rootonly").iterdir()] == ["shadow"]


def test_a_device_in_a_tree_is_packed_as_a_device_and_not_read(kind: Kind, folder: Path, tree: Path) -> None:
    os.mknod(tree / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    assert build(kind, folder, tree) == 0
    assert stat.S_ISCHR((unpacked(kind, folder) / "zero").lstat().st_mode)


def test_a_wrapper_around_the_program_has_no_way_back_to_root(
    kind: Kind, folder: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shells take the real user id when the effective one is another."""
    wrapper = kind.fake(folder / "bin", 'grep -E "^(Uid|Gid|Groups|CapPrm)" /proc/self/status >&2; exit 3')
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    assert build(kind, folder, tree) == 8
    told = capsys.readouterr().err
    ids = told.partition("Uid:")[2].split("Groups:")[0]
    assert "CapPrm:\\t0000000000000000" in told
    assert "\\t0\\t" not in f"{ids}\\t"
