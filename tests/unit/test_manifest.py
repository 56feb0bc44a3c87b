"""Manifests: what is written is read again, of any version up to ours; what only helps harms nobody."""

import json
from typing import Any

import pytest

from scratch_slurm.domain.about import LIMITS, About, check_about, read_about
from scratch_slurm.domain.errors import ImageError, UsageError
from scratch_slurm.domain.manifest import (
    CHUNK_BYTES,
    TYPE,
    VERSION,
    ChunkList,
    Manifest,
    Promise,
    format_manifest,
    is_manifest,
    parse_manifest,
)

CHUNKS = ChunkList("coco.chunks", 64, "c" * 64)
FULL = Manifest(
    dataset="coco",
    size_bytes=7,
    blake3="a" * 64,
    ends_blake2b="e" * 64,
    chunks=CHUNKS,
    about=About("Pictures, caf\u00e9", "CC-BY-4.0", "Vision group", "vision@example.org", "https://example.org/coco"),
    files=2,
    content_bytes=5,
    compression="zstd",
    built_at=1,
    built_by="scratch-slurm 1",
    previous=Promise(5, "b" * 64, None),
)
# As release 0.1.0 wrote it.
VERSION_1 = {
    "dataset": "coco", "size_bytes": 7, "blake3": "a" * 64, "files": 2, "content_bytes": 5, "compression": "zstd",
    "built_at": 1, "built_by": "scratch-slurm 0.1.0", "format": "squashfs", "version": 1, "ends_blake2b": "e" * 64,
    "previous": {"size_bytes": 5, "blake3": "b" * 64, "ends_blake2b": None},
}  # fmt: skip


def parse(body: Any) -> Manifest:
    return parse_manifest(json.dumps(body).encode(), "x.json")


def test_what_is_written_is_read() -> None:
    text = format_manifest(FULL)
    assert text.isascii() and is_manifest(text.encode())
    assert parse_manifest(text.encode(), "x.json") == FULL


def test_a_manifest_of_version_1_is_read_as_before() -> None:
    manifest = parse(VERSION_1)
    assert manifest.promises == (Promise(7, "a" * 64, "e" * 64), Promise(5, "b" * 64, None))
    assert (manifest.version, manifest.files, manifest.chunks, manifest.about) == (1, 2, None, About())


def test_a_reader_of_version_1_finds_all_its_keys() -> None:
    written = json.loads(format_manifest(FULL))
    assert VERSION_1.keys() <= written.keys()
    assert {type(written[key]) for key in VERSION_1} == {type(VERSION_1[key]) for key in VERSION_1}


def test_two_keys_written_by_hand_are_a_manifest() -> None:
    assert parse({"size_bytes": "7", "blake3": "a" * 64}).promises == (Promise(7, "a" * 64),)


def test_keys_of_later_releases_are_left_out() -> None:
    body = json.loads(format_manifest(FULL))
    body["pieces"] = {"file": "coco.pieces"}
    body["about"]["colour"] = "blue"
    body["chunks"]["colour"] = "blue"
    body["previous"]["colour"] = "blue"
    assert parse(body) == FULL


@pytest.mark.parametrize("body", [{"type": TYPE, "version": VERSION + 1}, {**VERSION_1, "version": VERSION + 1}])
def test_a_later_version_is_ours_and_refused_with_its_own_message(body: dict[str, Any]) -> None:
    assert is_manifest(json.dumps(body).encode())
    with pytest.raises(ImageError, match=f"of version {VERSION + 1}, and this release reads versions up to {VERSION}"):
        parse(body)


def test_a_torn_manifest_is_known_by_its_type_alone() -> None:
    assert is_manifest(f'{{"type": "{TYPE}", "ver'.encode())
    assert not is_manifest(b'{"type": "something", "ver')


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(None, id="none"),
        pytest.param([1], id="a-list"),
        pytest.param({"file": "../../etc/shadow.chunks"}, id="a-file-elsewhere"),
        pytest.param({"file": "shadow"}, id="another-suffix"),
        pytest.param({"blake3": "no"}, id="no-digest"),
        pytest.param({"chunk_bytes": 0}, id="no-chunks"),
        pytest.param({"chunk_bytes": -CHUNK_BYTES}, id="negative"),
        pytest.param({"chunk_bytes": 1000}, id="not-whole-ranges"),
        pytest.param({"chunk_bytes": 1 << 40}, id="too-large-a-chunk"),
        pytest.param({"size_bytes": 63}, id="too-few-digests"),
        pytest.param({"size_bytes": 1 << 40}, id="too-large-a-file"),
        pytest.param({"size_bytes": "64"}, id="size-in-words"),
    ],
)
def test_chunks_that_are_not_of_the_form_are_left_out(changed: Any) -> None:
    body = json.loads(format_manifest(FULL))
    body["chunks"] = {**body["chunks"], **changed} if isinstance(changed, dict) else changed
    assert parse(body).chunks is None
    assert parse(body).promises == FULL.promises


@pytest.mark.parametrize(
    ("former", "expected"),
    [
        pytest.param(None, 1, id="none"),
        pytest.param({"size_bytes": 5, "blake3": "b" * 64}, 2, id="one"),
        pytest.param({"size_bytes": 5, "blake3": "no"}, 1, id="no-digest"),
        pytest.param([1, 2], 1, id="another-shape"),
        pytest.param("x", 1, id="text"),
    ],
)
def test_the_former_entry_is_read_or_left_out(former: Any, expected: int) -> None:
    assert len(parse({"size_bytes": 7, "blake3": "a" * 64, "previous": former}).promises) == expected


def test_the_entry_of_ones_own_image_must_be_right() -> None:
    with pytest.raises(ImageError, match="no BLAKE3 digest"):
        parse({"size_bytes": 7, "blake3": "no", "previous": None})


@pytest.mark.parametrize(
    ("size_bytes", "ends", "expected"),
    [(7, "e" * 64, "a" * 64), (7, "f" * 64, None), (5, "f" * 64, "b" * 64), (6, "e" * 64, None)],
)
def test_a_promise_belongs_to_its_image_alone(size_bytes: int, ends: str, expected: str | None) -> None:
    promise = FULL.find_promise(size_bytes, lambda: ends)
    assert (promise.blake3 if promise else None) == expected


def test_texts_stay_unless_they_are_said_anew() -> None:
    former = About("old", owner="me")
    assert check_about({"description": "new", "owner": None}, former) == About("new", owner="me")
    assert check_about({"owner": ""}, former) == About("old")


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("description", "x" * 401, "--description: has 401 characters, at most 400"),
        ("licence", "x" * 101, "--licence: has 101 characters"),
        ("owner", "a\x1b[31m", "--owner .*cannot be printed"),
        ("contact", "two\nlines", "--contact .*cannot be printed"),
        ("source_url", "example.org", "--source-url 'example.org': is no URL"),
        ("source_url", "https://example.org/a b", "is no URL"),
    ],
)
def test_texts_that_are_no_good_are_refused(field: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_about({field: text}, About())


def test_what_others_wrote_is_bounded_and_steers_no_terminal() -> None:
    about = read_about({"description": "x" * 10_000, "owner": "a\x1b[31m", "licence": 7, "contact": None})
    assert len(about.description) == LIMITS["description"] and about.description.endswith("...")
    assert about.owner == "a\\x1b[31m"
    assert (about.licence, about.contact) == ("", "")
    assert read_about([1]) == About()
