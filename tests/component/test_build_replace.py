"""`scratch-slurm build --replace`: a new version takes its names, and at every moment the image there is is served."""

import contextlib
import fcntl
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import blake3
import pytest

from scratch_slurm.build.directory import open_directory
from scratch_slurm.build.publish import Publication
from scratch_slurm.cli.main import run
from scratch_slurm.domain.manifest import Manifest
from scratch_slurm.node.origins.directory import DirectoryOrigin
from tests.kit.formats import EROFS, KINDS, SQUASHFS, Kind
from tests.kit.images import wait_until
from tests.kit.tracing import run_killed_at, trace

pytestmark = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="needs squashfs-tools")

REPOSITORY = Path(__file__).parents[2]
CALLS = "mkdir,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,fsync,fchmod,fchown,flock"
FILES = SQUASHFS.files()
OLD, NEW = b"o" * 300_000, os.urandom(200_000)


@pytest.fixture
def where(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


def make_tree(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / f"tree-{blake3.blake3(data).hexdigest()[:8]}"
    if not path.exists():  # its times are the image's
        path.mkdir()
        (path / "data").write_bytes(data)
    return path


def build(tmp_path: Path, where: Path, data: bytes, *more: str) -> int:
    return run(["build", str(make_tree(tmp_path, data)), "coco", "--to", str(where), "--compression", "lz4", *more])


def build_kind(kind: Kind, tmp_path: Path, where: Path, data: bytes, *more: str) -> int:
    return kind.build(make_tree(tmp_path, data), "coco", "--to", where, "--compression", "lz4", *more)


def command(tree: Path, where: Path) -> list[str]:
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from scratch_slurm.cli.main import main; main()"
    more = ["--compression", "lz4", "--replace"]
    return [sys.executable, "-c", code, "build", str(tree), "coco", "--to", str(where), *more]


def published(where: Path) -> list[str]:
    return sorted(path.name for path in where.iterdir())


def digest_of(where: Path, kind: Kind = SQUASHFS) -> str:
    return blake3.blake3(kind.image(where).read_bytes()).hexdigest()


def served_digest(where: Path) -> str | None:
    """The digest that a node goes by; fails if it would not serve the image."""
    (entry,) = DirectoryOrigin(where).read(DirectoryOrigin(where).list(), {})
    assert entry is not None
    assert entry.image is not None, entry.skipped
    return entry.image.generation.content_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_version_takes_both_names_and_nothing_else_is_left(
    tmp_path: Path, where: Path, capsys: pytest.CaptureFixture[str], kind: Kind
) -> None:
    assert build_kind(kind, tmp_path, where, OLD) == 0
    before = digest_of(where, kind)
    assert build_kind(kind, tmp_path, where, NEW) == 8
    assert "--replace publishes a new version" in capsys.readouterr().err
    assert digest_of(where, kind) == before
    assert build_kind(kind, tmp_path, where, NEW, "--replace") == 0
    assert published(where) == kind.files()
    assert before != digest_of(where, kind) == served_digest(where)
    assert json.loads((where / "coco.json").read_text())["previous"]["blake3"] == before


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_older_version_it_is_published_as_ever(tmp_path: Path, where: Path, kind: Kind) -> None:
    assert build_kind(kind, tmp_path, where, NEW, "--replace") == 0
    assert served_digest(where) == digest_of(where, kind)
    assert json.loads((where / "coco.json").read_text())["previous"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_versions_of_one_size_are_told_apart(tmp_path: Path, where: Path, kind: Kind) -> None:
    """Uncompressed images of equal trees but for the bytes have one size; the manifest's entries name ends as well."""
    for number, more in ((1, []), (2, ["--replace"])):
        assert build_kind(kind, tmp_path, where, bytes([number]) * 300_000, "--compression", "none", *more) == 0
        assert served_digest(where) == digest_of(where, kind)
    manifest = json.loads((where / "coco.json").read_text())
    assert manifest["size_bytes"] == manifest["previous"]["size_bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_version_has_the_format_of_the_one_before_unless_said_otherwise(
    tmp_path: Path, where: Path, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_kind(kind, tmp_path, where, OLD) == 0
    before = digest_of(where, kind)
    other = EROFS if kind is SQUASHFS else SQUASHFS
    assert build_kind(other, tmp_path, where, NEW, "--replace") == 8
    assert f"--format {kind.name}" in capsys.readouterr().err
    assert (published(where), digest_of(where, kind)) == (kind.files(), before)
    assert build(tmp_path, where, NEW, "--replace") == 0
    assert published(where) == kind.files()
    assert before != digest_of(where, kind) == served_digest(where)


def test_images_that_were_made_by_hand_are_replaced_too(tmp_path, where) -> None:
    assert build(tmp_path, where, OLD) == 0
    (where / "coco.json").unlink()
    assert build(tmp_path, where, NEW, "--replace") == 0
    assert served_digest(where) == digest_of(where)


def test_a_manifest_that_belonged_to_another_image_is_replaced_and_not_handed_on(tmp_path, where) -> None:
    assert build(tmp_path, where, OLD) == 0
    by_hand = where / ".hand"
    shutil.copy(where / "coco.squashfs", by_hand)
    with by_hand.open("r+b") as file:
        file.write(b"hsqs\xff\xff")
    by_hand.rename(where / "coco.squashfs")
    assert build(tmp_path, where, NEW, "--replace") == 0
    assert served_digest(where) == digest_of(where)
    assert json.loads((where / "coco.json").read_text())["previous"] is None


@pytest.mark.root
def test_a_strangers_manifest_is_not_handed_on(tmp_path, where) -> None:
    assert build(tmp_path, where, OLD) == 0
    os.chown(where / "coco.json", 12345, 12345)
    assert build(tmp_path, where, NEW, "--replace") == 0
    assert json.loads((where / "coco.json").read_text())["previous"] is None
    assert (where / "coco.json").stat().st_uid == 0


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_who_may_read_it_stays_as_it_is_unless_said_otherwise(tmp_path, where, kind) -> None:
    assert build_kind(kind, tmp_path, where, OLD, "--group", "4242", "--mode", "0640") == 0
    os.chown(kind.image(where), 1234, 4242)
    assert build(tmp_path, where, NEW, "--replace") == 0
    for name in published(where):
        status = (where / name).stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4242, 0o640)
    assert build(tmp_path, where, OLD, "--replace", "--mode", "0644", "--group", "0") == 0
    status = kind.image(where).stat()
    assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0o644)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["coco.sqfs", "coco.sqsh", "coco.json"])
def test_what_build_did_not_make_is_not_replaced(tmp_path, where, capsys, name, kind) -> None:
    (where / name).write_bytes(b'{"precious": 1}')
    assert build_kind(kind, tmp_path, where, NEW, "--replace") == 8
    assert published(where) == [name]
    assert (where / name).read_bytes() == b'{"precious": 1}'
    assert "nothing was changed" in capsys.readouterr().err


def test_a_link_in_the_images_place_is_not_replaced(tmp_path, where) -> None:
    (where / "coco.squashfs").symlink_to("/etc/passwd")
    assert build(tmp_path, where, NEW, "--replace") == 8
    assert (where / "coco.squashfs").is_symlink()


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.stress)], ids=["some", "every"])
@pytest.mark.parametrize("with_manifest", [True, False], ids=["manifest", "by-hand"])
def test_killed_at_any_call_the_dataset_is_served_and_the_next_build_publishes(
    tmp_path: Path, where: Path, with_manifest: bool, every: bool
) -> None:
    """kill -9 at each system call that names, orders or removes something, one run for each.

    In `make test` at those around each name that is given, and at a quarter of the others.
    """
    assert build(tmp_path, where, OLD) == 0
    if not with_manifest:
        (where / "coco.json").unlink()
    keep = tmp_path / "keep"
    shutil.copytree(where, keep)
    tree = make_tree(tmp_path, NEW)
    seen = trace(CALLS, command(tree, where), tmp_path / "log")
    new = digest_of(where)
    main = seen[0].split()[0]
    own = [line.split(None, 1)[1] for line in seen if line.split()[0] == main]
    first = next(place for place, line in enumerate(own) if ".coco." in line)
    points = [(call, nth) for call, nth, place in numbered(own) if place >= first]
    assert len(points) > 12
    points = points if every else draw(points)
    ended = set()
    for call, nth in points:
        shutil.rmtree(where)
        shutil.copytree(keep, where)
        old = digest_of(where)
        killed = run_killed_at(call, nth, command(tree, where))
        assert killed.returncode != 0 or digest_of(where) == new
        assert digest_of(where) in (old, new)
        told = served_digest(where)
        assert told == digest_of(where) if with_manifest else told in (None, digest_of(where)), (call, nth)
        ended.add((digest_of(where) == new, told is not None))
        assert build(tmp_path, where, NEW, "--replace") == 0
        assert served_digest(where) == digest_of(where) == new
    assert ended == ({(False, True), (True, True)} if with_manifest else {(False, False), (True, False), (True, True)})


