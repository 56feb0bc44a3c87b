"""The formats of images that `build` makes, and what their programs have in common."""

from collections.abc import Callable, Mapping
from typing import Protocol

from scratch_slurm.build.directory import Directory
from scratch_slurm.build.mkfserofs import find_mkfs_erofs
from scratch_slurm.build.mksquashfs import find_mksquashfs
from scratch_slurm.build.packing import Wanted, Watch
from scratch_slurm.domain.errors import UsageError

DEFAULT_FORMAT = "squashfs"


class Packer(Protocol):
    """A program that makes images of one format, as it is installed here."""

    @property
    def suffix(self) -> str:
        """Of an image's name."""

    @property
    def compressions(self) -> tuple[str, ...]:
        """What it can be told to compress with, or `none`."""

    @property
    def preferred(self) -> str:
        """The one for those that do not say."""

    def unfit(self, path: str) -> bool:
        """Tell whether it would leave out a path below the directory, or fail there."""

    def check(self, directory: Directory, wanted: Wanted) -> None:
        """Refuse what it cannot do, before it is begun.

        Raises: ImageError: this version cannot make such an image. DeniedError: the rights do not suffice.
        """

    def pack(self, directory: Directory, image_fd: int, wanted: Wanted, watch: Watch | None) -> None:
        """Pack the directory's contents into an open file.

        Everything belongs to root and may be read by everybody who gets past the root directory, which lets in
        `wanted.readers`. Set-user-ID bits and extended attributes are left out. Equal trees give equal images.

        Args:
            watch: called about four times a second; None: nobody looks.
        Raises: ImageError: it failed; with what it said. ConfigError: it cannot be started.
        """

    def tell_times(self, wanted: Wanted) -> str | None:
        """Say which times the format cannot keep; None: it keeps all."""


FORMATS: Mapping[str, Callable[[], Packer]] = {"squashfs": find_mksquashfs, "erofs": find_mkfs_erofs}
"""Format -> what finds its program."""


def find_packer(name: str) -> Packer:
    """Find the program for a format.

    Raises: ConfigError: it is not installed, or is a release with a fault that loses data.
    """
    return FORMATS[name]()


def choose_compression(packer: Packer, asked: str | None) -> str:
    """Choose what to compress with.

    Raises: UsageError: the format does not have it.
    """
    if asked is None:
        return packer.preferred
    if asked not in packer.compressions:
        raise UsageError(
            f"--compression {asked}: {packer.suffix[1:]} images here are made with one of"
            f" {', '.join(packer.compressions)}"
        )
    return asked
