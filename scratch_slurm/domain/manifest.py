"""Manifests: what is known of an image, beside it. One type for those who write them and those who read them. Pure.

    <dataset>.json      the manifest, JSON
    <dataset>.chunks    the digests of the image's chunks (`ChunkList`), which the manifest names and binds

The format is for other people's disks, and changes by these rules:

- A JSON file is a manifest if its `type` is ours, or if it has the keys `size_bytes` and `blake3`: version 1 had no
  type, and these two keys written by hand are a manifest as well. Any other file is somebody's own.
- Keys may be added at any time. A reader leaves out what it does not know.
- `version` counts up only when a reader of the version before would go wrong. A reader refuses what is newer than it
  knows. Version 2 has all keys of version 1 with their meaning, so readers of version 1 read it, too.

An image's content id is the BLAKE3 of all its bytes (`blake3`): it names the same bytes in whatever place, under
whatever name, at whatever time; a copy is verified against it, and anybody can compute it with b3sum.
"""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from scratch_slurm.domain.about import NOTHING_SAID, About, read_about
from scratch_slurm.domain.errors import ImageError

VERSION = 2
TYPE = "scratch-slurm-manifest"
MANIFEST_LIMIT_BYTES = 64 * 1024

CHUNKS_SUFFIX = ".chunks"
CHUNKS_MAGIC = b"scratch-slurm chunks 1\n".ljust(32, b"\0")
CHUNKS_LIMIT_BYTES = 64 << 20
CHUNK_BYTES = 64 << 20
DIGEST_BYTES = 32
_CHUNK_UNIT_BYTES = 4 << 20
_MOST_CHUNK_BYTES = 1 << 30

_KEYS = ("size_bytes", "blake3")
_T = TypeVar("_T")
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CHUNKS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,100}\.chunks", re.ASCII)


class Promise(msgspec.Struct, frozen=True):
    """What a manifest promises of one image."""

    size_bytes: int
    blake3: str
    """The content id: BLAKE3 of the whole image in hexadecimal."""
    ends_blake2b: str | None = None
    """Digest of its first and last 64 KiB: tells it from another of its size without reading it."""


class ChunkList(msgspec.Struct, frozen=True):
    """The file of an image's chunk digests.

    It begins with CHUNKS_MAGIC (32 bytes). Then come the BLAKE3 digests, 32 bytes each, of the image's chunks of
    `chunk_bytes`, each of its chunk alone, the last chunk as long as it is. Whatever follows is for later releases
    (like the hashes of smaller pieces); `blake3` covers it, too.
    """

    file: str
    """Its name, in the manifest's directory."""
    size_bytes: int
    blake3: str
    chunk_bytes: int = CHUNK_BYTES
    """A multiple of 4 MiB, 1 GiB at most."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an image. Nodes go by size_bytes, blake3, ends_blake2b, previous and chunks."""

    type: str = TYPE
    version: int = VERSION
    dataset: str = ""
    """What it was built as; an image may be copied under another name."""
    format: str = "squashfs"
    size_bytes: int
    blake3: str
    ends_blake2b: str | None = None
    chunks: ChunkList | None = None
    about: About = NOTHING_SAID
    files: int = 0
    content_bytes: int = 0
    compression: str = ""
    built_at: int = 0
    """Epoch seconds."""
    built_by: str = ""
    """Program and version."""
    previous: Promise | None = None
    """Of the image whose place this one took, or is about to take."""

    @property
    def promises(self) -> tuple[Promise, ...]:
        """Of its own image, then of the one before."""
        own = Promise(self.size_bytes, self.blake3, self.ends_blake2b)
        return (own, self.previous) if self.previous else (own,)

    def find_promise(self, size_bytes: int, digest_ends: Callable[[], str]) -> Promise | None:
        """Find the promise that belongs to an image; None: the manifest is of another image.

        Args:
            digest_ends: reads the image's ends; called only where it matters.
        """
        ends = None
        for promise in self.promises:
            if promise.size_bytes == size_bytes:
                if promise.ends_blake2b is None:
                    return promise
                ends = ends or digest_ends()
                if promise.ends_blake2b == ends:
                    return promise
        return None


