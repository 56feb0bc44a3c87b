"""Sources at their worst, by a FUSE server: one that stops answering, as a dead NFS server does, and a picky one."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratch_slurm.node.kernel import diskstats, loopdev, loopsysfs, mountinfo, mounts
from tests.kit.images import CHANGED, MARK, copy_image, in_child, make_image, opened, wait_until

pytest.importorskip("mfusepy", reason="mfusepy is not installed")
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

SERVER = """
import errno, os, sys
import mfusepy

class Source(mfusepy.Operations):
    use_ns = True

    def getattr(self, path, fh=None):
        found = os.lstat(sys.argv[1] + path)
        return {key: getattr(found, key) for key in ("st_mode", "st_size", "st_nlink", "st_ino", "st_mtime_ns")}

    def open(self, path, flags):
        return os.open(sys.argv[1] + path, os.O_RDONLY)

    def read(self, path, size, offset, fh):
        if size % 4096 and sys.argv[3] == "whole-pages":
            raise mfusepy.FuseOSError(errno.EINVAL)
        return os.pread(fh, size, offset)

mfusepy.FUSE(Source(), sys.argv[2], foreground=True, attr_timeout=0, max_threads=4)
"""


@pytest.fixture
def source(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """An image on a FUSE file system: (its path, its server)."""
    (folder / "server").mkdir()
    (folder / "source").mkdir()
    make_image(folder / "server" / "image.squashfs")
    kind = getattr(request, "param", "plain")
    arguments = [folder / "server", folder / "source", kind]
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SERVER, *arguments])
    image = folder / "source" / "image.squashfs"
    try:
        wait_until(image.exists)
        yield image, server
    finally:
        server.kill()  # what hangs ends with an error now
        server.wait()


@pytest.fixture
def mounted(folder: Path, source: tuple[Path, subprocess.Popen[bytes]]) -> tuple[str, Path]:
    image, server = source
    mount_point = folder / "datasets"
    mount_point.mkdir()
    with opened(image) as fd, loopdev.attach(fd, tag="test", direct_io=False) as device:
        mounts.mount_image(device.path, mount_point, "squashfs")
    assert len([path.stat() for path in mount_point.rglob("*")]) == 8  # the names are in memory from here on
    server.send_signal(signal.SIGSTOP)
    os.waitpid(server.pid, os.WUNTRACED)  # until it has stopped
    return device.name, mount_point


@contextlib.contextmanager
def blocked(function, *arguments):
    """Run a function in a child, and see that it is still at it after a while; killed in the end."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    try:
        child.join(0.5)
        assert child.is_alive()
        yield child
    finally:
        child.kill()


def switch(name: str, path: Path) -> None:
    with opened(path) as fd:
        loopdev.retarget(name, fd)


def backing_path(name: str) -> str:
    device = loopsysfs.read_loop_device(name)
    assert device is not None
    return device.backing_path


def look_without_blocking(name, mount_point):
    assert backing_path(name) == loopsysfs.read_backings()[name].path
    assert name in diskstats.read_diskstats()
    assert name in [mount.device for mount in mountinfo.read_mounts()]
    mounts.ensure_mount_point(mount_point)
    mounts.unmount(mount_point)
    return "done"


def test_what_promises_not_to_block_does_not(
    folder: Path, source: tuple[Path, subprocess.Popen[bytes]], mounted: tuple[str, Path]
) -> None:
    name, mount_point = mounted
    copy = copy_image(folder / "server" / "image.squashfs", folder / "copy")
    with blocked(loopdev.read_status, name), blocked(switch, name, copy):
        assert in_child(look_without_blocking, name, mount_point) == "done"


def test_a_switch_away_blocks_without_a_read_in_flight_but_can_be_killed(
    folder: Path, source: tuple[Path, subprocess.Popen[bytes]], mounted: tuple[str, Path]
) -> None:
    name, _ = mounted
    copy = copy_image(folder / "server" / "image.squashfs", folder / "copy")
    with blocked(switch, name, copy) as child:
        pass
    child.join(10)
    assert child.exitcode == -signal.SIGKILL
    assert backing_path(name) == str(source[0])
    source[1].send_signal(signal.SIGCONT)
    switch(name, copy)
    assert backing_path(name) == str(copy)


def rescue(copy, mount_point):
    with opened(copy) as fd, loopdev.attach(fd, tag="test", direct_io=False) as device:
        mounts.replace_image(device.path, mount_point, "squashfs")
    return [path.read_bytes()[: len(MARK)] for path in sorted(Path(mount_point).glob("d*/f*"))]


def test_a_cached_copy_takes_the_place_of_a_hanging_source(
    folder: Path, source: tuple[Path, subprocess.Popen[bytes]], mounted: tuple[str, Path]
) -> None:
    name, mount_point = mounted
    copy = copy_image(folder / "server" / "image.squashfs", folder / "copy", changed=True)
    with opened(mount_point / "d0/f0") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with blocked(os.pread, fd, 1000, 0), blocked(switch, name, copy):
            assert in_child(rescue, copy, mount_point) == [CHANGED] * 6


@pytest.mark.parametrize(
    ("source", "direct_io"),
    [("plain", True), ("whole-pages", False)],
    indirect=["source"],
    ids=["plain", "whole-pages"],
)
def test_direct_io_only_where_the_source_takes_single_sectors(
    folder: Path, source: tuple[Path, subprocess.Popen[bytes]], direct_io: bool
) -> None:
    image, _ = source
    copy = copy_image(folder / "server" / "image.squashfs", folder / "copy")
    with opened(image) as fd:
        with loopdev.attach(fd, tag="test", direct_io=True) as device:
            assert device.direct_io is direct_io
            assert Path(device.path).read_bytes() == copy.read_bytes()
        with opened(copy) as copy_fd, loopdev.attach(copy_fd, tag="test", direct_io=True) as device:
            loopdev.retarget(device.name, fd, direct_io=True)
            switched = loopsysfs.read_loop_device(device.name)
            assert switched is not None and switched.direct_io is direct_io
            assert Path(device.path).read_bytes() == copy.read_bytes()
