"""The kinds of origins, in one place."""

from pathlib import Path

from scratch_slurm.domain.errors import SourceError
from scratch_slurm.node.origins.directory import DirectoryOrigin
from scratch_slurm.node.origins.interface import Origin


def find_origin(name: str, owners: tuple[int, ...] = ()) -> Origin:
    """Find the origin of a name, as a `Location` has it: of a mounted directory its path.

    Args:
        owners: users that are trusted beside root; none: as the kind has it.
    Raises: SourceError: there is no such kind.
    """
    if name.startswith("/"):
        return DirectoryOrigin(Path(name), owners)
    raise SourceError(f"{name}: no origin has such a name; that of a directory is its path, and begins with a slash")
