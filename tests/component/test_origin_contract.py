"""What an origin does, whatever its kind: one contract.

For a new kind write a `Place` of it, and add that to KINDS. A place is the kind's storage as people see it: they put
images there, replace them and take them away. The tests go by what `Place` has, and by nothing that files have and
objects have not: no inode, no user, no path.
"""

import contextlib
import mmap
import os
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import pytest
from blake3 import blake3

from scratch_slurm.domain.access import is_public
from scratch_slurm.domain.errors import ImageError, ScratchError, SourceError
from scratch_slurm.domain.manifest import (
    CHUNK_BYTES,
    CHUNKS_MAGIC,
    MANIFEST_LIMIT_BYTES,
    ChunkList,
    Manifest,
    format_manifest,
)
from scratch_slurm.domain.model import Location, SourceImage
from scratch_slurm.node.origins.interface import ChunkDigests, Entry, Origin, Supplier
from scratch_slurm.node.origins.kinds import find_origin
from scratch_slurm.node.rawio import BLOCK_BYTES
from tests.kit.images import in_child

SIZE_BYTES = 300 * BLOCK_BYTES + 512
"""Of an image that ends within a block, as most do."""


class Place(Protocol):
    """One place that an origin of a kind reads."""

    name: str
    """The origin's name, as `find_origin` takes it."""
    is_mountable: bool
    """Whether a loop device can read images where they lie."""

    def put(self, key: str, body: bytes) -> None:
        """Put bytes under a name: new ones, or a later version in the place of what is there."""

    def put_elsewhere(self, key: str) -> None:
        """Move what is there to where the storage has another number for it; nobody changed it."""

    def overwrite(self, key: str, body: bytes) -> None:
        """Write other bytes into what is there, under its readers, where the storage lets anybody do so."""

    def remove(self, key: str) -> None:
        """Take it away."""

    def restrict(self, key: str) -> None:
        """Let not everybody read it any more."""

    def distrust(self, key: str) -> None:
        """Let it look as if somebody had put it there whom the site does not trust."""

    def close(self) -> None:
        """Let the whole place be gone."""

    def plant_traps(self) -> dict[str, str]:
        """Put whatever else the storage can hold under the names of images: links, what blocks whoever opens it.

        Returns: name -> what the reason for leaving it out is.
        """

    def plant_twins(self, key: str) -> tuple[str, ...]:
        """Put the same generation of what is there where no key may lead: outside the place, and in folders of it.

        Returns: keys by which a careless origin would find it there.
        """


class Directory:
    """A mounted directory."""

    is_mountable = True

    def __init__(self, folder: Path) -> None:
        self.path = folder / "source"
        self.path.mkdir()
        self.name = str(self.path)
        self._second = 1_000_000_000

    def put(self, key: str, body: bytes) -> None:
        self._second += 1
        new = self.path / ".new"
        new.write_bytes(body)
        os.utime(new, (self._second, self._second))
        new.rename(self.path / key)

    def put_elsewhere(self, key: str) -> None:
        path, new = self.path / key, self.path / ".new"
        before = path.stat()
        new.write_bytes(path.read_bytes())
        os.utime(new, ns=(before.st_mtime_ns, before.st_mtime_ns))
        new.rename(path)
        assert path.stat().st_ino != before.st_ino

    def overwrite(self, key: str, body: bytes) -> None:
        self._second += 1
        (self.path / key).write_bytes(body)
        os.utime(self.path / key, (self._second, self._second))

    def remove(self, key: str) -> None:
        (self.path / key).unlink()

    def restrict(self, key: str) -> None:
        (self.path / key).chmod(0o640)

    def distrust(self, key: str) -> None:
        (self.path / key).chmod(0o666)

    def close(self) -> None:
        self.path.rename(self.path.with_name("gone"))

    def plant_traps(self) -> dict[str, str]:
        elsewhere = self.path.with_name("elsewhere.squashfs")
        elsewhere.write_bytes(make_body())
        (self.path / "link.squashfs").symlink_to(elsewhere)
        (self.path / "nowhere.squashfs").symlink_to("/nowhere")
        (self.path / "folder.squashfs").mkdir()
        os.mkfifo(self.path / "fifo.squashfs")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self.path / "socket.squashfs"))
        links = dict.fromkeys(("link.squashfs", "nowhere.squashfs"), "is a symbolic link")
        others = dict.fromkeys(("folder.squashfs", "fifo.squashfs", "socket.squashfs"), "is not a regular file")
        return links | others

    def plant_twins(self, key: str) -> tuple[str, ...]:
        (self.path / "sub").mkdir()
        outside, below = self.path.with_name("outside.squashfs"), self.path / "sub" / "below.squashfs"
        for twin in (outside, below):
            shutil.copy2(self.path / key, twin)
        return (str(outside), "../outside.squashfs", "sub/../../outside.squashfs", "sub/below.squashfs", f"./{key}")


