"""The bytes of an image file, for a copy: a `Supplier`."""

import contextlib
import mmap
import os
import stat
from pathlib import Path
from typing import Self

from blake3 import blake3

from scratch_slurm.domain.access import distrust_file
from scratch_slurm.domain.errors import ImageError, SourceError
from scratch_slurm.domain.manifest import (
    CHUNKS_MAGIC,
    MANIFEST_LIMIT_BYTES,
    ChunkList,
    digests_bytes,
    parse_manifest,
)
from scratch_slurm.domain.model import Generation
from scratch_slurm.node.origins.imagefile import HEAD_BYTES, make_generation, open_image, open_regular, read_permissions
from scratch_slurm.node.origins.interface import ChunkDigests
from scratch_slurm.node.rawio import BLOCK_BYTES, ColdReader


class FileSupplier:
    """One open image file.

    Args:
        descriptor: of the file, which is closed with this object.
        manifest: the file that may tell of its chunks.
        direct: read with direct I/O where the file system has it; else, and on FUSE, drop what a plain read brought in.
    """

    def __init__(self, path: Path, descriptor: int, manifest: Path | None, *, direct: bool = True) -> None:
        self.name = str(path)
        self._manifest = manifest
        self._path = path
        self._descriptor = descriptor
        self._before = os.fstat(descriptor)
        self._content_id: str | None = None
        self._reader = ColdReader(descriptor, direct=direct)

    @classmethod
    def open(cls, path: Path, expected: Generation, *, manifest: Path | None = None, direct: bool = True) -> Self:
        """Open an image file that must be this generation.

        Raises: SourceError: it cannot be opened or read. ImageError: it is another one, or no file.
        """
        try:
            descriptor = open_image(path)
        except OSError as exc:
            raise SourceError(f"{path}: cannot open: {exc.strerror}") from exc
        except ImageError as exc:
            raise ImageError(f"{path}: is not the image that was listed: it {exc.message}") from exc
        try:
            supplier = cls(path, descriptor, manifest, direct=direct)
            supplier._check_generation(expected)
            supplier._content_id = expected.content_id
        except BaseException as exc:
            os.close(descriptor)
            if isinstance(exc, OSError):
                raise SourceError(f"{path}: cannot stat: {exc.strerror}") from exc
            raise
        return supplier

    def _check_generation(self, expected: Generation) -> None:
        head = b""
        if expected.content_id is None:
            with mmap.mmap(-1, BLOCK_BYTES) as block, memoryview(block) as view:
                got = self.read(view, 0, BLOCK_BYTES)
                head = bytes(view[: min(got, HEAD_BYTES)])
        if make_generation(self._before, head, expected.content_id) != expected:
            raise ImageError(
                f"{self._path}: is not the image that was listed: has {self._before.st_size} bytes,"
                f" had {expected.size_bytes}, or was written since"
            )

    def read(self, view: memoryview, offset: int, length: int) -> int:
        try:
            return self._reader.read(view, offset, length)
        except OSError as exc:
            raise SourceError(f"{self._path}: cannot read {length} bytes at {offset}: {exc.strerror}") from exc

    def read_chunk_digests(self) -> ChunkDigests | None:
        if self._manifest is None or self._content_id is None:
            return None
        with contextlib.suppress(OSError, ImageError):
            manifest = parse_manifest(self._read_beside(self._manifest, MANIFEST_LIMIT_BYTES), self._manifest.name)
            if manifest.blake3 == self._content_id and manifest.chunks is not None:
                text = self._read_beside(self._manifest.with_name(manifest.chunks.file), manifest.chunks.size_bytes)
                return take_digests(text, manifest.chunks, self._before.st_size)
        return None

    def _read_beside(self, path: Path, most_bytes: int) -> bytes:
        """Read a small file of whoever owns the image, or root's. Raises: OSError, ImageError."""
        with open_regular(path) as file:
            permissions = read_permissions(os.fstat(file.fileno()))
            directory = read_permissions(path.parent.stat())
            stranger = distrust_file(permissions, directory, (self._before.st_uid,))
            if stranger:
                raise ImageError(f"{path}: {stranger}")
            return file.read(most_bytes + 1)

    def check_unchanged(self) -> None:
        """Look at the file that was read, which shows a write, and at the name, which shows a replacement."""
        try:
            found = (os.fstat(self._descriptor), self._path.stat())
        except OSError as exc:
            raise SourceError(f"{self._path}: cannot stat: {exc.strerror}") from exc
        was = self._before
        for now in found:
            told = []
            if now.st_size != was.st_size:
                told.append(f"size in bytes {now.st_size}, was {was.st_size}")
            if now.st_mtime_ns != was.st_mtime_ns:
                told.append(f"mtime in ns {now.st_mtime_ns}, was {was.st_mtime_ns}")
            if told or not stat.S_ISREG(now.st_mode):
                why = ", ".join(told) or "not a regular file"
                raise ImageError(f"{self._path}: changed while it was copied: {why}")

    def close(self) -> None:
        os.close(self._descriptor)


def take_digests(text: bytes, chunks: ChunkList, size_bytes: int) -> ChunkDigests | None:
    """Take an image's digests out of the file of them; None: it is not the one that the manifest binds."""
    if len(text) != chunks.size_bytes or not text.startswith(CHUNKS_MAGIC):
        return None
    if blake3(text).hexdigest() != chunks.blake3:
        return None
    start = len(CHUNKS_MAGIC)
    return ChunkDigests(chunks.chunk_bytes, text[start : start + digests_bytes(size_bytes, chunks.chunk_bytes)])