def format_manifest(manifest: Manifest) -> str:
    """Write a manifest as JSON, in ASCII."""
    return json.dumps(msgspec.to_builtins(manifest), indent=2) + "\n"


def is_manifest(text: bytes) -> bool:
    """Tell whether a file is a manifest of ours, by its keys; one that cannot be parsed is if it names them."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return all(f'"{key}"'.encode() in text for key in _KEYS) or f'"{TYPE}"'.encode() in text
    return isinstance(body, dict) and (body.get("type") == TYPE or all(key in body for key in _KEYS))


def parse_manifest(text: bytes, name: str) -> Manifest:
    """Parse a manifest of any version up to ours; what only helps and is not of the form is left out.

    Args:
        name: the file's, for messages.
    Raises: ImageError: it is of a later version, or what it says of its own image is not of the form.
    """
    try:
        body = json.loads(text)
        version = body.get("version", 1)
        if type(version) is int and version > VERSION:
            raise ImageError(
                f"its manifest {name} is of version {version}, and this release reads versions up to {VERSION}:"
                " it needs a later scratch-slurm"
            )
        own = _read_promise(body, name)
        former, chunks = body.get("previous"), body.get("chunks")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as exc:
        raise ImageError(f"its manifest {name} is not readable: needs size_bytes and blake3") from exc
    return Manifest(
        version=version if type(version) is int else 1,
        dataset=_pick(body, "dataset", str, ""),
        format=_pick(body, "format", str, "squashfs"),
        size_bytes=own.size_bytes,
        blake3=own.blake3,
        ends_blake2b=own.ends_blake2b,
        chunks=_read_chunks(chunks, own.size_bytes),
        about=read_about(body.get("about")),
        files=_pick(body, "files", int, 0),
        content_bytes=_pick(body, "content_bytes", int, 0),
        compression=_pick(body, "compression", str, ""),
        built_at=_pick(body, "built_at", int, 0),
        built_by=_pick(body, "built_by", str, ""),
        previous=_read_former(former, name),
    )


def digests_bytes(size_bytes: int, chunk_bytes: int) -> int:
    """How many bytes the digests of an image's chunks have."""
    return -(-size_bytes // chunk_bytes) * DIGEST_BYTES


def _pick(body: dict[str, Any], key: str, kind: type[_T], otherwise: _T) -> _T:
    value = body.get(key)
    return value if type(value) is kind else otherwise


def _read_promise(body: Any, name: str) -> Promise:
    digest, size_bytes, ends = str(body["blake3"]), int(body["size_bytes"]), body.get("ends_blake2b")
    if not _DIGEST.fullmatch(digest):
        raise ImageError(f"its manifest {name} has no BLAKE3 digest of 64 hexadecimal digits")
    if ends is not None and not _DIGEST.fullmatch(str(ends)):
        raise ImageError(f"its manifest {name} has in ends_blake2b no digest of 64 hexadecimal digits")
    return Promise(size_bytes, digest, ends and str(ends))


def _read_former(body: Any, name: str) -> Promise | None:
    try:
        return None if body is None else _read_promise(body, name)
    except (ImageError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _read_chunks(body: Any, size_bytes: int) -> ChunkList | None:
    try:
        chunks = msgspec.convert(body, ChunkList)
    except msgspec.ValidationError:
        return None
    of_the_form = (
        _CHUNKS_NAME.fullmatch(chunks.file)
        and _DIGEST.fullmatch(chunks.blake3)
        and 0 < chunks.chunk_bytes <= _MOST_CHUNK_BYTES
        and chunks.chunk_bytes % _CHUNK_UNIT_BYTES == 0
        and len(CHUNKS_MAGIC) + digests_bytes(size_bytes, chunks.chunk_bytes) <= chunks.size_bytes
        and chunks.size_bytes <= CHUNKS_LIMIT_BYTES
    )
    return chunks if of_the_form else None
