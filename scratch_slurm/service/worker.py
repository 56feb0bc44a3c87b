"""The worker process: does one thing at a time that may block for ever, and dies with the daemon.

It reads a request a line from standard input, and answers on standard output; see `operations`. The daemon kills it
when it gives no sign for too long: what it was doing must be safe to be cut off at any instant.
"""

import contextlib
import ctypes
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from scratch_slurm.domain.access import too_open, word_refusal
from scratch_slurm.domain.backing import Backing, FromCopy, FromSource
from scratch_slurm.domain.claims import find_keepers
from scratch_slurm.domain.errors import DeniedError, DiskError, ImageError, PinnedError, ScratchError
from scratch_slurm.domain.model import Permissions
from scratch_slurm.domain.names import parse_device_tag
from scratch_slurm.node.kernel import loopdev, loopsysfs, mounts, roots
from scratch_slurm.node.kernel.mountinfo import read_stacks
from scratch_slurm.node.origins.kinds import find_origin
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.node.staging.cache import Cache, adopt_part
from scratch_slurm.service import operations as op
from scratch_slurm.service.cache_look import look_at_cache

_PR_SET_PDEATHSIG = 1
_PROBED_BLOCKS = 4

Say = Callable[[op.Line], None]


def main() -> None:
    """Serve requests until standard input ends."""
    _die_with_parent()
    # Whatever a library prints must not pass for an answer.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(op.AnyRequest)

    def say(line: op.Line) -> None:
        answers.write(encoder.encode(line) + b"\n")

    for text in sys.stdin.buffer:
        try:
            _serve(decoder.decode(text), say)
            say(op.Done())
        except ScratchError as exc:
            say(op.Failed(type(exc).__name__, exc.message, exc.hint))


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may be gone already; what adopts orphans need not be process 1, and the daemon itself may be.
    if os.getppid() != int(sys.argv[1]):
        sys.exit("scratch-slurm worker: the daemon is gone")


def _serve(request: op.Request, say: Say) -> None:
    match request:
        case op.Scan():
            _scan(request, say)
        case op.MountImage():
            _mount(request, say)
        case op.UncoverMount():
            mount_point = Path(request.mount_point)
            mounts.uncover(mount_point, request.device, before=_keep_pinned(request))
        case op.UnmountImage():
            _unmount(request)
        case op.SwitchBacking():
            _switch(request)
        case op.ReadTag():
            _read_tag(request, say)
        case op.ProbeMount():
            _probe(request)
        case op.CopyImage():
            _copy(request, say)
        case op.LookAtCache():
            say(look_at_cache(request))
        case op.PublishCopy() | op.DropPartial() | op.RetireImage() | op.RestoreImage() | op.DiscardImage():
            _change_cache(request)
        case op.ReadGroups():
            # Only this needs the name service's modules.
            from scratch_slurm.node.users import read_groups

            say(op.Groups(read_groups(request.uid)))
        case _:
            raise ScratchError(f"worker: no such request: {type(request).__name__}")


def _scan(request: op.Scan, say: Say) -> None:
    origin = find_origin(request.origin, _read_owners(request.owners))
    origin.reach()
    say(op.Reached())
    if request.file_names is None:
        names = origin.list()
        say(op.Listed(tuple(names)))
    else:
        names = list(request.file_names)
    names = [name for name in names if name not in request.leave_out]
    for name, entry in zip(names, origin.read(names, request.stamps), strict=True):
        if entry is None:
            say(op.Scanned(name, there=False))
        else:
            say(op.Scanned(name, True, entry.stamp, entry.image, entry.skipped, entry.note))


def _read_owners(users: tuple[str | int, ...]) -> tuple[int, ...]:
    if not users:
        return ()
    # Only sites with such a list need the name service's modules.
    from scratch_slurm.node.users import read_uids

    return read_uids(users)


def _read_tag(request: op.ReadTag, say: Say) -> None:
    status = loopdev.read_status(request.device)
    root = None
    if request.mount_point:
        with contextlib.suppress(ScratchError):  # it was unmounted meanwhile
            root = roots.read_root(Path(request.mount_point))
    say(op.Tag(status.tag if status else "", root))


def _probe(request: op.ProbeMount) -> None:
    device = loopsysfs.read_loop_device(request.device)
    if request.copy_path and device is not None:
        with contextlib.suppress(FileNotFoundError):  # deleted by somebody: the next round sees that
            _probe_copy(request.copy_path, device.size_bytes)
    roots.probe_mount(Path(request.mount_point))


def _probe_copy(path: str, device_bytes: int) -> None:
    """Read some blocks of a cached image from its disk: the first, the last, and any between.

    Raises: DiskError: it cannot be read, or is cut short. FileNotFoundError: it is gone.
    """
    # Only this and copies need them.
    from scratch_slurm.node.rawio import BLOCK_BYTES, ColdReader

    try:
        with open(path, "rb", buffering=0) as file, mmap.mmap(-1, BLOCK_BYTES) as block, memoryview(block) as view:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes // loopdev.SECTOR_BYTES * loopdev.SECTOR_BYTES != device_bytes:
                raise DiskError(f"{path}: has {size_bytes} bytes now, its device {device_bytes}")
            reader = ColdReader(file.fileno())
            blocks = -(-size_bytes // BLOCK_BYTES)
            between = random.sample(range(blocks), min(_PROBED_BLOCKS, blocks))
            for number in {0, blocks - 1, *between}:
                at = number * BLOCK_BYTES
                reader.read(view, at, min(BLOCK_BYTES, size_bytes - at))
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise DiskError(f"{path}: cannot be read: {exc.strerror}") from exc


def _open_backing(backing: Backing) -> tuple[int, Permissions | None]:
    """Open what a loop device is to read; an image in the source must be the generation that it was.

    Returns: a descriptor; and who may read an image in the source, as it is now and not as it was listed.
    """
    if isinstance(backing, FromCopy):
        path = backing.copy.path
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), None
        except OSError as exc:
            raise DiskError(f"{path}: cannot open: {exc.strerror}") from exc
    image = backing.image
    opened = find_origin(image.at.origin).open_mountable(image)
    if opened is None:
        raise ImageError(f"{image.at}: cannot be mounted where it lies, only from a copy")
    return opened.descriptor, opened.permissions


