"""Generations of files, as the directory that they lie in tells them."""

from pathlib import Path

from scratch_slurm.domain.model import Generation
from scratch_slurm.node.origins.imagefile import HEAD_BYTES, make_generation


def generation_of(image: Path, content_id: str | None = None) -> Generation:
    """Give the generation of an image file; with a `content_id`, as if a manifest said so."""
    with image.open("rb", buffering=0) as file:
        return make_generation(image.stat(), file.read(HEAD_BYTES), content_id)
