"""The journal of a copy: which chunks of the staged file are on the disk, so that a killed copy can be resumed.

    {"type":"copy","generation_id":"0123456789abcdef","size_bytes":150000000,"chunk_bytes":67108864,"version":2}
    {"type":"chunk","index":0,"digest":"<BLAKE3>"}
    {"type":"chunk","index":2,"digest":"<BLAKE3>"}

Chunk `index` is the `chunk_bytes` bytes from `index * chunk_bytes` on, or what there is of them; its digest is of these
bytes alone. So chunks may come in any order, from anywhere, and each can be checked without the others. A line is
appended when the chunk is durable; of two lines for one chunk the later one counts. The journal itself is never synced:
a line too few copies a chunk again, and a line too many does not match the data, for nothing in here is believed
unread.

Version 1 had a digest of everything up to a chunk's end in place of the chunk's own:

    {"type":"copy","inode":7,"size_bytes":150000000,"mtime_ns":1,"chunk_bytes":67108864,"version":1}
    {"type":"chunk","end_bytes":67108864,"digest":"<BLAKE3>"}
"""

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self, TypeVar

import msgspec

_MAX_BYTES = 16 << 20  # 140,000 chunks: 9 TB of the default size

_Record = TypeVar("_Record")
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class CopyHeader(msgspec.Struct, frozen=True, tag_field="type", tag="copy", forbid_unknown_fields=True):
    """What is copied, and how it is cut."""

    generation_id: str
    size_bytes: int
    chunk_bytes: int
    version: int = 2


class Chunk(msgspec.Struct, frozen=True, tag_field="type", tag="chunk", forbid_unknown_fields=True):
    """A durable chunk, and the digest of its bytes alone."""

    index: int
    digest: Digest


class _Header1(msgspec.Struct, tag_field="type", tag="copy", forbid_unknown_fields=True):
    inode: int
    size_bytes: int
    mtime_ns: int
    chunk_bytes: int
    version: int


class _Chunk1(msgspec.Struct, tag_field="type", tag="chunk", forbid_unknown_fields=True):
    end_bytes: int
    digest: Digest


@dataclass(frozen=True)
class JournalContents:
    """What a journal says of the staged file."""

    digests: Mapping[int, str] = field(default_factory=dict)
    """Chunk -> its own digest."""
    digests_up_to: Mapping[int, str] = field(default_factory=dict)
    """Chunk -> the digest of everything up to its end, from a journal of version 1: all from the first one on."""
    end: int = 0
    """Where the last whole line of version 2 ends in the journal; 0: there is none to go on with."""

    @property
    def chunks(self) -> frozenset[int]:
        """The chunks that are said to be there."""
        return frozenset(self.digests or self.digests_up_to)


def journal_path(staging: Path) -> Path:
    """Name the journal of a staged file: `<name>.journal` beside `<name>.part`."""
    return staging.with_suffix(".journal")


def read_journal(path: Path, header: CopyHeader) -> JournalContents | None:
    """Read what a copy left behind, up to the first line that is torn or none.

    Returns: None when there is no journal, or it is not one of this very copy.
    Raises: OSError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        lines = file.read(_MAX_BYTES).splitlines(keepends=True)
    if not lines:
        return None
    if lines[0] != _line(header):
        return _read_version_1(lines, header)
    digests: dict[int, str] = {}
    end = len(lines[0])
    for line, chunk in _decode(lines[1:], Chunk):
        if not 0 <= chunk.index * header.chunk_bytes < header.size_bytes:
            break
        digests[chunk.index] = chunk.digest
        end += len(line)
    return JournalContents(digests, end=end)


def _read_version_1(lines: list[bytes], header: CopyHeader) -> JournalContents | None:
    """Read a journal of the release before. The file's name tells the generation, so inode and mtime need not."""
    try:
        former = msgspec.json.decode(lines[0], type=_Header1)
    except msgspec.DecodeError:
        return None
    if (former.version, former.size_bytes, former.chunk_bytes) != (1, header.size_bytes, header.chunk_bytes):
        return None
    digests_up_to: dict[int, str] = {}
    for index, (_, chunk) in enumerate(_decode(lines[1:], _Chunk1)):
        start = index * header.chunk_bytes
        if start >= header.size_bytes or chunk.end_bytes != min(start + header.chunk_bytes, header.size_bytes):
            break
        digests_up_to[index] = chunk.digest
    return JournalContents(digests_up_to=digests_up_to)


def _decode(lines: list[bytes], kind: type[_Record]) -> Iterator[tuple[bytes, _Record]]:
    for line in lines:
        try:
            record = msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError:
            return
        if line[-1:] != b"\n":
            return
        yield line, record


class Journal:
    """The journal of the copy that runs; every line is one write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path, header: CopyHeader) -> Self:
        """Begin anew. Raises: OSError."""
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        journal = cls(os.open(path, flags, 0o600))
        journal._write(_line(header))
        return journal

    @classmethod
    def resume(cls, path: Path, contents: JournalContents) -> Self:
        """Go on behind the last whole line. Raises: OSError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.ftruncate(descriptor, contents.end)
        return cls(descriptor)

    def append(self, chunk: Chunk) -> None:
        """Record a chunk whose data is durable."""
        self._write(_line(chunk))

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, line: bytes) -> None:
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _line(record: CopyHeader | Chunk) -> bytes:
    return msgspec.json.encode(record) + b"\n"
