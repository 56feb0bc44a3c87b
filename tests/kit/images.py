"""Small real images, children that may be lost, and a clean-up that does not use the code under test."""

import contextlib
import ctypes
import multiprocessing
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MARK = b"original"
CHANGED = b"replaced"

_CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


def make_tree(root: Path, *, seed: int = 0, files: int = 6, file_bytes: int = 200_000) -> dict[str, bytes]:
    """Write a tree of random files, each beginning with MARK; returns path -> bytes."""
    rng = random.Random(seed)
    content = {}
    for number in range(files):
        name = f"d{number % 2}/f{number}"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        content[name] = MARK + rng.randbytes(file_bytes)
        (root / name).write_bytes(content[name])
    return content


def make_image(path: Path, fs_type: str = "squashfs", **tree: int) -> dict[str, bytes]:
    """Pack a tree uncompressed (so that MARK can be found in the image); returns path -> bytes."""
    root = path.with_suffix(".tree")
    content = make_tree(root, **tree)
    if fs_type == "squashfs":
        command = [
            "mksquashfs",
            str(root),
            str(path),
            "-noappend",
            "-quiet",
            "-no-progress",
            "-noI",
            "-noD",
            "-noF",
            "-noX",
        ]
    else:
        command = ["mkfs.erofs", str(path), str(root)]
    subprocess.run(command, check=True, capture_output=True)
    return content


def copy_image(image: Path, copy: Path, *, changed: bool = False) -> Path:
    """Copy an image; `changed` makes the copy tell itself from the original by CHANGED in place of MARK."""
    data = image.read_bytes()
    copy.write_bytes(data.replace(MARK, CHANGED) if changed else data)
    return copy


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read_cold(path: Path) -> bytes:
    """Read a file from its device, past what memory holds of it."""
    with opened(path) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, os.fstat(fd).st_size, 0)


def wait_until(condition: Callable[[], object], *, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.005)


def backings_below(folder: Path) -> dict[str, str]:
    """Read device -> backing path, of the loop devices whose backing lies below a folder."""
    found = {}
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            path = file.read_text().removesuffix("\n")
            if path.startswith(f"{folder}/"):
                found[file.parts[3]] = path
    return found


def clean_up(folder: Path) -> None:
    """Unmount and unbind all that is below a folder, whatever state a test left it in."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        mount_point = line.split(" ")[4]
        if mount_point.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", mount_point], check=False)
    for name in backings_below(folder):
        subprocess.run(["losetup", "-d", f"/dev/{name}"], check=False)
    wait_until(lambda: not backings_below(folder))


def in_child(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call a function in a forked child, for what cannot be undone; returns or raises what it does."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run() -> None:
        try:
            theirs.send((function(*arguments, **options), None))
        except BaseException as error:
            theirs.send((None, error))

    child = context.Process(target=run)
    child.start()
    theirs.close()
    try:
        assert ours.poll(30), "the child hangs"
        answer: tuple[T, None] | tuple[None, BaseException] = ours.recv()
        child.join(30)
    finally:
        child.kill()
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def own_mount_namespace() -> None:
    """Leave the mounts of the machine alone from here on; for `in_child`."""
    if _libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Mount where no stranger's new namespace copies it: a copy would keep its loop device bound."""
    here = Path.cwd()
    with opened(Path("/proc/self/ns/mnt")) as machine:
        own_mount_namespace()
        try:
            yield
        finally:
            if _libc.setns(machine, _CLONE_NEWNS):
                raise OSError(ctypes.get_errno(), "setns")
            os.chdir(here)
