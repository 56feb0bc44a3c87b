"""Where the bytes of a mounted dataset come from. A kind that is added is one more value here."""

from collections.abc import Iterable

import msgspec

from scratch_slurm.domain.model import CachedImage, SourceImage


class FromSource(msgspec.Struct, frozen=True, tag=True):
    """The loop device reads the image in the source."""

    image: SourceImage

    def __str__(self) -> str:
        return str(self.image.at)


class FromCopy(msgspec.Struct, frozen=True, tag=True):
    """The loop device reads a cached image, which never changes."""

    copy: CachedImage

    def __str__(self) -> str:
        return self.copy.path


Backing = FromSource | FromCopy


def find_cache_dir(backing_path: str, cache_dirs: Iterable[str]) -> str:
    """Find the cache directory that a loop device's file lies in.

    Args:
        backing_path: as the kernel shows it.
        cache_dirs: as the kernel shows them: absolute, without links.
    Returns: empty: in none of them. It is an image in the source then, or none of ours.
    """
    return next((each for each in cache_dirs if backing_path.startswith(f"{each}/")), "")
