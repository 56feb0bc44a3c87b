"""The cache directory on the node-local disk.

    <cache_dir>/                               root, 0700
        <dataset>@<generation>.image           a whole, verified copy: being there under this name is the proof
        .staging/                              nothing in here is ever served
            <dataset>@<generation>.part        a copy under way, its space reserved
            <dataset>@<generation>.journal     which chunks of it are verified
            <dataset>@<generation>.evicted     on its way out

One daemon a node writes here (it holds the lock in run_dir); a file enters or leaves the first level by rename only.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scratch_slurm.domain.errors import ConfigError, DiskError
from scratch_slurm.domain.model import CachedImage
from scratch_slurm.domain.names import cached_file_name, parse_cached_file_name
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.node.owner import others_may_write

# What a disk answers that is dead or failing, and not wrongly configured.
_DEAD_DISK = (errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ENOSPC, errno.ESHUTDOWN, errno.EUCLEAN)

_PART = re.compile(r"\.part\Z")


@dataclass(frozen=True)
class PartialImage:
    """A copy that is not whole; `size_bytes` is what it occupies on disk."""

    dataset: str
    generation_id: str
    size_bytes: int


@dataclass(frozen=True)
class CacheContents:
    """What the directory holds now."""

    images: tuple[CachedImage, ...]
    partials: tuple[PartialImage, ...]
    used_bytes: int
    """All files, whatever they are, by the larger of length and blocks for images, by blocks for the rest."""
    free_bytes: int
    whole_bytes: int
    """Size of the file system."""


class Cache:
    """The directory and its few moves."""

    def __init__(self, cache_dir: Path) -> None:
        self.dir = cache_dir
        self.staging = cache_dir / ".staging"

    def prepare(self) -> None:
        """Make the directories, and settle what a crash left between two steps.

        An image on its way out comes back: whether somebody pins it by now is for the next plan to see.

        Raises:
            ConfigError: the directory cannot be made, or others than root may write in it.
            DiskError: the disk fails.
        """
        try:
            # Never its parents: where they are not there, the disk is not mounted that they are on.
            self.dir.mkdir(mode=0o700, exist_ok=True)
            status = self.dir.lstat()
            if not stat.S_ISDIR(status.st_mode) or others_may_write(status):
                raise ConfigError(
                    f"{self.dir}: cache_dir must be a directory of root's that nobody else may write in",
                    hint=f"chown root {self.dir} && chmod 0700 {self.dir}",
                )
            if stat.S_IMODE(status.st_mode) != 0o700:
                self.dir.chmod(0o700)
            self.staging.mkdir(mode=0o700, exist_ok=True)
            for path in self.staging.glob("*.evicted"):
                self._bring_back(path)
            for path in self.staging.glob("*.journal"):  # of a copy that was published, and then came the crash
                if not path.with_suffix(".part").exists():
                    path.unlink()
        except OSError as exc:
            kind = DiskError if exc.errno in _DEAD_DISK else ConfigError
            raise kind(f"{self.dir}: cannot use as cache_dir: {word_os_error(exc, self.dir)}") from exc

    def read(self) -> CacheContents:
        """Read what is there; a file that vanishes meanwhile is not counted.

        Raises: OSError: the directory cannot be read (the disk is dead).
        """
        images: list[CachedImage] = []
        partials: list[PartialImage] = []
        used_bytes = 0
        for served, entry in _entries(self.dir, self.staging):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            size_bytes = status.st_blocks * 512
            name = entry.name if served else _PART.sub(".image", entry.name)
            named = parse_cached_file_name(name) if served or name != entry.name else None
            if named and served and stat.S_ISREG(status.st_mode):
                size_bytes = max(size_bytes, status.st_size)
                images.append(CachedImage(*named, entry.path, size_bytes, str(self.dir)))
            elif named and not served:
                partials.append(PartialImage(*named, size_bytes))
            used_bytes += size_bytes
        disk = os.statvfs(self.dir)
        return CacheContents(
            tuple(images), tuple(partials), used_bytes, disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        )

    def part_path(self, dataset: str, generation_id: str) -> Path:
        """Where a copy grows."""
        return self.staging / (cached_file_name(dataset, generation_id).removesuffix(".image") + ".part")

    def image_path(self, dataset: str, generation_id: str) -> Path:
        """Where the whole copy is served from."""
        return self.dir / cached_file_name(dataset, generation_id)

    def publish(self, dataset: str, generation_id: str) -> Path:
        """Let a whole, verified and fsynced copy be served.

        Raises: DiskError: the directory cannot be written.
        """
        part, target = self.part_path(dataset, generation_id), self.image_path(dataset, generation_id)
        try:
            part.rename(target)
            _fsync_directory(self.dir)
            _fsync_directory(self.staging)
            part.with_suffix(".journal").unlink(missing_ok=True)
        except OSError as exc:
            raise DiskError(f"{target}: cannot publish the copy: {word_os_error(exc, self.dir)}") from exc
        return target

    def retire(self, image: CachedImage) -> None:
        """Take a cached image out of service by rename, at once.

        Raises: OSError: it is served as before.
        """
        Path(image.path).rename(self._retired_path(image))

    def restore(self, image: CachedImage) -> bool:
        """Let a retired image be served again; returns whether there was one.

        Raises: OSError: it stays retired until the directory is prepared again.
        """
        retired = self._retired_path(image)
        if not retired.exists():
            return False
        self._bring_back(retired)
        return True

    def _bring_back(self, retired: Path) -> None:
        target = self.dir / (retired.stem + ".image")
        if target.exists():  # the dataset was staged anew
            retired.unlink()
        else:
            retired.rename(target)

    def discard(self, image: CachedImage) -> None:
        """Delete a retired image; slow for a large file on some file systems."""
        self._retired_path(image).unlink(missing_ok=True)

    def _retired_path(self, image: CachedImage) -> Path:
        return self.staging / (Path(image.path).stem + ".evicted")

    def drop_partial(self, dataset: str, generation_id: str) -> None:
        """Delete a copy that is not whole, and its journal."""
        part = self.part_path(dataset, generation_id)
        part.unlink(missing_ok=True)
        part.with_suffix(".journal").unlink(missing_ok=True)


def adopt_part(part: Path, former_ids: Iterable[str]) -> None:
    """Let a copy go on that was begun when its image had another id; of two the one under the present id goes on.

    Args:
        part: where the copy grows, see `Cache.part_path`.
    Raises: OSError.
    """
    dataset = part.name.rpartition("@")[0]
    for former_id in former_ids:
        former = part.with_name(f"{dataset}@{former_id}.part")
        if not former.exists():
            continue
        if part.exists():
            former.unlink()
        else:
            # The journal first: a part without one is copied anew, a journal without its part is deleted.
            with contextlib.suppress(FileNotFoundError):
                former.with_suffix(".journal").rename(part.with_suffix(".journal"))
            former.rename(part)
        former.with_suffix(".journal").unlink(missing_ok=True)


def _entries(served: Path, staging: Path) -> Iterator[tuple[bool, os.DirEntry[str]]]:
    for folder in (served, staging):
        with os.scandir(folder) as entries:
            for entry in entries:
                yield folder == served, entry


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
