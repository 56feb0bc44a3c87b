"""`scratch-slurm build --format erofs`: what mkfs.erofs alone does not do, or does wrong."""

import contextlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scratch_slurm.build import mkfserofs
from scratch_slurm.build.directory import open_directory
from scratch_slurm.build.erofsimage import settle
from scratch_slurm.build.packing import Wanted
from scratch_slurm.build.rights import OWN, Rights
from scratch_slurm.build.tree import read_tree
from scratch_slurm.domain.errors import DeniedError, ImageError
from scratch_slurm.domain.limits import MIB, Resources
from scratch_slurm.domain.model import Permissions
from tests.kit.formats import EROFS
from tests.kit.images import apart, in_child, opened
from tests.kit.people import NOBODY, reachable_directory

pytestmark = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils")

MEMORY = Resources(512 * MIB, 1, "a group")


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
def point(tmp_path: Path) -> Path:
    path = tmp_path / "mounted"
    path.mkdir()
    return path


@contextlib.contextmanager
def shown(where: Path, point: Path) -> Iterator[Path]:
    """Mount the image in a namespace of its own; in a child, as threads keep a process where it is."""
    with apart():
        subprocess.run(["mount", "-o", "loop,ro", EROFS.image(where), point], check=True)
        try:
            yield point
        finally:
            subprocess.run(["umount", point], check=True)


def published(where: Path) -> list[str]:
    return sorted(path.name for path in where.iterdir())


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, more: str = "") -> None:
    """Have a mkfs.erofs that gives itself out for another version, and hands more options on."""
    real = shutil.which("mkfs.erofs")
    program = replace(EROFS, version=version).fake(tmp_path / "bin", f'exec {real} {more} "$@"')
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


# ---- what is in it


@pytest.mark.root
@pytest.mark.parametrize("compression", ["none", "lz4hc"])
def test_trees_of_every_shape_come_out_as_they_went_in_but_open(
    tmp_path: Path, where: Path, point: Path, compression: str
) -> None:
    """Directories of one block and many, with names that fill them, files that end anywhere, links, holes, devices."""
    rng = random.Random(7)
    root = tmp_path / "tree"
    root.mkdir()
    folders = [root]
    for number in range(40):
        folder = rng.choice(folders) / (f"d{number}" + "n" * rng.randrange(60))
        folder.mkdir()
        folders.append(folder)
        for entry in range(rng.choice([0, 1, 3, 12, 90, 340])):
            file = folder / (f"{entry}-" + "é" * rng.randrange(100))
            if entry % 50 == 7:
                file.write_bytes(rng.randbytes(rng.choice([1, 4000, 4096, 4097, 70_000])))
            else:
                file.write_bytes(b"text " * rng.randrange(50))
            os.utime(file, ns=(0, rng.randrange(-(10**18), 5 * 10**18)))
            file.chmod(rng.randrange(0o10000))
        folder.chmod(rng.choice([0o700, 0o1777, 0o2750]))
    (root / "sparse").touch()
    os.truncate(root / "sparse", 3 * MIB)
    (root / "hard").hardlink_to(root / "sparse")
    (root / "link").symlink_to("sparse")
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(root / "sparse", "user.note", b"left out")
    os.utime(root, (1, 1))
    assert EROFS.build(root, "coco", "--to", where, "--compression", compression, "--as", "root") == 0
    in_child(compare, root, where, point)
    subprocess.run(["fsck.erofs", EROFS.image(where)], check=True, capture_output=True)


