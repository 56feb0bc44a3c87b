"""The bytes of an image file, for a copy: a `Supplier`."""

import mmap
import os
import stat
from pathlib import Path
from typing import Self

from scratch_slurm.domain.errors import ImageError, SourceError
from scratch_slurm.domain.model import Generation
from scratch_slurm.node.origins.imagefile import HEAD_BYTES, make_generation, open_image
from scratch_slurm.node.rawio import BLOCK_BYTES, ColdReader


class FileSupplier:
    """One open image file.

    Args:
        descriptor: of the file, which is closed with this object.
        direct: read with direct I/O where the file system has it; else, and on FUSE, drop what a plain read brought in.
    """

    def __init__(self, path: Path, descriptor: int, *, direct: bool = True) -> None:
        self.name = str(path)
        self._path = path
        self._descriptor = descriptor
        self._before = os.fstat(descriptor)
        self._reader = ColdReader(descriptor, direct=direct)

    @classmethod
    def open(cls, path: Path, expected: Generation, *, direct: bool = True) -> Self:
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
            supplier = cls(path, descriptor, direct=direct)
            supplier._check_generation(expected)
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