def draw(points: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Draw moments: the renames with what comes next, and a quarter of the others."""
    renames = [place for place, (call, _) in enumerate(points) if call.startswith("rename")]
    places = {*renames, *(place + 1 for place in renames)}
    others = sorted(set(range(len(points))) - places)
    places |= set(random.Random(1).sample(others, len(others) // 4))
    return [points[place] for place in sorted(places)]


def numbered(lines: list[str]) -> Iterator[tuple[str, int, int]]:
    """Give each call's name with its number among those of its name, and its place among all."""
    counts: dict[str, int] = {}
    for place, line in enumerate(lines):
        call = line.partition("(")[0]
        if call in CALLS.split(","):
            counts[call] = counts.get(call, 0) + 1
            yield call, counts[call], place


def test_a_node_that_looks_all_the_time_never_meets_a_wrong_pair(tmp_path, where) -> None:
    assert build(tmp_path, where, OLD) == 0
    ended = threading.Event()
    seen: set[str | None] = set()
    problems: list[object] = []

    def look() -> None:
        while not ended.is_set():
            with contextlib.suppress(FileNotFoundError):
                (entry,) = DirectoryOrigin(where).read(["coco.squashfs"], {})
                if entry is None or entry.image is None:
                    problems.append(entry)
                else:
                    seen.add(entry.image.generation.content_id)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        digests = {digest_of(where)}
        for number in range(20):
            publish_bytes(where, b"hsqs" + bytes(36) + (4096).to_bytes(8, "little") + bytes([number]) * 4048)
            digests.add(digest_of(where))
    finally:
        ended.set()
        looker.join()
    assert problems == []
    assert seen <= digests


def publish_bytes(where: Path, image: bytes) -> None:
    with Publication(open_directory(where), "coco", replaces=True) as publication:
        os.write(publication.fd, image)
        seal = publication.seal(lambda _done, _total: None)
        manifest = Manifest(
            size_bytes=seal.size_bytes,
            blake3=seal.blake3,
            ends_blake2b=seal.ends_blake2b,
            chunks=seal.chunk_list("coco"),
        )
        publication.publish(manifest, seal)


def test_of_builds_at_once_the_last_ones_image_and_manifest_stay_together(tmp_path, where) -> None:
    assert build(tmp_path, where, OLD) == 0
    images = [b"hsqs" + bytes(36) + (4096).to_bytes(8, "little") + bytes([number]) * 4048 for number in range(8)]
    threads = [threading.Thread(target=publish_bytes, args=(where, image)) for image in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert published(where) == FILES
    assert served_digest(where) == digest_of(where) == json.loads((where / "coco.json").read_text())["blake3"]


def test_a_builder_that_gives_names_keeps_others_waiting_and_a_dead_one_does_not(tmp_path, where) -> None:
    lock = where / ".coco.publishing"
    lock.touch()
    assert build(tmp_path, where, NEW) == 0, "left by one that was killed"
    assert published(where) == FILES
    holder = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        before = digest_of(where)
        process = subprocess.Popen(command(make_tree(tmp_path, OLD), where), stderr=subprocess.PIPE)
        wait_until(lambda: [*where.glob(".coco.*.building/image")], timeout_s=60)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert digest_of(where) == before
    finally:
        os.close(holder)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0
    assert digest_of(where) != before
    assert published(where) == FILES