def compare(root: Path, where: Path, point: Path) -> None:
    names = sorted(path.relative_to(root) for path in root.rglob("*"))
    with shown(where, point) as mounted:
        assert sorted(path.relative_to(mounted) for path in mounted.rglob("*")) == names
        for name in names:
            before, after = (root / name).lstat(), (mounted / name).lstat()
            assert stat.S_IMODE(after.st_mode) == opened_mode(before.st_mode), name
            assert stat.S_IFMT(after.st_mode) == stat.S_IFMT(before.st_mode), name
            assert (after.st_uid, after.st_gid, after.st_mtime_ns) == (0, 0, before.st_mtime_ns), name
            if stat.S_ISREG(before.st_mode):
                assert (mounted / name).read_bytes() == (root / name).read_bytes(), name
                assert after.st_nlink == before.st_nlink, name
        assert (mounted / "link").readlink() == Path("sparse")
        assert (mounted / "null").stat().st_rdev == os.makedev(1, 3)
        assert os.listxattr(mounted / "sparse") == []


def opened_mode(mode: int) -> int:
    """What `chmod a+rX,u-s,g-s,o-t` makes of a mode, spelt out."""
    bits = mode & 0o777 | 0o444
    if stat.S_ISDIR(mode) or mode & 0o100 or mode & 0o010 or mode & 0o001:
        bits |= 0o111
    return bits


@pytest.mark.root
def test_a_private_images_root_is_its_readers_and_what_is_below_is_open(tree: Path, where: Path, point: Path) -> None:
    """Ids of more than 16 bits need inodes of the larger form."""
    assert EROFS.build(tree, "coco", "--to", where, "--mode", "0640", "--group", "3000000000") == 0
    root, below = in_child(look, where, point)
    assert root == (os.geteuid(), 3_000_000_000, 0o750)
    assert below == (0, 0, 0o644)


def look(where: Path, point: Path) -> list[tuple[int, int, int]]:
    """Tell owner, group and mode of an image's root directory, and of its file `f`."""
    with shown(where, point) as mounted:
        found = (mounted.stat(), (mounted / "f").stat())
        return [(each.st_uid, each.st_gid, stat.S_IMODE(each.st_mode)) for each in found]


def test_no_id_is_given_that_another_image_could_have_too(tree: Path, where: Path) -> None:
    assert EROFS.build(tree, "coco", "--to", where) == 0
    told = subprocess.run(
        ["blkid", "-p", "-o", "export", EROFS.image(where)], capture_output=True, text=True, check=True
    )
    assert "TYPE=erofs" in told.stdout
    assert "UUID" not in told.stdout


def test_times_of_all_ages_need_no_warning(tree: Path, where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(tree / "f", (-(10**9), -(10**9)))
    assert EROFS.build(tree, "coco", "--to", where) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "soon", "-1", "9" * 30])
def test_a_source_date_epoch_that_is_none_is_refused(
    tree: Path, where: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    assert EROFS.build(tree, "coco", "--to", where) == 2
    assert "SOURCE_DATE_EPOCH" in capsys.readouterr().err
    assert published(where) == []


# ---- what its versions leave out


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ("mkfs.erofs 1.5", 8),
        ("mkfs.erofs (erofs-utils) 1.6", 0),
    ],
)
def test_lost_and_found_is_refused_where_it_would_be_left_out(
    tmp_path: Path,
    tree: Path,
    where: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str,
    code: int,
) -> None:
    """The real one leaves it out; what gives itself out for a newer one is found out by what is in the image."""
    fake(tmp_path, monkeypatch, version)
    (tree / "sub" / "lost+found-items").mkdir(parents=True)
    assert EROFS.build(tree, "coco", "--to", where) == 8
    told = capsys.readouterr().err
    assert "sub/lost+found-items" in told if code else "packed only 2 paths of 3" in told
    assert published(where) == []


