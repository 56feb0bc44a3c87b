"""What an origin of images is: everything that the rest of the program asks where images come from.

A new kind of origin is one module beside this one, with one class that has the methods of `Origin`:

1. Choose what `SourceImage.at` holds: the origin's name, which `find_origin` in `kinds.py` tells from those of other
   kinds, and a key with which it finds the image again by itself, in another process.
2. Choose what a generation is (`domain.model.Generation`): sixteen hexadecimal digits that are others when the bytes
   are others, as far as the storage can tell, and the same as long as nobody changed the image: across remounts,
   reboots, other nodes. Another name for the same object, or another number of its file, is no other generation.
3. Add the kind to `kinds.find_origin`, and a `Place` of it to KINDS in tests/component/test_origin_contract.py: what
   people do with the kind's storage. Nothing else has to know of it.

Everything here touches slow storage and may block for ever. It is called only in worker processes, which the daemon
kills when they give no sign of life: any call may be cut off at any instant, and must leave nothing behind that harms.
Nobody but the origin looks into keys, generations or stamps.

Whoever may write into an origin decides what root mounts. So an origin serves only what the site trusts, and says of
each image who may read it (`SourceImage.permissions`): the mount is refused where it would let in others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from scratch_slurm.domain.model import Permissions, SkippedImage, SourceImage


@dataclass(frozen=True)
class Entry:
    """What one file of the origin turned out to be."""

    file_name: str
    stamp: str
    """Changes whenever what is said here may; the next scan is given it back. Empty: look again each time."""
    image: SourceImage | None = None
    skipped: SkippedImage | None = None
    """Neither: the file is as it was when it had this stamp."""
    note: str = ""
    """What is odd about the file and keeps nobody from serving it."""


@dataclass(frozen=True)
class Mountable:
    """An image that a loop device can read where it lies."""

    descriptor: int
    """Open for reading, and of the generation that was asked for; the caller closes it."""
    permissions: Permissions
    """Who may read the image now: not as it was listed."""


@dataclass(frozen=True)
class ChunkDigests:
    """What a manifest promises of each chunk of an image."""

    chunk_bytes: int
    digests: bytes
    """BLAKE3 of each chunk alone, 32 bytes each, in order."""


class Supplier(Protocol):
    """The bytes of one generation of one image, for the copy that is made of it. Many threads read at once."""

    @property
    def name(self) -> str:
        """What people know the image by: its path, its URL."""

    def read(self, view: memoryview, offset: int, length: int) -> int:
        """Fill the first `length` bytes of `view` from `offset`; leave nothing of it in the page cache.

        Args:
            view: page-aligned memory; longer than `length` where the image ends, as direct I/O reads whole blocks.
            offset: a multiple of 4096.
        Returns: the bytes read; fewer than `length` only where the image ends.
        Raises: SourceError: the origin cannot be read; names the offset.
        """

    def read_chunk_digests(self) -> ChunkDigests | None:
        """Read what the image's manifest promises of its chunks; None: nothing, or nothing that can be trusted.

        They only help: the whole copy is measured by the generation's content id. Raises nothing for what is missing.
        """

    def check_unchanged(self) -> None:
        """Make sure, after the last read, that all that was read is of the generation.

        Raises: ImageError: it was written or replaced meanwhile. SourceError: that cannot be told.
        """

    def close(self) -> None:
        """Let go of it; reads under way may fail."""


class Origin(Protocol):
    """One place that images come from."""

    def reach(self) -> None:
        """Look whether the origin answers, and can be trusted; asked first. What hangs after it is one image.

        Raises: SourceError: it does not, or others than the site trusts may put images into it.
        """

    def list(self) -> list[str]:
        """List the names of the image files, sorted: `<dataset>.squashfs` and its like, and no others.

        Raises: SourceError: it cannot be listed.
        """

    def read(self, file_names: Sequence[str], stamps: dict[str, str]) -> Iterator[Entry | None]:
        """Look at the named files one after the other; None stands for one that is not there.

        A file that is no good is an entry that says why, and never an error: it keeps nobody from the others.

        Args:
            stamps: file name -> stamp of the last look; a file that still has it need not be opened.
        """

    def open_supplier(self, image: SourceImage) -> Supplier:
        """Begin to read an image for a copy.

        Raises: SourceError: it cannot be opened. ImageError: it is another generation by now, or no image at all.
        """

    def open_mountable(self, image: SourceImage) -> Mountable | None:
        """Open an image so that it can be mounted where it lies; None: images of this kind have to be copied first.

        Raises: ScratchError: it cannot be opened. ImageError: it is another generation by now.
        """
