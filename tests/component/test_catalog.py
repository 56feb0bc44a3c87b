"""The source directory: real images, and everything else that a user may put there."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from blake3 import blake3

from scratch_slurm.domain.errors import ImageError, SourceError
from scratch_slurm.domain.model import Location, Permissions, SkippedImage
from scratch_slurm.node.origins.directory import DirectoryOrigin, Trust, open_file
from scratch_slurm.node.origins.imagefile import digest_ends
from tests.kit.generations import generation_of
from tests.kit.images import in_child, make_image


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One real image of each file system: suffix -> path."""
    folder = tmp_path_factory.mktemp("made")
    paths = {}
    for suffix, fs_type, program in ((".squashfs", "squashfs", "mksquashfs"), (".erofs", "erofs", "mkfs.erofs")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        paths[suffix] = folder / f"image{suffix}"
        make_image(paths[suffix], fs_type, files=2, file_bytes=20_000)
    return paths


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def squashfs(source, made):
    return Path(shutil.copy(made[".squashfs"], source / "coco.squashfs"))


def scan(source, *names, stamps=None):
    """Read the entries in a child with a deadline: whatever blocks is a failure, not a test that hangs."""
    return in_child(lambda: list(DirectoryOrigin(source).read(list(names), stamps or {})))


def scan_one(source, name, stamp=None):
    (entry,) = scan(source, name, stamps={name: stamp} if stamp else None)
    return entry


def reason(entry):
    assert entry.image is None
    return entry.skipped.reason


def write_manifest(image, **changed):
    body = {"size_bytes": image.stat().st_size, "blake3": blake3(image.read_bytes()).hexdigest(), **changed}
    path = image.with_suffix(".json")
    path.write_text(json.dumps(body))
    return path


# Listing.


def test_list_shows_image_files_sorted(source) -> None:
    for name in ("b.squashfs", "a.erofs", "c.sqsh", "d.sqfs", "a.json", "README", ".hidden.squashfs", "-x.squashfs"):
        (source / name).write_text("")
    (source / "e.squashfs").mkdir()
    (source / "sub").mkdir()
    (source / "sub" / "f.squashfs").write_text("")
    assert DirectoryOrigin(source).list() == ["a.erofs", "b.squashfs", "c.sqsh", "d.sqfs", "e.squashfs"]


def test_list_shows_no_file_whose_name_is_no_text(source) -> None:
    Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.squashfs")).write_text("")
    assert DirectoryOrigin(source).list() == []


def test_list_says_why_it_cannot(source) -> None:
    with pytest.raises(SourceError, match="cannot list the source: No such file or directory"):
        DirectoryOrigin(source / "missing").list()


# Good images.


@pytest.mark.parametrize(
    ("suffix", "name", "fs_type"),
    [
        (".squashfs", "coco.squashfs", "squashfs"),
        (".squashfs", "coco.sqsh", "squashfs"),
        (".squashfs", "coco.sqfs", "squashfs"),
        (".erofs", "coco.erofs", "erofs"),
    ],
)
def test_a_real_image_is_taken(source, made, suffix, name, fs_type) -> None:
    shutil.copy(made[suffix], source / name)
    status = (source / name).stat()
    entry = scan_one(source, name)
    assert entry.skipped is None
    assert (entry.image.dataset, entry.image.at, entry.image.fs_type) == ("coco", Location(str(source), name), fs_type)
    assert entry.image.generation == generation_of(source / name)
    assert (entry.image.size_bytes, entry.image.generation.content_id, entry.note) == (status.st_size, None, "")


def test_a_manifest_gives_the_digest(source, squashfs) -> None:
    write_manifest(squashfs)
    assert scan_one(source, squashfs.name).image.generation.content_id == blake3(squashfs.read_bytes()).hexdigest()


def test_a_file_that_is_not_there_is_no_entry(source, squashfs) -> None:
    first, second, third = scan(source, "a.squashfs", squashfs.name, "README")
    assert (first, third) == (None, None)
    assert second.image is not None


# Bad ones, and what else bears their name.


@pytest.mark.parametrize("suffix", [".squashfs", ".erofs"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_an_image_cut_short_is_skipped(source, made, suffix, kept) -> None:
    path = source / f"coco{suffix}"
    body = made[suffix].read_bytes()
    path.write_bytes(body[: int(len(body) * kept)])
    assert "is cut short" in reason(scan_one(source, path.name))


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        pytest.param("a.squashfs", b"", "is not a squashfs image", id="empty"),
        pytest.param("a.squashfs", b"hsqs", "is not a squashfs image", id="magic-only"),
        pytest.param("a.squashfs", b"x" * 8192, "is not a squashfs image", id="garbage"),
        pytest.param("a.erofs", b"", "is not an erofs image", id="empty-erofs"),
        pytest.param("a.erofs", b"\0" * 1024 + b"\xe2\xe1\xf5\xe0", "is not an erofs image", id="erofs-magic-only"),
        pytest.param("a.erofs", b"x" * 8192, "is not an erofs image", id="garbage-erofs"),
        pytest.param("a.squashfs", b"hsqs" + b"\xff" * 8188, "is cut short", id="absurd-size"),
        pytest.param(
            "a.erofs",
            b"\0" * 1024 + b"\xe2\xe1\xf5\xe0" + b"\xff" * 4096,
            "is cut short",
            id="absurd-size-erofs",
        ),
    ],
)
def test_garbage_is_skipped(source, name, body, message) -> None:
    (source / name).write_bytes(body)
    entry = scan_one(source, name)
    assert entry.skipped.file_name == name
    assert message in reason(entry)


@pytest.mark.parametrize(("suffix", "wrong"), [(".squashfs", ".erofs"), (".erofs", ".sqsh")])
def test_an_image_with_the_other_suffix_is_skipped(source, made, suffix, wrong) -> None:
    shutil.copy(made[suffix], source / f"coco{wrong}")
    assert "no magic number" in reason(scan_one(source, f"coco{wrong}"))


def test_an_image_that_ends_within_a_sector_is_skipped(source, squashfs) -> None:
    """A loop device has whole sectors only: the end of such an image could not be read."""
    head = squashfs.read_bytes()
    used = int.from_bytes(head[40:48], "little")
    assert used % 512, "the test needs an image whose last block is not full"
    squashfs.write_bytes(head[:used])
    assert "not a multiple of 512" in reason(scan_one(source, squashfs.name))


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_null(path):
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: path.symlink_to("/etc/passwd"), "is a symbolic link", id="symlink"),
        pytest.param(lambda path: path.symlink_to("/nowhere"), "is a symbolic link", id="dangling-symlink"),
        pytest.param(Path.mkdir, "is not a regular file", id="directory"),
        pytest.param(os.mkfifo, "is not a regular file", id="fifo"),
        pytest.param(make_socket, "is not a regular file", id="socket"),
        pytest.param(make_null, "is not a regular file", id="device", marks=pytest.mark.root),
    ],
)
def test_what_is_no_regular_file_is_skipped_without_opening_it(source, make, message) -> None:
    make(source / "a.squashfs")
    assert reason(scan_one(source, "a.squashfs")) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(os.mkfifo, "is not a regular file", id="fifo"),
        pytest.param(lambda path: path.symlink_to("/etc/passwd"), "is a symbolic link", id="symlink"),
    ],
)
def test_what_takes_a_file_s_place_between_stat_and_open_is_skipped(source, squashfs, make, message) -> None:
    def look_and_swap():
        real = os.lstat

        def lstat(path, *arguments, **options):
            status = real(path, *arguments, **options)
            if Path(path) == squashfs:
                squashfs.unlink()
                make(squashfs)
            return status

        # The race, lost on purpose: the only change is in this child.
        Path.lstat = lstat  # type: ignore[assignment,method-assign]
        return list(DirectoryOrigin(source).read([squashfs.name], {}))

    (entry,) = in_child(look_and_swap)
    assert reason(entry) == message