@pytest.mark.parametrize(("version", "refused"), [("mkfs.erofs 1.5", True), ("mkfs.erofs (erofs-utils) 1.8.5", False)])
def test_names_of_255_bytes_are_refused_where_they_would_be_cut(
    tmp_path: Path, where: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    (tree / ("n" * 254)).touch()
    fake(tmp_path, monkeypatch, version)
    assert EROFS.build(tree, "coco", "--to", where) == 0
    (tree / ("é" * 127 + "n")).touch()
    packer = mkfserofs.find_mkfs_erofs()
    with open_directory(tree) as directory:
        found = read_tree(directory, lambda _files: None, unfit=packer.unfit)
    assert found.unfit.count == refused


@pytest.mark.parametrize(
    ("version", "word"),
    [
        ("mkfs.erofs 1.3", "is too old"),
        ("mkfs.erofs (erofs-utils) 1.7", "mixes up directories"),
        ("mkfs.erofs (erofs-utils) 1.8", "more than 4 GiB"),
        ("what?", "unknown"),
    ],
)
def test_versions_that_lose_data_are_refused(
    tmp_path: Path,
    tree: Path,
    where: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str,
    word: str,
) -> None:
    fake(tmp_path, monkeypatch, version)
    assert EROFS.build(tree, "coco", "--to", where) == 3
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("version", ["mkfs.erofs 1.4", "mkfs.erofs (erofs-utils) 1.7.1", "mkfs.erofs 1.8.10"])
def test_other_versions_are_taken(
    tmp_path: Path, tree: Path, where: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    fake(tmp_path, monkeypatch, version)
    assert EROFS.build(tree, "coco", "--to", where) == 0


def test_an_image_that_lacks_something_is_not_published(
    tmp_path: Path, tree: Path, where: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "g").write_bytes(b"y" * 10)
    fake(tmp_path, monkeypatch, "mkfs.erofs 1.5", "--exclude-path=g")
    assert EROFS.build(tree, "coco", "--to", where) == 8
    assert "packed only 1 paths of 2, 1 files of 2, 1,000 bytes in files of 1,010" in capsys.readouterr().err
    assert published(where) == []


def test_an_error_names_the_file_where_it_ended(
    tmp_path: Path, tree: Path, where: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """mkfs.erofs tells the number of the error only."""
    (tree / "sub").mkdir()
    (tree / "sub" / "gone").touch()
    limit = "ulimit -f 64; trap '' XFSZ; "
    real = shutil.which("mkfs.erofs")
    program = EROFS.fake(tmp_path / "bin", f'{limit} exec {real} "$@"')
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tree / "sub" / "large").write_bytes(os.urandom(100_000))
    assert EROFS.build(tree, "coco", "--to", where) == 8
    assert "Processing sub/large ..." in capsys.readouterr().err


# ---- what it would need


def test_a_tree_that_would_take_too_much_memory_is_refused(tree: Path) -> None:
    with open_directory(tree) as directory:
        found = replace(read_tree(directory, lambda _files: None), entries=1_340_000)
        wanted = Wanted("none", found, Permissions(0, 0, 0o644), MEMORY)
        with pytest.raises(
            ImageError, match=r"needs 6\.9 GB of memory for 1,340,000 paths, and has 1\.1 GB, bounded by"
        ):
            mkfserofs.MkfsErofs("mkfs.erofs", (1, 5, 0)).check(directory, wanted)
        few = replace(wanted, found=replace(found, entries=200_000))
        mkfserofs.MkfsErofs("mkfs.erofs", (1, 5, 0)).check(directory, few)
        mkfserofs.MkfsErofs("mkfs.erofs", (1, 6, 0)).check(
            directory, replace(wanted, found=replace(found, entries=10**6))
        )


LOOSE = [
    pytest.param(0o755, 0, False, id="roots"),
    pytest.param(0o755, NOBODY, True, id="another-owner"),
    pytest.param(0o775, 0, True, id="a-group"),
    pytest.param(0o1777, 0, False, id="sticky"),
]


@pytest.mark.root
@pytest.mark.parametrize(("mode", "owner", "refused"), LOOSE)
def test_root_packs_nothing_that_others_may_put_something_in_the_place_of(
    mode: int, owner: int, refused: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with reachable_directory() as folder:
        for path in ("above/tree", "source"):
            (folder / path).mkdir(parents=True)
        (folder / "above/tree/f").touch()
        (folder / "above").chmod(mode)
        os.chown(folder / "above", owner, owner)
        assert EROFS.build(folder / "above/tree", "coco", "--to", folder / "source") == (11 if refused else 0)
        told = capsys.readouterr().err
        assert (f"others may put another directory in its place, in {folder / 'above'}" in told) == refused


@pytest.mark.root
def test_in_a_sticky_directory_the_owner_of_the_name_is_looked_at() -> None:
    with reachable_directory() as folder:
        tree = folder / "above/tree"
        tree.mkdir(parents=True)
        (folder / "above").chmod(0o1777)
        os.chown(tree, NOBODY, NOBODY)
        with open_directory(tree) as directory:
            with pytest.raises(DeniedError, match="others may put"):
                mkfserofs.check_way(directory, OWN)
            mkfserofs.check_way(directory, Rights(NOBODY, NOBODY, (), "nobody"))


@pytest.mark.root
def test_an_owner_that_does_not_get_there_by_name_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with reachable_directory() as folder:
        for path in ("closed/tree", "source"):
            (folder / path).mkdir(parents=True)
        (folder / "closed/tree/f").touch()
        os.chown(folder / "closed/tree", NOBODY, NOBODY)
        (folder / "closed").chmod(0o700)
        assert EROFS.build(folder / "closed/tree", "coco", "--to", folder / "source") == 11
        assert "nobody cannot get there by name" in capsys.readouterr().err


# ---- settling


def make_image(path: Path, tree: Path, *options: str) -> Path:
    subprocess.run(["mkfs.erofs", "--quiet", *options, path, tree], check=True, capture_output=True)
    return path


@pytest.mark.parametrize(
    ("at", "what"),
    [
        pytest.param(1024, b"hsqs", id="magic"),
        pytest.param(1024 + 4, b"\0\0\0\0", id="checksum"),
        pytest.param(1024 + 80, b"\xff\x01", id="features"),
        pytest.param(1024 + 12, b"\x1f", id="block-size"),
    ],
)
def test_what_is_not_of_the_form_that_is_known_is_refused(tmp_path: Path, tree: Path, at: int, what: bytes) -> None:
    image = make_image(tmp_path / "image", tree, "-E", "force-inode-extended")
    with opened(image, os.O_RDWR) as fd:
        os.pwrite(fd, what, at)
        with pytest.raises(ImageError, match=r"^mkfs\.erofs wrote"):
            settle(fd, Permissions(0, 0, 0o755), newest_at=0, latest_at=None)


def test_inodes_of_the_short_form_are_refused(tmp_path: Path, tree: Path) -> None:
    image = make_image(tmp_path / "image", tree, "-E", "force-inode-compact", "-T", "0")
    with opened(image, os.O_RDWR) as fd, pytest.raises(ImageError, match="unknown form: inode"):
        settle(fd, Permissions(0, 0, 0o755), newest_at=0, latest_at=None)


def test_whatever_is_wrong_in_an_image_it_is_an_error_and_it_ends(tmp_path: Path, tree: Path) -> None:
    """A directory that holds itself, names that begin nowhere, sizes without an end: nothing of it costs more."""
    for number in range(30):
        (tree / f"d{number}").mkdir()
        (tree / f"d{number}" / "f").touch()
    image = make_image(tmp_path / "image", tree, "-E", "force-inode-extended")
    whole = image.read_bytes()
    rng = random.Random(3)
    refused = 0
    for _ in range(400):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            broken[rng.randrange(1024 + 128, len(broken))] = rng.randrange(256)
        image.write_bytes(broken)
        with opened(image, os.O_RDWR) as fd:
            # Past the checksum, as a program that lies would have it right.
            os.pwrite(fd, b"\0", 1024 + 8)
            try:
                settle(fd, Permissions(0, 0, 0o755), newest_at=0, latest_at=None)
            except ImageError:
                refused += 1
    assert refused > 20
