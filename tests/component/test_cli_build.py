"""`scratch-slurm build` with the real mksquashfs and the real mkfs.erofs."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import blake3
import pytest

from scratch_slurm.build import mksquashfs, publish
from scratch_slurm.build.directory import open_directory
from scratch_slurm.domain.errors import ImageError, NoSpaceError
from scratch_slurm.domain.manifest import Manifest
from scratch_slurm.node.kernel import loopdev, mounts
from scratch_slurm.node.origins.directory import DirectoryOrigin
from tests.kit.formats import EROFS, KINDS, SQUASHFS, Kind
from tests.kit.images import clean_up, opened
from tests.kit.people import as_nobody, reachable_directory

pytestmark = pytest.mark.skipif(
    shutil.which("mksquashfs") is None or shutil.which("mkfs.erofs") is None, reason="needs squashfs-tools, erofs-utils"
)

REPOSITORY = Path(__file__).parents[2]
HOSTILE = ["a b", "-r", "x\ny", "$(id)", "*", "\\", "'\"", "ü", "...", "#"]


@pytest.fixture
def where(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture
def content(tmp_path):
    path = tmp_path / "content"
    (path / "private").mkdir(parents=True)
    (path / "a.txt").write_bytes(b"hello" * 1000)
    (path / "private" / "b.bin").write_bytes(os.urandom(300_000))
    (path / "link").symlink_to("/etc/hostname")
    return path


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def failing(tmp_path, monkeypatch, kind):
    """Have a program to pack with that fails at once."""
    fake = kind.fake(tmp_path / "bin", "echo 'no \033[2J luck' >&2; exit 3")
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")


def published(where: Path) -> list[str]:
    return sorted(entry.name for entry in where.iterdir())


def read_manifest(where: Path, name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((where / f"{name}.json").read_text())
    return manifest


def test_an_image_and_its_manifest_agree(content, where, capsys, kind) -> None:
    assert kind.build(content, "coco", "--to", where) == 0
    assert published(where) == kind.files()
    image = kind.image(where)
    manifest = read_manifest(where, "coco")
    assert manifest["dataset"] == "coco"
    assert manifest["size_bytes"] == image.stat().st_size
    assert manifest["blake3"] == blake3.blake3(image.read_bytes()).hexdigest()
    assert (manifest["files"], manifest["content_bytes"]) == (2, 305_000)
    assert stat.S_IMODE(image.stat().st_mode) == 0o644
    assert stat.S_IMODE((where / "coco.json").stat().st_mode) == 0o644
    assert "built coco" in capsys.readouterr().out


def test_the_nodes_catalog_takes_image_and_digest(content, where, kind) -> None:
    assert kind.build(content, "coco", "--to", where) == 0
    (entry,) = DirectoryOrigin(where).read(DirectoryOrigin(where).list(), {})
    assert entry is not None and entry.image is not None
    assert entry.image.generation.content_id == read_manifest(where, "coco")["blake3"]


def test_json_tells_the_manifest_and_the_paths(content, where, capsys, kind) -> None:
    assert kind.build(content, "coco", "--to", where, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["image"] == str(kind.image(where))
    assert told["manifest"] == read_manifest(where, "coco")


def test_equal_trees_give_equal_images(tmp_path, content, where, kind) -> None:
    again = tmp_path / "again"
    shutil.copytree(content, again, symlinks=True, copy_function=shutil.copy2)
    for path in (content, content / "private", content / "link"):
        status = path.lstat()
        same = again / path.relative_to(content)
        os.utime(same, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    (again / "a.txt").chmod(0o600)
    assert kind.build(content, "one", "--to", where) == 0
    time.sleep(1.1)
    assert kind.build(again, "two", "--to", where) == 0
    assert kind.image(where, "one").read_bytes() == kind.image(where, "two").read_bytes()


def test_source_date_epoch_is_the_latest_time(tmp_path, content, where, monkeypatch, kind) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    os.utime(content / "a.txt", (10**9 - 1, 10**9 - 1))
    assert kind.build(content, "coco", "--to", where) == 0
    found = kind.unpack(kind.image(where), tmp_path / "out")
    assert (found / "a.txt").stat().st_mtime == 10**9 - 1
    assert (found / "private/b.bin").stat().st_mtime == 10**9


def test_the_umask_does_not_close_the_image(content, where, kind) -> None:
    before = os.umask(0o077)
    try:
        assert kind.build(content, "coco", "--to", where) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((kind.image(where)).stat().st_mode) == 0o644
    assert stat.S_IMODE((where / "coco.json").stat().st_mode) == 0o644


MOUNTED = [
    pytest.param(SQUASHFS, "zstd", 0o700, id="squashfs-zstd"),
    pytest.param(SQUASHFS, "none", 0o1777, id="squashfs-none"),
    pytest.param(EROFS, "none", 0o1777, id="erofs-none"),
    pytest.param(EROFS, "lz4", 0o700, id="erofs-lz4"),
    pytest.param(EROFS, "lz4hc", 0o711, id="erofs-lz4hc"),
]


@pytest.mark.root
@pytest.mark.parametrize(("kind", "compression", "mode"), MOUNTED)
def test_a_mounted_image_has_the_same_content_and_everybody_may_read_it(
    tmp_path, where, kind, compression, mode
) -> None:
    content = tmp_path / "tree"
    (content / "closed").mkdir(parents=True)
    wanted = {}
    for name in [*HOSTILE, "closed/inside"]:
        (content / name).write_bytes(name.encode() * 40_000)
        (content / name).chmod(0o600)
        wanted[name] = name.encode() * 40_000
    (content / "tool").write_bytes(b"#!/bin/sh\n")
    (content / "tool").chmod(0o6700)
    os.chown(content / "tool", 1234, 1234)
    (content / "closed").chmod(0o700)
    content.chmod(mode)
    assert kind.build(content, "coco", "--to", where, "--compression", compression, "--as", "root") == 0
    mounts.ensure_mount_point(tmp_path / "mnt")
    try:
        with (
            opened(kind.image(where)) as fd,
            loopdev.attach(fd, tag="test", direct_io=False) as device,
        ):
            mounts.mount_image(device.path, tmp_path / "mnt", kind.name)
            found = tmp_path / "mnt"
            assert {name: (found / name).read_bytes() for name in wanted} == wanted
            assert sorted(path.name for path in found.iterdir()) == sorted([*HOSTILE, "closed", "tool"])
            for name in wanted:
                assert stat.S_IMODE((found / name).stat().st_mode) == 0o644
            assert stat.S_IMODE((found / "tool").stat().st_mode) == 0o755
            assert (found / "tool").stat().st_uid == 0
            assert stat.S_IMODE((found / "closed").stat().st_mode) == 0o755
            assert stat.S_IMODE(found.stat().st_mode) == 0o755
    finally:
        clean_up(tmp_path)


@pytest.mark.parametrize("suffix", [".squashfs", ".sqsh", ".sqfs", ".erofs", ".json"])
def test_a_name_that_is_taken_is_refused_at_once_and_nothing_is_lost(
    content, where, capsys, failing, suffix, kind
) -> None:
    (where / f"coco{suffix}").write_bytes(b"precious")
    assert kind.build(content, "coco", "--to", where) == 8
    assert published(where) == [f"coco{suffix}"]
    assert (where / f"coco{suffix}").read_bytes() == b"precious"
    assert "is there already" in capsys.readouterr().err


def publish_some_bytes(where: Path) -> None:
    with publish.Publication(open_directory(where), "coco") as publication:
        os.write(publication.fd, b"hsqs" * 1000)
        seal = publication.seal(lambda _done, _total: None)
        publication.publish(Manifest(size_bytes=seal.size_bytes, blake3=seal.blake3), seal)


@pytest.mark.parametrize("suffix", [".squashfs", ".erofs", ".json"])
def test_a_name_taken_while_it_is_built_is_refused_too(where, suffix) -> None:
    (where / f"coco{suffix}").write_bytes(b"precious")
    with pytest.raises(ImageError, match="is there already"):
        publish_some_bytes(where)
    assert published(where) == [f"coco{suffix}"]
    assert (where / f"coco{suffix}").read_bytes() == b"precious"


def test_a_name_taken_at_the_last_moment_keeps_its_image(where, monkeypatch) -> None:
    link = Path.hardlink_to

    def link_too_late(self, target):
        self.write_bytes(b"precious")
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", link_too_late)
    with pytest.raises(ImageError, match="somebody else"):
        publish_some_bytes(where)
    assert published(where) == ["coco.squashfs"]
    assert (where / "coco.squashfs").read_bytes() == b"precious"


def test_a_link_that_the_server_made_but_did_not_tell_is_taken_for_made(where, monkeypatch) -> None:
    link = Path.hardlink_to

    def link_twice(self, target):
        link(self, target)
        link(self, target)  # EEXIST, as after a lost answer on NFS

    monkeypatch.setattr(Path, "hardlink_to", link_twice)
    publish_some_bytes(where)
    assert published(where) == ["coco.chunks", "coco.json", "coco.squashfs"]


def test_storage_that_fails_while_publishing_leaves_nothing(where, monkeypatch) -> None:
    def fail(_self, _target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    with pytest.raises(NoSpaceError):
        publish_some_bytes(where)
    assert published(where) == []


def test_of_builds_at_once_one_wins_and_its_manifest_is_the_images(tmp_path, where, kind) -> None:
    contents = []
    for number in range(3):
        contents.append(tmp_path / f"c{number}")
        contents[-1].mkdir()
        (contents[-1] / "f").write_bytes(b"%d" % number * 10_000 * (number + 1))
    codes = []
    threads = [
        threading.Thread(target=lambda one=one: codes.append(kind.build(one, "coco", "--to", where)))
        for one in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, 8, 8]
    assert published(where) == kind.files()
    digest = blake3.blake3((kind.image(where)).read_bytes()).hexdigest()
    assert read_manifest(where, "coco")["blake3"] == digest


def test_a_file_system_without_hard_links_is_published_to_by_rename(where, monkeypatch) -> None:
    def refuse(_self, _target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)  # as FUSE and SMB answer; there is none here to try on
    publish_some_bytes(where)
    assert published(where) == ["coco.chunks", "coco.json", "coco.squashfs"]


@pytest.mark.parametrize("name", ["../x", "-x", ".hidden", "a/b", "a b", "", "x" * 65])
def test_names_that_are_none_are_refused(content, where, name, kind) -> None:
    assert kind.build("--to", where, "--", content, name) == 2
    assert published(where) == []


def test_a_directory_that_is_none_is_refused(tmp_path, where, capsys, kind) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for wrong in (tmp_path / "missing", file, empty):
        assert kind.build(wrong, "coco", "--to", where) == 2
        assert str(wrong) in capsys.readouterr().err
    assert published(where) == []


def test_a_directory_that_holds_the_images_is_refused(tmp_path, where, capsys, kind) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for wrong in (tmp_path, where, tmp_path / "link"):
        assert kind.build(wrong, "coco", "--to", where) == 2
    assert "holds the directory of images" in capsys.readouterr().err


def test_a_directory_that_begins_with_a_dash_is_a_directory(tmp_path, where, monkeypatch, kind) -> None:
    (tmp_path / "-noappend").mkdir()
    (tmp_path / "-noappend" / "f").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert kind.build("--to", "source", "--", "-noappend", "coco") == 0
    assert published(where) == kind.files()


def test_a_missing_target_is_an_error(content, tmp_path, kind) -> None:
    assert kind.build(content, "coco", "--to", tmp_path / "none") == 2


def test_without_the_program_the_error_names_the_package(content, where, monkeypatch, capsys, kind) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert kind.build(content, "coco", "--to", where) == 3
    assert kind.package in capsys.readouterr().err


def test_a_failing_program_leaves_nothing_and_its_words_are_told(content, where, failing, capsys, kind) -> None:
    assert kind.build(content, "coco", "--to", where) == 8
    assert "exit code 3: no \\x1b[2J luck" in capsys.readouterr().err
    assert published(where) == []


@pytest.mark.root
def test_unreadable_files_are_named_before_anything_is_made(capsys, kind) -> None:
    with reachable_directory() as folder:
        content, where = folder / "content", folder / "source"
        for path in (content, content / "closed", where):
            path.mkdir()
        (content / "closed").chmod(0o700)
        for number in range(5):
            (content / f"{number}.txt").touch(0o600)
        where.chmod(0o777)
        with as_nobody():
            assert kind.build(content, "coco", "--to", where) == 11
        told = capsys.readouterr().err
        assert "6 paths below it that you may not read" in told
        assert ".txt" in told
        assert published(where) == []


@pytest.mark.root
def test_a_target_that_one_may_not_write_is_denied(capsys, kind) -> None:
    with reachable_directory() as folder:
        content, where = folder / "content", folder / "source"
        for path in (content, where):
            path.mkdir()
        (content / "f").touch()
        with as_nobody():
            assert kind.build(content, "coco", "--to", where) == 11
        assert f"{where}: you may not make a file here" in capsys.readouterr().err
        assert published(where) == []


def test_an_old_mksquashfs_cannot_open_files_so_closed_ones_are_refused(
    tmp_path, content, where, monkeypatch, capsys
) -> None:
    old = replace(SQUASHFS, version="mksquashfs version 4.3 (2014/05/12)")
    fake = old.fake(tmp_path / "bin", f'exec {shutil.which("mksquashfs")} "$@"')
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    (content / "a.txt").chmod(0o600)
    assert old.build(content, "coco", "--to", where) == 8
    assert "a.txt" in capsys.readouterr().err
    (content / "a.txt").chmod(0o644)
    assert old.build(content, "coco", "--to", where, "--mode", "0640") == 8
    assert "cannot make an image that not all may read" in capsys.readouterr().err
    assert old.build(content, "coco", "--to", where) == 0


@pytest.mark.parametrize(
    ("send", "code"),
    [
        pytest.param(lambda process: os.killpg(process.pid, signal.SIGINT), 130, id="ctrl-c"),
        pytest.param(lambda process: process.terminate(), 143, id="terminate"),
    ],
)
def test_ctrl_c_and_its_like_leave_nothing_behind(tmp_path, where, send, code, kind) -> None:
    content = tmp_path / "big"
    content.mkdir()
    (content / "f").write_bytes(os.urandom(64 * 2**20))
    process = start(
        tmp_path,
        "build",
        "--format",
        kind.name,
        content,
        "coco",
        "--to",
        where,
        "--compression",
        kind.slow,
        start_new_session=True,
    )
    try:
        wait_for(lambda: any(image.stat().st_size > 0 for image in where.glob(".*/image")))
        send(process)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert b"Traceback" not in err
    assert published(where) == []
    assert running_in(process.pid) == []


def test_on_a_terminal_progress_is_drawn(tmp_path, content, where, kind) -> None:
    (content / "large").write_bytes(os.urandom(12 * 2**20))
    master, terminal = os.openpty()
    process = start(
        tmp_path,
        "build",
        "--format",
        kind.name,
        content,
        "coco",
        "--to",
        where,
        "--compression",
        kind.slow,
        stderr=terminal,
    )
    os.close(terminal)
    drawn = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # EIO: the last writer has gone
            break
        drawn += piece
    os.close(master)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"coco: packing" in drawn
    assert out.startswith(b"built coco")


PROGRESS = [
    pytest.param(b"\r[==-   ] 12/50  24%", (12, 50), id="one"),
    pytest.param(b"\r[==-   ] 12/50  24%\r[===|  ] 25/50  50%", (25, 50), id="the-last"),
    pytest.param(b"Creating 4.0 filesystem on /a/1/2 30%x, block size 131072.", None, id="no-bar"),
    pytest.param(b"", None, id="nothing"),
]


@pytest.mark.parametrize(("text", "expected"), PROGRESS)
def test_parse_progress(text, expected) -> None:
    assert mksquashfs.parse_progress(text) == expected


def start(home: Path, *arguments: object, **options):
    code = "from scratch_slurm.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": str(home), "TERM": "xterm"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, **options)


def running_in(group: int) -> list[str]:
    """Find what still runs in a process group."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "-g", str(group)], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if "Z" not in line]


def wait_for(condition, timeout_s=30.0):
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "did not happen in time"
        time.sleep(0.01)


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("size=256k", "no space left"),
        ("size=64M,nr_inodes=2", "no inodes left"),
        ("ro", "the file system is read-only"),
    ],
)
def test_a_disk_that_takes_no_image_is_named(tmp_path, content, capsys, options, word, kind) -> None:
    where = tmp_path / "disk"
    where.mkdir()
    (content / "more").write_bytes(os.urandom(600_000))
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], check=True)
    try:
        assert kind.build(content, "coco", "--to", where) == (9 if options == "ro" else 7)
        assert word in capsys.readouterr().err
        assert published(where) == []
    finally:
        subprocess.run(["umount", where], check=True)
