"""The journal of a copy: which chunks of the staged file are on the disk, so that a killed copy can be resumed.

    {"type":"copy","version":1,"inode":7,"size_bytes":150000000,"mtime_ns":1,"chunk_bytes":67108864}
    {"type":"chunk","end_bytes":67108864,"digest":"<BLAKE3>"}
    {"type":"chunk","end_bytes":134217728,"digest":"<BLAKE3>"}

A line is appended when the data before `end_bytes` is durable; its digest is that of the image from its first byte to
`end_bytes`, which the one hash of the whole image yields in passing. The journal itself is never synced: a line
too few copies a chunk again, and a line too many does not match the data, for nothing in here is believed unread.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

_MAX_BYTES = 16 << 20  # 100,000 chunks: 6 TB of the default size


class CopyHeader(msgspec.Struct, frozen=True, tag_field="type", tag="copy", forbid_unknown_fields=True):
    """What is copied, and how it is cut."""

    inode: int
    size_bytes: int
    mtime_ns: int
    chunk_bytes: int
    version: int = 1


class Chunk(msgspec.Struct, frozen=True, tag_field="type", tag="chunk", forbid_unknown_fields=True):
    """A durable chunk, and the digest of the image up to its end."""

    end_bytes: int
    digest: str


@dataclass(frozen=True)
class JournalContents:
    """The chunks from the image's start, and where in the journal the line of each ends."""

    chunks: tuple[Chunk, ...]
    line_ends: tuple[int, ...]


def journal_path(staging: Path) -> Path:
    """Name the journal of a staged file: `<name>.journal` beside `<name>.part`."""
    return staging.with_suffix(".journal")


def read_journal(path: Path, header: CopyHeader) -> JournalContents | None:
    """Read what a copy left behind, up to the first line that is torn or out of order.

    Returns: None when there is no journal, or it is not one of this very copy.
    Raises: OSError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        lines = file.read(_MAX_BYTES).splitlines(keepends=True)
    if not lines or lines[0] != _line(header):
        return None
    chunks: list[Chunk] = []
    line_ends = [len(lines[0])]
    for line in lines[1:]:
        start = chunks[-1].end_bytes if chunks else 0
        try:
            chunk = msgspec.json.decode(line, type=Chunk)
        except msgspec.DecodeError:
            break
        if line[-1:] != b"\n" or chunk.end_bytes != min(start + header.chunk_bytes, header.size_bytes):
            break
        if chunk.end_bytes == start:
            break
        chunks.append(chunk)
        line_ends.append(line_ends[-1] + len(line))
    return JournalContents(tuple(chunks), tuple(line_ends))


class Journal:
    """The journal of the copy that runs; every line is one write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path, header: CopyHeader) -> Self:
        """Begin anew. Raises: OSError: also when there is one already."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        journal = cls(os.open(path, flags, 0o600))
        journal._write(_line(header))
        return journal

    @classmethod
    def resume(cls, path: Path, contents: JournalContents, kept_chunks: int) -> Self:
        """Go on after the first `kept_chunks`; the lines of the others are cut off."""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.ftruncate(descriptor, contents.line_ends[kept_chunks])
        return cls(descriptor)

    def append(self, chunk: Chunk) -> None:
        """Record a chunk whose data, and all data before it, is durable."""
        self._write(_line(chunk))

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, line: bytes) -> None:
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _line(record: CopyHeader | Chunk) -> bytes:
    return msgspec.json.encode(record) + b"\n"