KINDS = [Directory]


def make_body(seed: int = 0, size_bytes: int = SIZE_BYTES, used_bytes: int | None = None) -> bytes:
    """Make the bytes of a squashfs image, as far as its first ones tell.

    Args:
        used_bytes: what its superblock says that it has; None: the truth.
    """
    used = size_bytes if used_bytes is None else used_bytes
    head = b"hsqs" + seed.to_bytes(36, "little") + used.to_bytes(8, "little") + bytes(48)
    return head + random.Random(seed).randbytes(size_bytes - len(head))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made: Place = request.param(tmp_path)
    return made


def look(place: Place, *names: str, stamps: dict[str, str] | None = None) -> list[Entry | None]:
    """Look as a worker does. What blocks is a failure, not a test that hangs."""

    def do() -> list[Entry | None]:
        origin = find_origin(place.name)
        origin.reach()
        return list(origin.read(names, stamps or {}))

    return in_child(do)


def look_at(place: Place, stamp: str = "") -> Entry:
    (entry,) = look(place, "coco.squashfs", stamps={"coco.squashfs": stamp} if stamp else {})
    assert entry is not None
    return entry


def listed(place: Place) -> SourceImage:
    entry = look_at(place)
    assert entry.image is not None, entry.skipped
    return entry.image


def reason(entry: Entry | None) -> str:
    assert entry is not None and entry.image is None and entry.skipped is not None
    return entry.skipped.reason


def origin_of(image: SourceImage) -> Origin:
    """Find an image's origin as another process does, which knows nothing but the image."""
    return find_origin(image.at.origin)


@contextlib.contextmanager
def supplier_of(image: SourceImage) -> Iterator[Supplier]:
    with contextlib.closing(origin_of(image).open_supplier(image)) as supplier:
        yield supplier