BAD_MANIFESTS = [
    pytest.param('{"size_bytes": "many", "blake3": "00"}', "is not readable", id="size-in-words"),
    pytest.param('{"size_bytes": 1e999, "blake3": "00"}', "is not readable", id="endless-size"),
    pytest.param('{"size_bytes": null, "blake3": "00"}', "is not readable", id="no-size"),
    pytest.param('{"blake3": "0", "size_bytes": ' + "9" * 5000 + "}", "is not readable", id="size-of-5000-digits"),
    pytest.param('{"size_bytes": 1, "blake3": "', "is not readable", id="torn"),
    pytest.param('{"size_bytes": 1, "blake3": "00"' + " " * 70_000 + "}", "is not readable", id="beyond-the-limit"),
    pytest.param('{"size_bytes": 1, "blake3": "00"}', "no BLAKE3 digest", id="short-digest"),
    pytest.param('{"size_bytes": 1, "blake3": "' + "G" * 64 + '"}', "no BLAKE3 digest", id="digest-of-other-letters"),
    pytest.param(
        '{"size_bytes": 1, "blake3": "' + "0" * 64 + '"}', "is for 1 bytes, the image has", id="of-another-size"
    ),
    pytest.param(
        '{"size_bytes": 1, "blake3": "' + "0" * 64 + '", "ends_blake2b": [7]}', "in ends_blake2b", id="ends-no-digest"
    ),
]


