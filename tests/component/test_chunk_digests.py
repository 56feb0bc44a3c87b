"""The digests of an image's chunks, from the build to the copy: taken where they are bound, left out where not."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from scratch_slurm.build.directory import open_directory
from scratch_slurm.build.publish import Publication
from scratch_slurm.domain.errors import ImageError
from scratch_slurm.domain.manifest import CHUNK_BYTES, CHUNKS_MAGIC, Manifest
from scratch_slurm.domain.model import SourceImage
from scratch_slurm.node.origins.directory import DirectoryOrigin
from scratch_slurm.node.origins.interface import ChunkDigests

IMAGE = b"hsqs" + bytes(36) + (4096).to_bytes(8, "little") + bytes(4048)


def publish(where: Path, image: bytes) -> None:
    with Publication(open_directory(where), "coco", replaces=True) as publication:
        os.truncate(publication.fd, 0)
        os.write(publication.fd, image)
        seal = publication.seal(lambda _done, _total: None)
        chunks = seal.chunk_list("coco")
        manifest = Manifest(
            size_bytes=seal.size_bytes, blake3=seal.blake3, ends_blake2b=seal.ends_blake2b, chunks=chunks
        )
        publication.publish(manifest, seal)


def read_digests(where: Path, image: SourceImage | None = None) -> ChunkDigests | None:
    origin = DirectoryOrigin(where)
    with contextlib.closing(origin.open_supplier(image or listed(where))) as supplier:
        return supplier.read_chunk_digests()


def listed(where: Path) -> SourceImage:
    (entry,) = DirectoryOrigin(where).read(["coco.squashfs"], {})
    assert entry is not None and entry.image is not None
    return entry.image


@pytest.fixture
def where(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    publish(path, IMAGE)
    return path


def test_each_chunk_has_a_digest_of_its_own(where: Path) -> None:
    image = IMAGE + os.urandom(CHUNK_BYTES)
    publish(where, image)
    digests = b"".join(blake3(image[at : at + CHUNK_BYTES]).digest() for at in range(0, len(image), CHUNK_BYTES))
    assert read_digests(where) == ChunkDigests(CHUNK_BYTES, digests)
    assert (where / "coco.chunks").read_bytes() == CHUNKS_MAGIC + digests


def damage(where: Path) -> None:
    path = where / "coco.chunks"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def cut(where: Path) -> None:
    os.truncate(where / "coco.chunks", 40)


def remove(where: Path) -> None:
    (where / "coco.chunks").unlink()


def link(where: Path) -> None:
    (where / "coco.chunks").rename(where.parent / "elsewhere")
    (where / "coco.chunks").symlink_to(where.parent / "elsewhere")


def open_to_all(where: Path) -> None:
    (where / "coco.chunks").chmod(0o666)


def of_another_image(where: Path) -> None:
    body = json.loads((where / "coco.json").read_text())
    (where / "coco.json").write_text(json.dumps({**body, "blake3": "0" * 64}))


def no_manifest(where: Path) -> None:
    (where / "coco.json").write_text("{}")


@pytest.mark.parametrize("change", [damage, cut, remove, link, open_to_all, of_another_image, no_manifest])
def test_digests_that_are_not_bound_or_not_trusted_are_left_out(where: Path, change: Callable[[Path], None]) -> None:
    image = listed(where)
    change(where)
    assert read_digests(where, image) is None


def test_a_file_of_that_name_that_is_none_of_ours_is_not_written_over(where: Path) -> None:
    (where / "coco.chunks").write_bytes(b"somebody's own")
    before = (where / "coco.json").read_bytes()
    with pytest.raises(ImageError, match=r"coco\.chunks: is there already"):
        publish(where, IMAGE + bytes(4096))
    assert (where / "coco.chunks").read_bytes() == b"somebody's own"
    assert ((where / "coco.json").read_bytes(), (where / "coco.squashfs").read_bytes()) == (before, IMAGE)
