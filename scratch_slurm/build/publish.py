"""Put a new image and its manifest into a directory that others read all the time.

    .<dataset>.<random>.building/    hidden, 0700; removed whatever happens but kill -9
        image                        the image while it is made. Its group is right from the beginning, its mode when
                                     it is whole; nobody else gets past the directory meanwhile
    .<dataset>.publishing            locked by the one that gives names now; the lock goes with its process
    <dataset>.json                   the manifest, made with O_EXCL: where there are no locks it keeps others out
    <dataset>.squashfs, .erofs       the image, linked last: a name that is taken is not overwritten

An image is visible only with its whole manifest beside it. A crash between the last two leaves a manifest without
an image, which nobody reads and which a later build names.

A new version takes both names by rename, the manifest first. It says what belongs to the image before as well
(`previous`): at every moment, and after a crash at any, the image that is there has its own entry in the manifest that
is there. Where no manifest is known for the old image the new image goes first, for the same reason.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from scratch_slurm.build.alone import alone
from scratch_slurm.build.directory import Directory
from scratch_slurm.build.seal import Seal, Watch, read_seal
from scratch_slurm.build.signals import undisturbed
from scratch_slurm.domain.about import NOTHING_SAID, About
from scratch_slurm.domain.errors import DeniedError, ImageError, NoSpaceError, ScratchError, SourceError
from scratch_slurm.domain.manifest import (
    CHUNKS_MAGIC,
    CHUNKS_SUFFIX,
    MANIFEST_LIMIT_BYTES,
    Manifest,
    Promise,
    format_manifest,
    is_manifest,
    parse_manifest,
)
from scratch_slurm.domain.model import Permissions
from scratch_slurm.domain.names import IMAGE_SUFFIXES, MANIFEST_SUFFIX
from scratch_slurm.node.origins.imagefile import digest_ends
from scratch_slurm.node.oswords import word_os_error

_ROOM_BYTES = 2**20
# What file systems without hard links answer (FUSE, SMB, some object store gateways), or without links to another
# directory (EXDEV).
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV})


def find_format(where: Directory, dataset: str, formats: Iterable[str]) -> str | None:
    """Tell which of these formats the image that is there has; None without one, or with several."""
    there = {name for suffix, name in IMAGE_SUFFIXES.items() if os.path.lexists(f"{where.base}/{dataset}{suffix}")}
    return there.pop() if len(there) == 1 and there <= set(formats) else None


def find_taken(where: Directory, dataset: str) -> None:
    """Refuse a name that an image or a manifest has.

    Raises: ImageError: it is taken.
    """
    _find_image(where, dataset)
    if os.path.lexists(f"{where.base}/{dataset}{MANIFEST_SUFFIX}"):
        raise _manifest_taken(where.path / (dataset + MANIFEST_SUFFIX))


def find_replaced(where: Directory, dataset: str, suffix: str = ".squashfs") -> Permissions | None:
    """Look at the image that a new version is to take the place of.

    Args:
        suffix: of both.
    Returns: its permissions, which the new version keeps; None: there is none yet.
    Raises: ImageError: what is there is no image or manifest of the kind that `build` makes.
    """
    _find_image(where, dataset, but=suffix)
    _read_manifest(Path(where.base), dataset, where.path)
    try:
        status = Path(f"{where.base}/{dataset}{suffix}").lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{where.path / (dataset + suffix)}: is no regular file; nothing was changed")
    return Permissions(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


def find_about(where: Directory, dataset: str) -> About:
    """Find what the manifest that is there says for people; nothing without one.

    Raises: ImageError: what is there is no manifest of the kind that `build` makes.
    """
    manifest = _read_manifest(Path(where.base), dataset, where.path)
    return manifest.about if manifest else NOTHING_SAID


def _read_manifest(base: Path, dataset: str, told: Path) -> Manifest | None:
    """Read the manifest that is there; None without one.

    Raises: ImageError: it is none of ours.
    """
    name = dataset + MANIFEST_SUFFIX
    try:
        fd = os.open(base / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ImageError(f"{told / name}: cannot read it: {exc.strerror}; nothing was changed") from exc
    with open(fd, "rb") as file:
        text = file.read(MANIFEST_LIMIT_BYTES + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    if not is_manifest(text):
        raise ImageError(
            f"{told / name}: is there already, and no manifest; nothing was changed", hint="give it another name"
        )
    try:
        return parse_manifest(text, name)
    except ImageError:
        return None  # ours, and broken, or too new: there is nothing to keep of it


def _find_image(where: Directory, dataset: str, *, but: str = "") -> None:
    for suffix, name in IMAGE_SUFFIXES.items():
        if suffix == but or not os.path.lexists(f"{where.base}/{dataset}{suffix}"):
            continue
        if suffix[1:] != name:
            hint = "give a new version a new name, like name-v2"
        else:
            hint = f"its new version has --format {name}" if but else "--replace publishes a new version"
        raise ImageError(f"{where.path / (dataset + suffix)}: is there already; nothing was changed", hint=hint)


def _manifest_taken(path: Path) -> ImageError:
    return ImageError(
        f"{path}: is there already, without an image; nothing was changed",
        hint="another build is about to end, or one was killed: if none runs, remove the file, or say --replace",
    )


class Publication:
    """An image on its way into a directory; leaving the context without `publish` leaves nothing behind.

    Args:
        suffix: of the image's name.
        mode: of image and manifest.
        gid: their group; None: as the directory gives it.
        uid: their owner; None: whoever builds.
        replaces: an image that is there is a former version, and gives way.
    Raises: DeniedError, SourceError: no file can be made in the directory, or it cannot be given to that group.
    """

    def __init__(
        self,
        where: Directory,
        dataset: str,
        *,
        suffix: str = ".squashfs",
        mode: int = 0o644,
        gid: int | None = None,
        uid: int | None = None,
        replaces: bool = False,
    ) -> None:
        self._uid = -1 if uid is None else uid
        self._replaces = replaces
        self.where = where
        self.dataset = dataset
        self._suffix = suffix
        self._mode = mode
        self._gid = -1 if gid is None else gid
        self._room = Path(where.base) / f".{dataset}.{secrets.token_hex(6)}.building"
        self._hidden = self._room / "image"
        self.path = where.path / self._room.name / "image"
        """For people."""
        self.fd = -1

    def __enter__(self) -> "Publication":
        with _translated(self.where.path, "make a file"):
            self._room.mkdir(0o700)
        try:
            with _translated(self.where.path, "make a file"):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self.fd = os.open(self._hidden, flags, 0o600)
            with _translated(self.where.path, f"give a file to group {self._gid}"):
                os.fchown(self.fd, self._uid, self._gid)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd != -1:
            os.close(self.fd)
        with contextlib.suppress(OSError):
            for path in (self._hidden, self._room / "manifest", self._room / "chunks"):
                path.unlink(missing_ok=True)
            self._room.rmdir()

    def lend(self) -> None:
        """Let a process with other rights write the image, by its descriptor: nobody else gets to the file."""
        with _translated(self.path, "change the mode"):
            os.fchmod(self.fd, 0o666)

    def check_room(self) -> None:
        """Tell a full disk from other reasons why the image could not be written.

        Raises: NoSpaceError, SourceError: it cannot grow.
        """
        with _translated(self.path, "write"):
            os.posix_fallocate(self.fd, self.size_bytes(), _ROOM_BYTES)

    def permissions(self) -> Permissions:
        """Tell what the image's file will have."""
        status = os.fstat(self.fd)
        return Permissions(status.st_uid, status.st_gid, self._mode)

    def size_bytes(self) -> int:
        """Tell how large the file is now."""
        return os.fstat(self.fd).st_size

    def seal(self, watch: Watch) -> Seal:
        """Make the finished file durable, and read it whole.

        Raises: SourceError, NoSpaceError: the storage fails. ImageError: the file was replaced meanwhile.
        """
        with _translated(self.path, "write"):
            os.fchmod(self.fd, self._mode)
            os.fsync(self.fd)
            total = self.size_bytes()
            seal = read_seal(self.fd, watch)
            own, named = os.fstat(self.fd), os.lstat(self._hidden)
        if seal.size_bytes != total or (own.st_dev, own.st_ino) != (named.st_dev, named.st_ino) or total == 0:
            raise ImageError(f"{self.path}: somebody else changed the file while it was built")
        return seal

    def publish(self, manifest: Manifest, seal: Seal) -> tuple[Path, Path]:
        """Give image, manifest and chunk digests their names.

        Returns: the paths of both.
        Raises: ImageError: the name was taken meanwhile; nothing was changed. SourceError: the storage fails.
        """
        image, manifest_path = self.dataset + self._suffix, self.dataset + MANIFEST_SUFFIX
        base, where = Path(self.where.base), self.where.path
        # Between manifest and image nobody could tell what is published.
        with undisturbed(), _translated(where, "publish"), alone(base / f".{self.dataset}.publishing", where):
            _find_chunks(base, self.dataset, where)
            with _new_file(self._room / "chunks", seal.chunks_file, self.permissions(), where):
                if self._replaces and os.path.lexists(base / image):
                    self._replace(base, manifest)
                else:
                    self._publish_first(base, manifest)
        return where / image, where / manifest_path

    def _publish_first(self, base: Path, manifest: Manifest) -> None:
        image, name = self.dataset + self._suffix, self.dataset + MANIFEST_SUFFIX
        where = self.where.path
        if self._replaces and _read_manifest(base, self.dataset, where):
            (base / name).unlink()  # without an image: of a build that was killed
        with _new_file(base / name, format_manifest(manifest).encode(), self.permissions(), where / name):
            _find_image(self.where, self.dataset)  # of any suffix; the link below refuses only its own name
            self._name_chunks(base)
            try:
                _name_image(self._hidden, base / image, where / image)
            except BaseException:
                (base / (self.dataset + CHUNKS_SUFFIX)).unlink(missing_ok=True)
                raise
        _fsync_directory(base)

    def _replace(self, base: Path, manifest: Manifest) -> None:
        find_replaced(self.where, self.dataset, self._suffix)
        image, name = base / (self.dataset + self._suffix), base / (self.dataset + MANIFEST_SUFFIX)
        former = _find_promise(image, name, _read_manifest(base, self.dataset, self.where.path))
        text, hidden = format_manifest(msgspec.structs.replace(manifest, previous=former)), self._room / "manifest"
        with _new_file(hidden, text.encode(), self.permissions(), hidden):
            self._name_chunks(base)
            moves = [(hidden, name), (self._hidden, image)]
            for source, target in moves if former else reversed(moves):
                _rename_over(source, target)
                _fsync_directory(base)  # or a power cut could leave the second without the first

    def _name_chunks(self, base: Path) -> None:
        _rename_over(self._room / "chunks", base / (self.dataset + CHUNKS_SUFFIX))
        _fsync_directory(base)