@pytest.mark.parametrize(("body", "message"), BAD_MANIFESTS)
def test_a_bad_manifest_keeps_only_its_own_image_out(source, squashfs, made, body, message) -> None:
    squashfs.with_suffix(".json").write_text(body)
    shutil.copy(made[".squashfs"], source / "next.squashfs")
    entry, after = scan(source, squashfs.name, "next.squashfs")
    assert message in reason(entry) and "coco.json" in reason(entry)
    assert after.image.dataset == "next"


FOREIGN = [
    pytest.param(b"", id="empty"),
    pytest.param(b"{", id="torn"),
    pytest.param(b"[1]", id="a-list"),
    pytest.param(b'["size_bytes", "blake3"]', id="a-list-of-our-words"),
    pytest.param(b"null", id="null"),
    pytest.param(b"{}", id="no-keys"),
    pytest.param(b'{"info": {"description": "annotations"}, "images": []}', id="annotations"),
    pytest.param(b'{"size_bytes": 1}', id="half-of-our-keys"),
    pytest.param(b'{"files": {"size_bytes": 1, "blake3": "00"}}', id="our-keys-deeper"),
    pytest.param(b"[" * 60_000, id="nested-beyond-the-stack"),
    pytest.param(b'{"a":' * 12_000, id="keys-nested-beyond-the-stack"),
    pytest.param("\ud800".encode("utf-8", "surrogatepass"), id="no-text"),
    pytest.param(b"[" + b"1," * 40_000 + b"1]", id="larger-than-any-manifest"),
]


@pytest.mark.parametrize("body", FOREIGN)
def test_a_json_file_without_the_keys_of_a_manifest_is_none(source, squashfs, body) -> None:
    squashfs.with_suffix(".json").write_bytes(body)
    entry = scan_one(source, squashfs.name)
    assert entry.image is not None and entry.image.generation.content_id is None
    assert entry.note == "coco.json has not the keys of a manifest (size_bytes and blake3) and is taken for none"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        pytest.param(os.mkfifo, "is not a regular file", id="fifo"),
        pytest.param(Path.mkdir, "is not a regular file", id="directory"),
        pytest.param(lambda path: path.symlink_to("/etc/passwd"), "is a symbolic link", id="symlink"),
    ],
)
def test_what_is_no_regular_file_is_no_manifest(source, squashfs, make, what) -> None:
    make(squashfs.with_suffix(".json"))
    entry = scan_one(source, squashfs.name)
    assert entry.image is not None
    assert entry.note == f"coco.json {what} and is taken for no manifest"


@pytest.mark.root
@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda path: os.chown(path, 4711, 0), "belongs to user 4711", id="a-stranger-s"),
        pytest.param(lambda path: path.chmod(0o666), "may be written by everybody", id="open-to-all"),
        pytest.param(lambda path: path.chmod(0o664), "may be written by group", id="open-to-a-group"),
    ],
)
def test_a_manifest_that_others_may_have_written_is_not_obeyed(source, squashfs, change, why) -> None:
    change(write_manifest(squashfs, blake3="0" * 64))
    entry = scan_one(source, squashfs.name)
    assert entry.image is not None and entry.image.generation.content_id is None
    assert why in entry.note and entry.note.endswith("; it is taken for no manifest")


