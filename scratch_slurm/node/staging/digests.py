"""The digests of an image whose bytes come in order: of the whole, and of each of its chunks alone. Pure."""

from typing import Self

from blake3 import blake3

DIGEST_BYTES = blake3.digest_size


class ImageHash:
    """BLAKE3 of an image that is cut into chunks. A chunk that turns out wrong can be taken back, and come again."""

    def __init__(self, size_bytes: int, chunk_bytes: int) -> None:
        self.done_bytes = 0
        """What has been hashed: the next bytes are those from here on."""
        self._size_bytes, self._chunk_bytes = size_bytes, chunk_bytes
        self._whole, self._chunk = blake3(), blake3()
        self._whole_before = self._whole.copy()

    def update(self, view: memoryview) -> str | None:
        """Hash the next bytes, which must not go beyond a chunk's end.

        Returns: the chunk's own digest in hexadecimal when they end one, else None.
        """
        if self.done_bytes % self._chunk_bytes == 0:
            self._chunk, self._whole_before = blake3(), self._whole.copy()
        self._whole.update(view)
        self._chunk.update(view)
        self.done_bytes += len(view)
        if self.done_bytes % self._chunk_bytes and self.done_bytes != self._size_bytes:
            return None
        return self._chunk.hexdigest()

    def take_back(self) -> Self:
        """Forget the latest chunk."""
        self._whole = self._whole_before.copy()
        self.done_bytes = (self.done_bytes - 1) // self._chunk_bytes * self._chunk_bytes
        return self

    def digest_up_to_here(self) -> str:
        """The digest of all that was hashed, in hexadecimal; at the end, of the image."""
        return self._whole.hexdigest()


class PromisedChunks:
    """The digests that a manifest promises of an image's chunks.

    Args:
        digests: 32 bytes for each chunk, in order; empty: nothing is promised.
    Raises: ValueError: they are not as many as there are chunks.
    """

    def __init__(self, digests: bytes, size_bytes: int, chunk_bytes: int) -> None:
        if digests and len(digests) != DIGEST_BYTES * -(-size_bytes // chunk_bytes):
            raise ValueError(f"{len(digests)} bytes are not the digests of the chunks of {size_bytes} bytes")
        self._digests = digests

    def get(self, index: int) -> str | None:
        """Tell the digest of a chunk in hexadecimal; None: nothing is promised."""
        return self._digests[DIGEST_BYTES * index : DIGEST_BYTES * (index + 1)].hex() or None
