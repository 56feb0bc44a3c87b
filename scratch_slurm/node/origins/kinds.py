"""The kinds of origins, in one place."""

from pathlib import Path

from scratch_slurm.domain.model import SourceImage
from scratch_slurm.node.origins.directory import DirectoryOrigin
from scratch_slurm.node.origins.interface import Origin


def find_origin(image: SourceImage) -> Origin:
    """Find the origin that an image lies in."""
    return DirectoryOrigin(Path(image.path).parent)