def _find_chunks(base: Path, dataset: str, told: Path) -> None:
    """Refuse to write over a file that has the name of ours, and is none.

    Raises: ImageError: there is one.
    """
    name = dataset + CHUNKS_SUFFIX
    try:
        fd = os.open(base / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with open(fd, "rb") as file:
        ours = stat.S_ISREG(os.fstat(fd).st_mode) and file.read(len(CHUNKS_MAGIC)) == CHUNKS_MAGIC
    if not ours:
        raise ImageError(
            f"{told / name}: is there already, and holds no digests of chunks; nothing was changed",
            hint="give it another name",
        )


def _find_promise(image: Path, name: Path, manifest: Manifest | None) -> Promise | None:
    """Find what a manifest says of the image that is there; a stranger's is not believed."""
    with open(image, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        fd, status = file.fileno(), os.fstat(file.fileno())
        if manifest is None or name.lstat().st_uid not in (0, os.geteuid(), status.st_uid):
            return None
        return manifest.find_promise(status.st_size, lambda: digest_ends(fd, status.st_size))


def _rename_over(hidden: Path, name: Path) -> None:
    status = hidden.lstat()
    try:
        hidden.rename(name)
    except FileNotFoundError:
        # An NFS server's first answer was lost, and the repeated request found nothing to rename.
        if not os.path.samestat(status, name.lstat()):
            raise


@contextlib.contextmanager
def _new_file(path: Path, content: bytes, permissions: Permissions, told: Path) -> Iterator[None]:
    """Make a file for those who may read the image, and take it away again unless the image is published."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as exc:
        raise _manifest_taken(told) from exc
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(fd, permissions.uid, permissions.gid)
            os.fchmod(fd, permissions.mode)
            os.fsync(fd)
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _name_image(hidden: Path, image: Path, told: Path) -> None:
    try:
        image.hardlink_to(hidden)
    except OSError as exc:
        if _same_file(hidden, image):
            return  # an NFS server's first answer was lost, and the repeated request found its own link: link(2), BUGS
        if isinstance(exc, FileExistsError) or os.path.lexists(image):
            raise ImageError(f"{told}: somebody else made it just now; nothing was changed") from exc
        if exc.errno not in _NO_LINKS:
            raise
        hidden.rename(image)  # the manifest keeps other builders from making the name in between


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _translated(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as exc:
        raise DeniedError(
            f"{path}: you may not {verb} here", hint="build as a user that may write there, or elsewhere with --to"
        ) from exc
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        kind: type[ScratchError] = NoSpaceError if full else SourceError
        raise kind(f"{path}: cannot {verb}: {word_os_error(exc, path)}") from exc
