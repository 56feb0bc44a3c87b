"""Where the bytes of a mounted dataset come from. A kind that is added is one more value here."""

from dataclasses import dataclass

from scratch_slurm.domain.model import CachedImage, SourceImage


@dataclass(frozen=True, slots=True)
class FromSource:
    """The loop device reads the image in the source."""

    image: SourceImage

    @property
    def path(self) -> str:
        return self.image.path


@dataclass(frozen=True, slots=True)
class FromCopy:
    """The loop device reads a cached image, which never changes."""

    copy: CachedImage

    @property
    def path(self) -> str:
        return self.copy.path


Backing = FromSource | FromCopy