def read(supplier: Supplier, offset: int, length: int) -> bytes:
    """Read a piece into memory of whole blocks."""
    with mmap.mmap(-1, -(-length // BLOCK_BYTES) * BLOCK_BYTES) as memory, memoryview(memory) as view:
        got = supplier.read(view, offset, length)
        assert 0 <= got <= length
        return bytes(view[:got])


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


# Listing.


def test_image_files_are_listed_in_order_and_nothing_else(place: Place) -> None:
    for name in ("b.squashfs", "a.erofs", "c.sqsh", "d.sqfs", "a.json", "README", ".hidden.squashfs", "-x.squashfs"):
        place.put(name, b"")
    assert find_origin(place.name).list() == ["a.erofs", "b.squashfs", "c.sqsh", "d.sqfs"]


def test_an_empty_place_is_reached_and_lists_nothing(place: Place) -> None:
    origin = find_origin(place.name)
    origin.reach()
    assert origin.list() == []


def test_a_place_that_is_gone_cannot_be_reached_or_listed(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    place.close()
    for ask in (find_origin(place.name).reach, find_origin(place.name).list):
        with pytest.raises(SourceError):
            ask()


def test_a_name_of_no_kind_is_refused() -> None:
    with pytest.raises(SourceError, match="gopher://datasets"):
        find_origin("gopher://datasets")


# Entries.


def test_an_image_has_its_dataset_and_is_found_again_by_its_location(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    image = listed(place)
    assert (image.dataset, image.fs_type, image.size_bytes) == ("coco", "squashfs", SIZE_BYTES)
    assert image.at.origin == place.name
    sent = msgspec.json.decode(msgspec.json.encode(image), type=SourceImage)
    assert sent == image
    with supplier_of(sent) as supplier:
        assert read(supplier, 0, BLOCK_BYTES) == make_body()[:BLOCK_BYTES]


def test_what_is_not_there_is_no_entry(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    missing, found, other = look(place, "a.squashfs", "coco.squashfs", "README")
    assert (missing, other) == (None, None)
    assert found is not None and found.image is not None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"", "is not a squashfs image", id="empty"),
        pytest.param(b"hsqs", "is not a squashfs image", id="magic-alone"),
        pytest.param(b"x" * 8192, "is not a squashfs image", id="garbage"),
        pytest.param(make_body(used_bytes=2**62), "is cut short", id="absurd-size"),
        pytest.param(make_body()[: SIZE_BYTES // 2], "is cut short", id="cut-short"),
        pytest.param(make_body(used_bytes=SIZE_BYTES + 3) + b"end", "not a multiple of 512", id="within-a-sector"),
    ],
)
def test_what_is_no_image_is_left_out_with_a_reason_and_keeps_nobody_out(place: Place, body: bytes, why: str) -> None:
    place.put("bad.squashfs", body)
    place.put("coco.squashfs", make_body())
    bad, coco = look(place, "bad.squashfs", "coco.squashfs")
    assert why in reason(bad)
    assert bad is not None and bad.skipped is not None and bad.skipped.file_name == "bad.squashfs"
    assert coco is not None and coco.image is not None


def test_whatever_else_bears_the_name_of_an_image_is_left_out_and_blocks_nobody(place: Place) -> None:
    traps = place.plant_traps()
    place.put("zebra.squashfs", make_body())
    *found, zebra = look(place, *traps, "zebra.squashfs")
    assert [reason(entry) for entry in found] == list(traps.values())
    assert zebra is not None and zebra.image is not None


def test_an_image_that_is_not_trusted_is_left_out(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    stamp = look_at(place).stamp
    place.distrust("coco.squashfs")
    assert reason(look_at(place, stamp))


def test_who_may_read_an_image_is_told(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    before = look_at(place)
    assert before.image is not None and is_public(before.image.permissions)
    place.restrict("coco.squashfs")
    after = look_at(place, before.stamp)
    assert after.image is not None and not is_public(after.image.permissions)
    assert after.image.generation == before.image.generation


# Stamps.


def test_what_did_not_change_is_not_told_again(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    place.put("bad.squashfs", b"garbage")
    before = look(place, "coco.squashfs", "bad.squashfs")
    stamps = {entry.file_name: entry.stamp for entry in before if entry is not None}
    assert all(stamps.values())
    for entry in look(place, "coco.squashfs", "bad.squashfs", stamps=stamps):
        assert entry is not None
        assert (entry.stamp, entry.image, entry.skipped) == (stamps[entry.file_name], None, None)


def other_bytes(place: Place) -> None:
    place.put("coco.squashfs", make_body(1))


def other_size(place: Place) -> None:
    place.put("coco.squashfs", make_body(0, SIZE_BYTES + 512))


def written_in_place(place: Place) -> None:
    place.overwrite("coco.squashfs", make_body(1))


def written_shorter(place: Place) -> None:
    place.overwrite("coco.squashfs", make_body(0, 9 * BLOCK_BYTES))


def removed(place: Place) -> None:
    place.remove("coco.squashfs")


def with_a_manifest(place: Place) -> None:
    put_manifest(place, make_body())


OTHERS = [other_bytes, other_size, written_in_place, written_shorter]


@pytest.mark.parametrize("change", [*OTHERS, with_a_manifest])
def test_what_changed_is_told_and_is_another_generation(place: Place, change: Callable[[Place], None]) -> None:
    place.put("coco.squashfs", make_body())
    before = look_at(place)
    change(place)
    after = look_at(place, before.stamp)
    assert after.stamp != before.stamp
    assert before.image is not None and after.image is not None
    assert after.image.generation.id != before.image.generation.id


def test_what_was_bad_is_taken_when_it_is_mended(place: Place) -> None:
    place.put("coco.squashfs", make_body()[:4096])
    bad = look_at(place)
    place.put("coco.squashfs", make_body())
    assert bad.skipped is not None and look_at(place, bad.stamp).image is not None


# Generations and manifests.


def put_manifest(place: Place, body: bytes, **more: object) -> None:
    said = {"size_bytes": len(body), "blake3": blake3(body).hexdigest(), **more}
    place.put("coco.json", format_manifest(msgspec.convert(said, Manifest)).encode())


@pytest.mark.parametrize("has_manifest", [True, False], ids=["manifest", "no-manifest"])
def test_another_number_for_the_same_image_is_no_other_generation(place: Place, has_manifest: bool) -> None:
    place.put("coco.squashfs", make_body())
    if has_manifest:
        put_manifest(place, make_body())
    before = listed(place)
    with supplier_of(before) as supplier:
        place.put_elsewhere("coco.squashfs")
        supplier.check_unchanged()
    assert listed(place).generation.id == before.generation.id
    with supplier_of(before):
        pass


def test_an_id_is_sixteen_digits(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    generation_id = listed(place).generation.id
    assert len(generation_id) == 16 and set(generation_id) <= set("0123456789abcdef")


def test_a_manifest_gives_the_content_id_and_what_the_image_was_called_before_is_known(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    before = listed(place).generation
    put_manifest(place, make_body())
    after = listed(place).generation
    assert (before.content_id, after.content_id) == (None, blake3(make_body()).hexdigest())
    assert before.id in after.former_ids
    put_manifest(place, make_body(), blake3="0" * 64)
    assert listed(place).generation.id not in (before.id, after.id)


def test_a_manifest_of_another_image_keeps_its_image_out(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    put_manifest(place, make_body(0, SIZE_BYTES + 512))
    assert "its manifest coco.json is for" in reason(look_at(place))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'{"annotations": []}', id="somebody-s-own"),
        pytest.param(b"\xff" * 100, id="garbage"),
        pytest.param(b"[" * 10_000_000, id="very-large"),
    ],
)
def test_a_json_file_that_is_no_manifest_keeps_nobody_out(place: Place, text: bytes) -> None:
    place.put("coco.squashfs", make_body())
    place.put("coco.json", text)
    entry = look_at(place)
    assert entry.image is not None and entry.image.generation.content_id is None
    assert "coco.json" in entry.note


def test_a_manifest_is_read_no_further_than_its_bound(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    put_manifest(place, make_body(), built_by=" " * MANIFEST_LIMIT_BYTES)
    assert "not readable" in reason(look_at(place))


def test_a_manifest_that_is_not_trusted_is_not_obeyed(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    put_manifest(place, make_body(), blake3="0" * 64)
    place.distrust("coco.json")
    entry = look_at(place)
    assert entry.image is not None and entry.image.generation.content_id is None
    assert "coco.json" in entry.note


# Suppliers.


@pytest.mark.parametrize("piece_blocks", [1, 7, 64, 1000])
def test_an_image_is_read_in_any_order_and_ends_where_it_ends(place: Place, piece_blocks: int) -> None:
    place.put("coco.squashfs", make_body())
    piece = piece_blocks * BLOCK_BYTES
    offsets = list(range(0, SIZE_BYTES, piece))
    random.Random(piece).shuffle(offsets)
    with supplier_of(listed(place)) as supplier:
        pieces = {offset: read(supplier, offset, piece) for offset in offsets}
        supplier.check_unchanged()
        assert supplier.name
    assert b"".join(pieces[offset] for offset in sorted(pieces)) == make_body()


def test_many_threads_read_at_once(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    piece, readers = 4 * BLOCK_BYTES, 8
    pieces: dict[int, bytes] = {}
    begin = threading.Barrier(readers)
    with supplier_of(listed(place)) as supplier:

        def run(number: int) -> None:
            begin.wait()
            for offset in range(number * piece, SIZE_BYTES, readers * piece):
                pieces[offset] = read(supplier, offset, piece)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(readers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert b"".join(pieces[offset] for offset in sorted(pieces)) == make_body()


@pytest.mark.parametrize("change", [*OTHERS, removed])
def test_what_was_read_of_two_images_is_never_taken_for_one(place: Place, change: Callable[[Place], None]) -> None:
    """Some storages go on to give the old bytes, and may."""
    place.put("coco.squashfs", make_body())
    with supplier_of(listed(place)) as supplier:
        half = 100 * BLOCK_BYTES
        got = read(supplier, 0, half)
        change(place)
        with contextlib.suppress(ImageError, SourceError):
            got += read(supplier, half, SIZE_BYTES + BLOCK_BYTES - half)
            supplier.check_unchanged()
            assert got == make_body()


@pytest.mark.parametrize("change", OTHERS)
def test_a_copy_of_another_generation_is_not_begun(place: Place, change: Callable[[Place], None]) -> None:
    place.put("coco.squashfs", make_body())
    image = listed(place)
    change(place)
    with pytest.raises(ImageError), supplier_of(image):
        pass


def test_an_image_that_is_gone_cannot_be_read(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    image = listed(place)
    place.remove("coco.squashfs")
    with pytest.raises((SourceError, ImageError)), supplier_of(image):
        pass


def test_a_supplier_that_is_closed_or_was_refused_holds_nothing(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    image = listed(place)
    before = open_files()
    with supplier_of(image) as supplier:
        read(supplier, 0, BLOCK_BYTES)
    assert open_files() == before
    other_bytes(place)
    with pytest.raises(ImageError):
        origin_of(image).open_supplier(image)
    assert open_files() == before


def test_a_manifest_may_promise_chunks_and_only_what_it_binds_is_taken(place: Place) -> None:
    body = make_body()
    chunks = CHUNKS_MAGIC + blake3(body).digest()
    place.put("coco.squashfs", body)
    with supplier_of(listed(place)) as supplier:
        assert supplier.read_chunk_digests() is None
    chunk_list = ChunkList("coco.chunks", len(chunks), blake3(chunks).hexdigest())
    put_manifest(place, body, chunks=msgspec.to_builtins(chunk_list))
    place.put("coco.chunks", chunks)
    with supplier_of(listed(place)) as supplier:
        assert supplier.read_chunk_digests() == ChunkDigests(CHUNK_BYTES, blake3(body).digest())
    place.put("coco.chunks", chunks[:-1] + b"x")
    with supplier_of(listed(place)) as supplier:
        assert supplier.read_chunk_digests() is None


# Mounting where it lies.


def test_an_image_can_be_mounted_where_it_lies_or_not(place: Place) -> None:
    place.put("coco.squashfs", make_body())
    image = listed(place)
    opened = origin_of(image).open_mountable(image)
    assert (opened is not None) == place.is_mountable
    if opened is not None:
        with os.fdopen(opened.descriptor, "rb") as file:
            assert file.read() == make_body()
        assert opened.permissions == image.permissions
        place.restrict("coco.squashfs")
        now = origin_of(image).open_mountable(image)
        assert now is not None
        os.close(now.descriptor)
        assert not is_public(now.permissions), "as it is, and not as it was listed"


@pytest.mark.parametrize("change", [*OTHERS, removed])
def test_another_generation_is_not_mounted(place: Place, change: Callable[[Place], None]) -> None:
    place.put("coco.squashfs", make_body())
    image = listed(place)
    change(place)
    if place.is_mountable:
        before = open_files()
        with pytest.raises(ScratchError if change is removed else ImageError):
            origin_of(image).open_mountable(image)
        assert open_files() == before


# Hostile keys.


@pytest.mark.parametrize("key", ["", ".", "..", "/etc/passwd", "coco.squashfs/", "a\0b"])
def test_a_key_that_is_no_name_of_an_image_is_refused(place: Place, key: str) -> None:
    place.put("coco.squashfs", make_body())
    refuse(place, key)


def test_no_key_leads_out_of_the_place(place: Place) -> None:
    """Nothing but the key is wrong: the image there is of the generation that is asked for."""
    place.put("coco.squashfs", make_body())
    for key in place.plant_twins("coco.squashfs"):
        refuse(place, key)


def refuse(place: Place, key: str) -> None:
    image = listed(place)
    forged = SourceImage(image.dataset, Location(place.name, key), image.generation, image.fs_type)
    assert look(place, key) == [None]
    for begin in (origin_of(forged).open_supplier, origin_of(forged).open_mountable):
        with pytest.raises(ScratchError):
            begin(forged)