@pytest.mark.root
def test_a_manifest_of_a_trusted_owner_counts(source, squashfs) -> None:
    manifest = write_manifest(squashfs)
    os.chown(manifest, 4711, 0)
    trust = Trust(Permissions(4711, 0, 0o755), (4711,))
    (entry,) = in_child(lambda: list(DirectoryOrigin(source, trust=trust).read([squashfs.name], {})))
    assert entry is not None and entry.image is not None
    assert entry.image.generation.content_id == blake3(squashfs.read_bytes()).hexdigest()


def test_a_manifest_with_the_digest_of_the_ends_is_taken_for_its_image_alone(source, squashfs) -> None:
    body = squashfs.read_bytes()
    ends = hashlib.blake2b(body[:65536] + body[-65536:], digest_size=32).hexdigest()
    write_manifest(squashfs, ends_blake2b=ends)
    assert scan_one(source, squashfs.name).image is not None
    for at in (5000, len(body) - 1):
        squashfs.write_bytes(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        assert reason(scan_one(source, squashfs.name)).startswith("its manifest coco.json is of another image")


@pytest.mark.parametrize("size", [1, 1000, 65_536, 100_000, 131_072, 300_000])
def test_the_digest_of_the_ends_is_that_of_head_and_tail(tmp_path, size) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    command = ["sh", "-c", '(head -c 65536 "$1"; tail -c 65536 "$1") | b2sum -l 256', "sh", path]
    expected = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    with path.open("rb") as file:
        assert digest_ends(file.fileno(), size) == expected


# Stamps.


def test_an_unchanged_file_is_not_opened(source, squashfs) -> None:
    write_manifest(squashfs)
    stamp = scan_one(source, squashfs.name).stamp

    def look():
        def refuse(*arguments, **options):
            raise AssertionError("opened")

        os.open = refuse
        return list(DirectoryOrigin(source).read([squashfs.name], {squashfs.name: stamp}))

    (entry,) = in_child(look)
    assert (entry.stamp, entry.image, entry.skipped) == (stamp, None, None)


def test_a_bad_file_is_not_opened_again_either(source) -> None:
    (source / "a.squashfs").write_bytes(b"x" * 8192)
    stamp = scan_one(source, "a.squashfs").stamp
    assert stamp
    entry = scan_one(source, "a.squashfs", stamp)
    assert (entry.image, entry.skipped) == (None, None)


def rewrite(image):
    image.write_bytes(image.read_bytes())


def replace(image):
    fresh = image.with_name("fresh")
    shutil.copy2(image, fresh)
    fresh.rename(image)


def touch(image):
    os.utime(image, ns=(0, 1))


def restrict(image):
    image.chmod(0o600)


def add_manifest(image):
    write_manifest(image)


@pytest.mark.parametrize("change", [rewrite, replace, touch, restrict, add_manifest])
def test_a_changed_file_is_read_again(source, squashfs, change) -> None:
    os.utime(squashfs, ns=(0, 0))
    stamp = scan_one(source, squashfs.name).stamp
    change(squashfs)
    entry = scan_one(source, squashfs.name, stamp)
    assert entry.image is not None
    assert entry.stamp != stamp


def test_a_changed_or_removed_manifest_is_noticed(source, squashfs) -> None:
    manifest = write_manifest(squashfs)
    stamp = scan_one(source, squashfs.name).stamp
    write_manifest(squashfs, blake3="0" * 64, size_bytes=squashfs.stat().st_size)
    os.utime(manifest, ns=(0, 1))
    changed = scan_one(source, squashfs.name, stamp)
    assert changed.image.generation.content_id == "0" * 64
    manifest.unlink()
    assert scan_one(source, squashfs.name, changed.stamp).image.generation.content_id is None


def test_a_mended_image_is_taken_at_the_next_scan(source, squashfs) -> None:
    body = squashfs.read_bytes()
    squashfs.write_bytes(body[:4096])
    bad = scan_one(source, squashfs.name)
    squashfs.write_bytes(body)
    assert bad.skipped is not None
    assert scan_one(source, squashfs.name, bad.stamp).image is not None


@pytest.mark.root
def test_what_this_node_may_not_read_is_skipped_and_tried_again(source, squashfs) -> None:
    """As on NFS, where root is squashed: here another user looks."""
    squashfs.chmod(0o600)
    for folder in source.parents:
        if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o077 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    source.chmod(0o755)

    def look():
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)
        return list(DirectoryOrigin(source).read([squashfs.name], {}))

    (entry,) = in_child(look)
    assert entry.skipped == SkippedImage(squashfs.name, "cannot read: Permission denied")
    assert entry.stamp == ""