def _mount(request: op.MountImage, say: Say) -> None:
    mount_point = Path(request.mount_point)
    if not request.replace:
        mounts.ensure_mount_point(mount_point)
    descriptor, permissions = _open_backing(request.backing)
    permissions = permissions or request.image.permissions

    def probe(root: int) -> None:
        roots.probe_root(root)
        _check_gate(roots.root_permissions(root), permissions, say)

    fs_type: mounts.FsType = "erofs" if request.image.fs_type == "erofs" else "squashfs"
    try:
        # Direct reads from the source: its statistics are what the slow storage really served, and RAM holds the
        # data once. The cached image is read through the page cache: direct I/O costs squashfs a fifth of its speed.
        with loopdev.attach(descriptor, tag=request.tag, direct_io=isinstance(request.backing, FromSource)) as device:
            if request.replace:
                mounts.replace_image(device.path, mount_point, fs_type, probe=probe, before=_keep_pinned(request))
            else:
                mounts.mount_image(device.path, mount_point, fs_type, probe=probe)
    finally:
        os.close(descriptor)


def _check_gate(root: Permissions, image: Permissions, say: Say) -> None:
    """Refuse a mount that lets in people who may not read its image, before anybody sees it."""
    say(op.Root(root))
    who = too_open(root, image)
    if who:
        raise DeniedError("the image " + word_refusal(image, root, who))


def _keep_pinned(request: op.MountImage | op.UncoverMount | op.UnmountImage) -> Callable[[], None]:
    """Make what is called directly before a mount goes.

    It raises PinnedError: somebody pins the dataset now. LedgerError: that cannot be told, so it might be.
    """

    def check() -> None:
        # Only changes of mounts need it, and it takes SQLite along.
        from scratch_slurm.node.ledger.ledger import read_holders

        if request.ledger_path:
            dataset = Path(request.mount_point).name
            keepers = find_keepers(read_holders(request.ledger_path, dataset), request.despite)
            if keepers:
                raise PinnedError(f"{dataset}: was pinned by {', '.join(keepers)} before its mount could be changed")

    return check


def _unmount(request: op.UnmountImage) -> None:
    """Take down what is on top, whose tag the daemon has read, and what of ours lies beneath."""
    mount_point = Path(request.mount_point)
    _keep_pinned(request)()
    mounts.unmount(mount_point)
    while beneath := read_stacks(mount_point.parent).get(mount_point.name):
        status = loopdev.read_status(beneath[-1].device) if beneath[-1].device else None
        if status is None or parse_device_tag(status.tag) is None:
            return  # somebody else's: it is what there was before us
        mounts.unmount(mount_point)
    try:
        mount_point.rmdir()
    except OSError as exc:
        raise ScratchError(f"{mount_point}: unmounted, but not removed: {exc.strerror}") from exc


def _switch(request: op.SwitchBacking) -> None:
    descriptor, _permissions = _open_backing(request.backing)
    try:
        loopdev.retarget(request.device, descriptor, direct_io=isinstance(request.backing, FromSource))
    finally:
        os.close(descriptor)


def _change_cache(request: op.OnCache) -> None:
    cache = Cache(Path(request.cache_dir))
    try:
        match request:
            case op.PublishCopy():
                cache.publish(request.dataset, request.generation_id)
            case op.DropPartial():
                cache.drop_partial(request.dataset, request.generation_id)
            case op.RetireImage():
                cache.retire(request.image)
            case op.RestoreImage():
                cache.restore(request.image)
            case op.DiscardImage():
                cache.discard(request.image)
    except OSError as exc:
        raise DiskError(f"{exc.filename or cache.dir}: {word_os_error(exc, cache.dir)}") from exc


def _copy(request: op.CopyImage, say: Say) -> None:
    # Only copies need it, and it takes the hash library along.
    from scratch_slurm.node.staging import copying

    with contextlib.closing(find_origin(request.image.at.origin).open_supplier(request.image)) as supplier:
        options = copying.CopyOptions(readers=request.readers, bandwidth_bytes_per_s=request.bandwidth_bytes_per_s)
        chunks = supplier.read_chunk_digests()
        if chunks is not None:
            options = replace(options, chunk_bytes=chunks.chunk_bytes)
        part, generation = Path(request.staging_path), request.image.generation
        try:
            adopt_part(part, generation.former_ids)
        except OSError as exc:
            raise DiskError(f"{part}: cannot go on with it: {word_os_error(exc, part.parent)}") from exc
        copying.copy_image(
            supplier,
            part,
            expected=generation,
            promised_chunks=chunks.digests if chunks else b"",
            options=options,
            report=lambda progress: say(op.Copied(progress.bytes_done, progress.phase)),
            now=time.monotonic,
        )


if __name__ == "__main__":
    main()
