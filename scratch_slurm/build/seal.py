"""Read a finished image once, for all that its manifest says of its bytes."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3

from scratch_slurm.domain.manifest import CHUNK_BYTES, CHUNKS_MAGIC, CHUNKS_SUFFIX, ChunkList
from scratch_slurm.node.origins.imagefile import digest_ends

_READ_BYTES = 4 * 2**20

Watch = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Seal:
    """What is in an image file."""

    size_bytes: int
    blake3: str
    ends_blake2b: str
    chunks_file: bytes
    """The contents of its `<dataset>.chunks`."""

    def chunk_list(self, dataset: str) -> ChunkList:
        """Tell a manifest of that file."""
        digest = blake3(self.chunks_file).hexdigest()
        return ChunkList(dataset + CHUNKS_SUFFIX, len(self.chunks_file), digest, CHUNK_BYTES)


def read_seal(descriptor: int, watch: Watch) -> Seal:
    """Read a whole file, and leave none of it in the page cache. Raises: OSError."""
    total = os.fstat(descriptor).st_size
    ends = digest_ends(descriptor, total)
    whole, chunk = blake3(max_threads=blake3.AUTO), blake3(max_threads=blake3.AUTO)
    chunks = [CHUNKS_MAGIC]
    done = 0
    while block := os.pread(descriptor, _READ_BYTES, done):
        whole.update(block)
        chunk.update(block)
        done += len(block)
        if done % CHUNK_BYTES == 0 or done == total:
            chunks.append(chunk.digest())
            chunk.reset()
        watch(done, total)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return Seal(done, whole.hexdigest(), ends, b"".join(chunks))
