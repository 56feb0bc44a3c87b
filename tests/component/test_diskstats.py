import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scratch_slurm.node.kernel import loopdev
from scratch_slurm.node.kernel.diskstats import DiskReads, read_diskstats
from tests.kit.images import copy_image, opened

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

IMAGE_BYTES = 1 << 20


@pytest.fixture
def image(folder):
    (folder / "image").write_bytes(os.urandom(IMAGE_BYTES))
    return folder / "image"


def read_all(device):
    with opened(device) as fd:
        return len(os.pread(fd, 2 * IMAGE_BYTES, 0))


def drop(device):
    if shutil.which("udevadm"):  # its rules read a new device too
        subprocess.run(["udevadm", "settle"], check=True)
    subprocess.run(["blockdev", "--flushbufs", device], check=True)


def reads_of(device):
    return read_diskstats()[Path(device).name]


def grown(device, before):
    now = reads_of(device)
    return DiskReads(reads=now.reads - before.reads, bytes=now.bytes - before.bytes)


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_bytes_are_right_whatever_the_block_size(image, block_bytes) -> None:
    command = ["losetup", "--find", "--show", "--read-only", "--sector-size", str(block_bytes), image]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    queue = Path(f"/sys/block/{Path(device).name}/queue")
    assert int((queue / "hw_sector_size").read_text()) == block_bytes
    drop(device)
    before = reads_of(device)
    assert read_all(device) == IMAGE_BYTES
    assert grown(device, before).bytes == IMAGE_BYTES
    assert 0 < grown(device, before).reads <= IMAGE_BYTES // 512


def test_what_memory_holds_is_not_read_again(image) -> None:
    with opened(image) as fd, loopdev.attach(fd, tag="test", direct_io=False) as device:
        read_all(device.path)
        before = reads_of(device.path)
        read_all(device.path)
        assert grown(device.path, before) == DiskReads(reads=0, bytes=0)


def test_the_counter_goes_on_through_a_switch(folder, image) -> None:
    copy = copy_image(image, folder / "copy")
    with opened(image) as fd, opened(copy) as copy_fd, loopdev.attach(fd, tag="test", direct_io=False) as device:
        drop(device.path)
        before = reads_of(device.path)
        read_all(device.path)
        loopdev.retarget(device.name, copy_fd)
        drop(device.path)
        read_all(device.path)
        assert grown(device.path, before).bytes == 2 * IMAGE_BYTES