# Generations.


def open_planned(image):
    os.close(open_file(Path(str(image.at)), image.generation).descriptor)


def replace_by_another(image):
    """Another image of the same size and time, in the same place."""
    status = image.stat()
    fresh = image.with_name("fresh")
    body = bytearray(image.read_bytes())
    body[8] ^= 1  # when it was made
    fresh.write_bytes(body)
    os.utime(fresh, ns=(status.st_mtime_ns, status.st_mtime_ns))
    fresh.rename(image)


def test_an_open_file_of_the_planned_generation_passes(source, squashfs) -> None:
    open_planned(scan_one(source, squashfs.name).image)


@pytest.mark.parametrize("change", [replace_by_another, touch, lambda image: os.truncate(image, 512)])
def test_an_open_file_of_another_generation_does_not(source, squashfs, change) -> None:
    image = scan_one(source, squashfs.name).image
    change(squashfs)
    with pytest.raises(ImageError, match="is another image now"):
        open_planned(image)


@pytest.mark.parametrize("with_manifest", [True, False], ids=["manifest", "no-manifest"])
def test_another_inode_alone_is_no_other_generation(source, squashfs, with_manifest) -> None:
    """As on file systems that invent inode numbers, and after the image was moved to another disk with its times."""
    if with_manifest:
        write_manifest(squashfs)
    first = scan_one(source, squashfs.name).image
    inode = squashfs.stat().st_ino
    replace(squashfs)
    assert squashfs.stat().st_ino != inode
    second = scan_one(source, squashfs.name).image
    assert (first.generation, first.generation.id) == (second.generation, second.generation.id)
    open_planned(first)


def test_without_a_manifest_another_image_of_the_same_size_and_time_is_another_generation(source, squashfs) -> None:
    first = scan_one(source, squashfs.name).image
    replace_by_another(squashfs)
    assert scan_one(source, squashfs.name).image.generation != first.generation


def test_another_digest_in_the_manifest_is_another_generation(source, squashfs) -> None:
    write_manifest(squashfs)
    first = scan_one(source, squashfs.name).image
    write_manifest(squashfs, blake3="0" * 64)
    assert scan_one(source, squashfs.name).image.generation.id != first.generation.id


def test_a_manifest_that_comes_later_tells_what_the_image_was_called_before(source, squashfs) -> None:
    before = scan_one(source, squashfs.name).image.generation
    write_manifest(squashfs)
    after = scan_one(source, squashfs.name).image.generation
    assert before.id in after.former_ids
    assert after.id != before.id


def test_ids_of_the_releases_that_looked_at_inodes_are_known(source, squashfs) -> None:
    """What 0.1.0 called an image: with a manifest its id is the same, without one a former id."""
    status = squashfs.stat()
    size, mtime = status.st_size, status.st_mtime_ns

    def id_of_0_1_0(*parts):
        return hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).hexdigest()

    assert id_of_0_1_0(status.st_ino, size, mtime) in scan_one(source, squashfs.name).image.generation.former_ids
    write_manifest(squashfs)
    generation = scan_one(source, squashfs.name).image.generation
    assert generation.id == id_of_0_1_0(0, size, mtime, blake3(squashfs.read_bytes()).hexdigest())
    assert id_of_0_1_0(status.st_ino, size, mtime) in generation.former_ids


@pytest.mark.parametrize("change", [touch, lambda image: os.truncate(image, 512)])
def test_an_open_file_of_another_time_or_size_is_another_image_whatever_the_manifest_says(
    source, squashfs, change
) -> None:
    write_manifest(squashfs)
    image = scan_one(source, squashfs.name).image
    change(squashfs)
    with pytest.raises(ImageError, match="is another image now"):
        open_planned(image)
