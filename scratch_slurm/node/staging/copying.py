"""Copy one image from the source into the staging area: whole, verified and durable, or not at all.

It runs in a process of its own that may be killed at any instant, and has no limit on its own time: whoever started it
watches the progress. It publishes nothing; the cache does that by renaming.

    <cache_dir>/.staging/<name>.part       all its blocks reserved from the start, mode 0600
    <cache_dir>/.staging/<name>.journal    which chunks are durable; the cache deletes it when it publishes

After a kill or an error of the source both stay, for the next try to resume; where the copy itself cannot be right, or
its disk fails or is full, neither does.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from scratch_slurm.domain.errors import DigestError, DiskError, ImageError, NoSpaceError, SourceError
from scratch_slurm.domain.model import Generation
from scratch_slurm.node.origins.interface import Supplier
from scratch_slurm.node.rawio import BLOCK_BYTES, ColdReader
from scratch_slurm.node.staging.chunks import Chunk, CopyHeader
from scratch_slurm.node.staging.digests import ImageHash, PromisedChunks
from scratch_slurm.node.staging.progress import CopyPhase, CopyProgress, Reporter
from scratch_slurm.node.staging.ranges import PieceSize, Ranges, RateLimit
from scratch_slurm.node.staging.staged import StagedFile

_WRITE_ANEW = "the image or its manifest is damaged, or of another version: write both anew"


@dataclass(frozen=True)
class CopyOptions:
    """How to copy. The buffers take 64 MiB at most, whatever is said here."""

    readers: int = 16
    """Ranges read at once: a source bound by latency needs many, a disk does not mind."""
    range_bytes: int = 4 << 20
    chunk_bytes: int = 64 << 20
    """What a killed copy does again at most, beside the ranges under way."""
    bandwidth_bytes_per_s: int | None = None

    def __post_init__(self) -> None:
        if self.readers < 1 or self.range_bytes < BLOCK_BYTES or self.range_bytes % BLOCK_BYTES:
            raise ValueError(f"cannot read {self.range_bytes} bytes at once with {self.readers} readers")
        if self.chunk_bytes < 1 or self.chunk_bytes % self.range_bytes:
            raise ValueError(f"a chunk of {self.chunk_bytes} bytes is not whole ranges of {self.range_bytes}")
        if self.bandwidth_bytes_per_s is not None and self.bandwidth_bytes_per_s < 1:
            raise ValueError(f"a bandwidth of {self.bandwidth_bytes_per_s} bytes/s never ends")


@dataclass(frozen=True)
class CopyResult:
    """A copy that is whole, right and durable, under its staging name."""

    digest: str
    bytes_copied: int
    """Read from the source."""
    bytes_resumed: int
    """Found whole from an earlier try."""
    seconds: float


def copy_image(
    supplier: Supplier,
    staging: Path,
    *,
    expected: Generation,
    promised_chunks: bytes = b"",
    options: CopyOptions,
    report: Callable[[CopyProgress], None],
    now: Callable[[], float],
    sleep: Callable[[float], None] = time.sleep,
) -> CopyResult:
    """Copy an image to `staging` so that it can be published; resumes what an earlier try left there.

    Verified against the manifest's digest; without one, what the disk holds is read again and compared with what
    was read from the source.

    Args:
        supplier: of the image; it may hang, and then so does this call. The caller closes it.
        expected: the generation that it supplies.
        promised_chunks: the digests of its chunks of `options.chunk_bytes`, 32 bytes each; empty: none are promised.
            With them a chunk that is wrong is known at once, and only it is read again.
        staging: `<name>.part` in a directory that only the owner of this process may write in.
        report: called at each phase's start and end and every 0.25 s at most in between, when bytes have come; by
            any thread, one at a time. Only a source that answers no read at all keeps it from being called.
        now: seconds, monotonic.
    Raises:
        SourceError: the source cannot be read.
        DigestError: the image has another digest than promised.
        ImageError: the image is empty or has changed.
        DiskError: the cache's disk failed, or does not hold what was written.
        NoSpaceError: the cache's file system is full.
        ConfigError: the cache's file system cannot reserve space.
    """
    began_at = now()
    if expected.size_bytes < 1:
        raise ImageError(f"{supplier.name}: the image is empty")
    with contextlib.ExitStack() as stack:
        chunks = PromisedChunks(promised_chunks, expected.size_bytes, options.chunk_bytes)
        header = CopyHeader(expected.id, expected.size_bytes, options.chunk_bytes)
        staged = stack.enter_context(StagedFile.open(staging, header))
        try:
            limit = RateLimit(options.bandwidth_bytes_per_s, now=now, sleep=sleep)
            reporter = Reporter(expected.size_bytes, report, now)
            copy = _Copy(supplier, staged, expected, chunks, options, reporter)
            digest = copy.transfer(limit, PieceSize(now=now))
            supplier.check_unchanged()
            staged.sync()
            copy.verify(digest)
        except (ImageError, DiskError, NoSpaceError):
            staged.discard()
            raise
    resumed_bytes = copy.kept_bytes
    return CopyResult(digest, expected.size_bytes - resumed_bytes, resumed_bytes, now() - began_at)


class _Copy:
    """One copy under way, and its two passes over the image."""

    def __init__(
        self,
        supplier: Supplier,
        staged: StagedFile,
        expected: Generation,
        promised_chunks: PromisedChunks,
        options: CopyOptions,
        report: Reporter,
    ) -> None:
        self.supplier, self.staged, self.expected = supplier, staged, expected
        self.promised_chunks, self.options, self.report = promised_chunks, options, report
        self.kept = set(staged.found.chunks)
        """Chunks that are staged, as far as is known: those that were not read yet are believed by nobody."""
        self._read_again: set[int] = set()

    @property
    def kept_bytes(self) -> int:
        """How much of the image was not read from the source."""
        cut, size_bytes = self.options.chunk_bytes, self.expected.size_bytes
        return sum(min(size_bytes, (index + 1) * cut) - index * cut for index in self.kept)

    def transfer(self, limit: RateLimit, pieces: PieceSize) -> str:
        """Go through the image once, in order: chunks that are staged are read back, and all others copied.

        A chunk that is not what it should be is taken back and read from the source: a staged one as if it were not
        there, one from the source once more.

        Returns: the digest of the whole image as it was read.
        """
        self.report.begin(CopyPhase.RESUMING if self.kept else CopyPhase.COPYING, 0)
        self.staged.start_journal()
        hasher = ImageHash(self.expected.size_bytes, self.options.chunk_bytes)
        descriptor, staged_reader = self.staged.reader()
        try:
            while not self._transfer_on(hasher, staged_reader, limit, pieces):
                self.report.go_back(hasher.done_bytes)
        finally:
            os.close(descriptor)
        self.report.end()
        return hasher.digest_up_to_here()

    def _transfer_on(
        self,
        hasher: ImageHash,
        staged_reader: ColdReader,
        limit: RateLimit,
        pieces: PieceSize,
    ) -> bool:
        """Go on from where the hash is, to the end or to the first chunk that has to come again.

        Returns: whether the end was reached.
        """
        kept = frozenset(self.kept)

        def is_kept(offset: int) -> bool:
            return offset // self.options.chunk_bytes in kept

        def fill(view: memoryview, offset: int, length: int) -> None:
            if is_kept(offset):
                self.staged.read(staged_reader, view, offset, length)
                self.report.add(length)
                return
            self.report.change(CopyPhase.COPYING)
            done = 0
            while done < length:
                with pieces.next(length - done) as piece_bytes:
                    limit.take(piece_bytes, lambda: ranges.stopped)
                    if ranges.stopped:  # by an error, which is the one to be raised, or to begin anew
                        raise SourceError(f"{self.supplier.name}: the copy is given up")
                    self._read_source(view[done:], offset + done, piece_bytes)
                done += piece_bytes
                self.report.add(piece_bytes)

        def write(view: memoryview, offset: int) -> None:
            if not is_kept(offset):
                self.staged.write(view, offset)

        ranges = self._ranges(fill, write, hasher.done_bytes, self.expected.size_bytes)
        # Syncing takes a while: a thread of its own does it, and the ranges go on.
        with ThreadPoolExecutor(1) as committer, ranges:
            commits: deque[Future[None]] = deque()
            for view in ranges:
                digest = hasher.update(view)
                if digest is not None:
                    chunk = Chunk((hasher.done_bytes - 1) // self.options.chunk_bytes, digest)
                    if not self._is_right(chunk, hasher):
                        hasher.take_back()
                        break
                    if self.staged.found.digests.get(chunk.index) != digest:
                        commits.append(committer.submit(self._commit, ranges, hasher.done_bytes, chunk))
                while commits and commits[0].done():
                    commits.popleft().result()
            else:
                ranges.finish()
            for commit in commits:
                commit.result()
        return hasher.done_bytes == self.expected.size_bytes

    def _is_right(self, chunk: Chunk, hasher: ImageHash) -> bool:
        """Whether a chunk is what it should be; False: it has to be read from the source, once more or at last.

        Raises: DigestError: it was read from the source twice, and is not what the manifest promises.
        """
        index, found, promised = chunk.index, self.staged.found, self.promised_chunks.get(chunk.index)
        if index in self.kept:
            told = found.digests.get(index)
            so_far = found.digests_up_to.get(index)
            right = chunk.digest == told if so_far is None else hasher.digest_up_to_here() == so_far
            if not right or promised not in (None, chunk.digest):
                self.kept.remove(index)
                return False
        elif promised not in (None, chunk.digest):
            if index not in self._read_again:
                self._read_again.add(index)
                return False
            self.supplier.check_unchanged()
            cut = self.options.chunk_bytes
            raise DigestError(
                f"{self.supplier.name}: BLAKE3 of {cut} bytes from {index * cut} is"
                f" {chunk.digest[:16]}..., the manifest's list of chunks says {promised[:16] if promised else ''}...",
                hint=_WRITE_ANEW,
            )
        return True

    def verify(self, digest: str) -> None:
        """Compare with the manifest; without one, compare what the disk holds."""
        promised = self.expected.content_id
        if promised is not None:
            if digest != promised:
                raise DigestError(
                    f"{self.supplier.name}: BLAKE3 is {digest[:16]}..., the manifest says {promised[:16]}...",
                    hint=_WRITE_ANEW,
                )
            return
        on_disk = self._hash_staged()
        if on_disk != digest:
            raise DiskError(
                f"{self.staged.path}: BLAKE3 is {on_disk[:16]}... on the disk, {digest[:16]}... when read",
                hint="check the cache's disk and the kernel log",
            )

    def _hash_staged(self) -> str:
        descriptor, reader = self.staged.reader()
        self.report.begin(CopyPhase.VERIFYING, 0)
        hasher = blake3()
        try:

            def fill(view: memoryview, offset: int, length: int) -> None:
                self.staged.read(reader, view, offset, length)
                self.report.add(length)

            with self._ranges(fill, None, 0, self.expected.size_bytes) as ranges:
                for view in ranges:
                    hasher.update(view)
            self.report.end()
        finally:
            os.close(descriptor)
        return hasher.hexdigest()

    def _ranges(
        self,
        fill: Callable[[memoryview, int, int], None],
        write: Callable[[memoryview, int], None] | None,
        start: int,
        end: int,
    ) -> Ranges:
        return Ranges(fill, write, start, end, range_bytes=self.options.range_bytes, readers=self.options.readers)

    def _read_source(self, view: memoryview, offset: int, length: int) -> None:
        got = self.supplier.read(view, offset, length)
        if got != length:
            raise ImageError(
                f"{self.supplier.name}: changed while it was copied: ends at byte {offset + got},"
                f" was {self.expected.size_bytes}"
            )

    def _commit(self, ranges: Ranges, end: int, chunk: Chunk) -> None:
        if ranges.wait_written(end):
            self.staged.commit(chunk)
