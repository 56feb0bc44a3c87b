import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scratch_slurm.domain.errors import DeviceError
from scratch_slurm.node.kernel.loopdev import attach, read_status
from scratch_slurm.node.kernel.loopsysfs import LoopBacking, LoopDevice, read_backings, read_loop_device

ATTRIBUTES = {
    "dev": "7:3\n",
    "size": "2048\n",
    "ro": "1\n",
    "loop/backing_file": "/source/imagenet.squashfs\n",
    "loop/offset": "0\n",
    "loop/autoclear": "1\n",
    "loop/dio": "0\n",
}
BOUND = LoopDevice(
    name="loop3",
    minor=3,
    backing_path="/source/imagenet.squashfs",
    deleted=False,
    size_bytes=1048576,
    offset_bytes=0,
    read_only=True,
    auto_clear=True,
    direct_io=False,
)


@pytest.fixture
def sys_block(tmp_path: Path) -> Callable[..., Any]:
    def add(name, **changes):
        for attribute, text in {**ATTRIBUTES, **changes}.items():
            if text is not None:
                file = tmp_path / name / attribute
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(os.fsencode(text))
        return tmp_path

    return add


def test_a_bound_device(sys_block: Callable[..., Any]) -> None:
    assert read_loop_device("loop3", sys_block("loop3")) == BOUND


ODD_PATHS = [
    pytest.param("/s/a.squashfs (deleted)\n", "/s/a.squashfs", True, id="deleted"),
    pytest.param("/s/two\nlines\n\n", "/s/two\nlines\n", False, id="line-breaks"),
    pytest.param("/s/\udcff \n", "/s/\udcff ", False, id="not-text-and-a-blank"),
]


@pytest.mark.parametrize(("shown", "path", "deleted"), ODD_PATHS)
def test_odd_backing_paths(sys_block: Callable[..., Any], shown: str, path: str, deleted: bool) -> None:
    root = sys_block("loop3", **{"loop/backing_file": shown})
    device = read_loop_device("loop3", root)
    assert device is not None
    assert (device.backing_path, device.deleted) == (path, deleted)
    assert read_backings(root) == {"loop3": LoopBacking(path, deleted)}


def test_backings_of_bound_loop_devices_alone(sys_block: Callable[..., Any]) -> None:
    for name in ("loop10", "loop9", "vda", "loopback", "loop\u0663"):
        root = sys_block(name)
    sys_block("loop2", **{"loop/backing_file": None, "loop/offset": None})  # not bound
    assert set(read_backings(root)) == {"loop9", "loop10"}
    sys_block("loop9", **{"loop/backing_file": "/cache/other\n"})
    assert read_backings(root)["loop9"] == LoopBacking("/cache/other", False)


def test_a_device_that_is_unbound_meanwhile(sys_block: Callable[..., Any]) -> None:
    assert read_loop_device("loop4", sys_block("loop4", size=None)) is None


def test_a_missing_sysfs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot read the loop devices"):
        read_backings(tmp_path / "none")


def test_a_name_that_is_no_loop_device_never_becomes_a_path() -> None:
    with pytest.raises(ValueError, match="loop device"):
        read_status("../sda")


@pytest.mark.parametrize("tag", ["x" * 64, "é" * 32, "a\0b"], ids=["64-bytes", "64-bytes-in-32-letters", "nul"])
def test_a_tag_that_the_kernel_would_cut_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="tag"):
        attach(-1, tag=tag, direct_io=False)
