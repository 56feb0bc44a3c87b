"""Published datasets whose bytes tell which version they are."""

import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

FILE_BYTES = 400_000
_PLAIN = ("-noappend", "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX")


@dataclass(frozen=True)
class Version:
    """One version of a dataset, as it lies in the source."""

    dataset: str
    number: int
    image: Path
    size_bytes: int
    digest: str
    """BLAKE3 of the whole image."""
    file_bytes: int

    @property
    def data(self) -> bytes:
        """What the dataset's file `data` holds."""
        return version_data(self.dataset, self.number, self.file_bytes)


def version_data(dataset: str, number: int, file_bytes: int) -> bytes:
    return random.Random(f"{dataset} {number}").randbytes(file_bytes)


def make_version(
    source_dir: Path, dataset: str, number: int = 1, *, file_bytes: int = FILE_BYTES, extra_bytes: int = 0
) -> Version:
    """Publish a version as curators are told to: under another name first, then by rename over the old one.

    Args:
        source_dir: the real directory; the image is made beside it.
        extra_bytes: zeros at the image's end, so that its size is no multiple of a block.
    """
    new = make_image_file(source_dir, dataset, number, file_bytes, extra_bytes)
    image = new.rename(source_dir / f"{dataset}.squashfs")
    digest = blake3(image.read_bytes()).hexdigest()
    return Version(dataset, number, image, image.stat().st_size, digest, file_bytes)


def make_image_file(source_dir: Path, dataset: str, number: int, file_bytes: int, extra_bytes: int = 0) -> Path:
    """Make an image beside the source directory; nobody serves it there."""
    tree = source_dir.parent / f"making-{dataset}"
    tree.mkdir()
    (tree / "data").write_bytes(version_data(dataset, number, file_bytes))
    image = source_dir.parent / f"{dataset}-{number}.new"
    subprocess.run(["mksquashfs", tree, image, *_PLAIN], check=True, capture_output=True)
    (tree / "data").unlink()
    tree.rmdir()
    if extra_bytes:
        os.truncate(image, image.stat().st_size + extra_bytes)
    return image
