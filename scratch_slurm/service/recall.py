"""The latest complete listing outlives the daemon and the node's boot: catalog.json in state_dir.

A node that boots before its source is there serves whole cached copies with it: it tells which image a copy is of, and
who may read it. It is never proof of what the source holds: nothing is read from the source because of it.
"""

import contextlib
import hashlib
import logging
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from scratch_slurm.domain.about import NOTHING_SAID, About
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.model import Generation, Location, Permissions, SourceImage
from scratch_slurm.domain.names import DATASET_NAME, parse_image_name
from scratch_slurm.node.owner import others_may_write

log = logging.getLogger(__name__)

_LIMIT_BYTES = 32 * 1024 * 1024
_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


class _Saved(msgspec.Struct, frozen=True):
    source_dir: str
    source_owners: tuple[str | int, ...]
    """Whose images were trusted."""
    images: dict[str, SourceImage]


class _Generation01(msgspec.Struct, frozen=True):
    """A generation as release 0.1.0 kept it, and called copies and mounts by it."""

    inode: int
    size_bytes: int
    mtime_ns: int
    digest: str | None = None

    def read(self) -> Generation:
        parts = (self.inode, self.size_bytes, self.mtime_ns, *([self.digest] if self.digest else []))
        id_ = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).hexdigest()
        return Generation(id_, self.size_bytes, self.digest)


class _PathImage(msgspec.Struct, frozen=True):
    """An image as it was kept when there was one kind of origin alone."""

    dataset: str
    path: str
    generation: Generation
    fs_type: str
    permissions: Permissions
    about: About = NOTHING_SAID

    def read(self) -> SourceImage:
        at = _locate(self.path)
        return SourceImage(self.dataset, at, self.generation, self.fs_type, self.permissions, self.about)


class _SavedPaths(msgspec.Struct, frozen=True):
    source_dir: str
    source_owners: tuple[str | int, ...]
    images: dict[str, _PathImage]


class _Image01(msgspec.Struct, frozen=True):
    dataset: str
    path: str
    generation: _Generation01
    fs_type: str
    permissions: Permissions

    def read(self) -> SourceImage:
        return SourceImage(self.dataset, _locate(self.path), self.generation.read(), self.fs_type, self.permissions)


class _Saved01(msgspec.Struct, frozen=True):
    source_dir: str
    source_owners: tuple[str | int, ...]
    images: dict[str, _Image01]


class Recall:
    """What the source held when it was last listed as a whole, by this daemon or an earlier one."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._saved: Mapping[str, SourceImage] | None = None

    def load(self) -> dict[str, SourceImage]:
        """Read the images by dataset; none where there are none, of another source, or not to be trusted."""
        path, config = self._config.catalog_path, self._config
        try:
            text = _read_own(path)
            saved = _decode(text)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, msgspec.MsgspecError) as exc:
            log.warning("cannot recall the source file=%s problem=%r", path, str(exc))
            return {}
        if (saved.source_dir, saved.source_owners) != (str(config.source_dir), config.source_owners):
            return {}
        return {name: image for name, image in saved.images.items() if self._is_sound(name, image)}

    def save(self, images: Mapping[str, SourceImage]) -> None:
        """Write what a complete listing showed, if it is something else than was written before; may block.

        A failure costs what a node can serve that boots before its source is there.
        """
        if images == self._saved:
            return
        path, config = self._config.catalog_path, self._config
        text = msgspec.json.encode(_Saved(str(config.source_dir), config.source_owners, dict(images)))
        if len(text) > _LIMIT_BYTES:
            log.warning(
                "cannot keep the listing of the source file=%s bytes=%d limit=%d", path, len(text), _LIMIT_BYTES
            )
            return
        new = path.with_name(path.name + ".new")
        try:
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            self._saved = dict(images)
        except OSError as exc:
            log.warning("cannot keep the listing of the source file=%s problem=%r", path, exc.strerror)
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)

    def _is_sound(self, name: str, image: SourceImage) -> bool:
        generation = image.generation
        return (
            DATASET_NAME.fullmatch(name) is not None
            and image.dataset == name
            and parse_image_name(image.at.key) == (name, image.fs_type)
            and image.at.origin == str(self._config.source_dir)
            and generation.size_bytes > 0
            and all(_ID.fullmatch(each) for each in (generation.id, *generation.former_ids))
            and (generation.content_id is None or _DIGEST.fullmatch(generation.content_id) is not None)
        )


def _decode(text: bytes) -> _Saved:
    """Raises: msgspec.MsgspecError, ValueError: it is no listing of any release."""
    try:
        return msgspec.json.decode(text, type=_Saved)
    except msgspec.ValidationError as exc:
        kinds: tuple[type[_SavedPaths | _Saved01], ...] = (_SavedPaths, _Saved01)
        for kind in kinds:
            with contextlib.suppress(msgspec.ValidationError):
                old = msgspec.json.decode(text, type=kind)
                images = {name: image.read() for name, image in old.images.items()}
                return _Saved(old.source_dir, old.source_owners, images)
        raise exc


def _locate(path: str) -> Location:
    origin, _, key = path.rpartition("/")
    return Location(origin, key)


def _read_own(path: Path) -> bytes:
    """Read a file that nobody but this process's user can have written.

    Raises: OSError: it cannot be read. ValueError: somebody else may have written it, or it is too large.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or others_may_write(status):
            raise ValueError("is not a file of root's that nobody else may write")
        if status.st_size > _LIMIT_BYTES:
            raise ValueError(f"has {status.st_size} bytes, at most {_LIMIT_BYTES}")
        return file.read(_LIMIT_BYTES)
