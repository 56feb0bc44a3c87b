"""Changes of a mount that are cut off by death, or crossed by a pin: readers meet what is told, and all heals."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratch_slurm.domain.backing import FromSource
from scratch_slurm.domain.errors import DeviceError, ImageError, LedgerError, PinnedError
from scratch_slurm.domain.model import Location, SourceImage
from scratch_slurm.domain.names import device_tag
from scratch_slurm.node.kernel import loopdev, mounts
from scratch_slurm.node.kernel.mountinfo import read_stacks
from scratch_slurm.service import operations as op
from scratch_slurm.service.workers import Workers
from tests.kit.daemon import RunningDaemon
from tests.kit.datasets import make_version
from tests.kit.generations import generation_of
from tests.kit.images import MARK, backings_below, in_child, make_image, opened
from tests.kit.processes import children_of
from tests.kit.tracing import delayed, run_killed_at

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

REPLACE = """
import os, sys
from pathlib import Path
from scratch_slurm.node.kernel import loopdev, mounts
backing, mount_point, tag = sys.argv[1:]
fd = os.open(backing, os.O_RDONLY | os.O_CLOEXEC)
with loopdev.attach(fd, tag=tag, direct_io=False) as device:
    mounts.replace_image(device.path, Path(mount_point), "squashfs")
"""


def stack(daemon: RunningDaemon, name: str = "coco") -> list[str | None]:
    """The devices of what is mounted on a dataset's path, the one that is met last."""
    return [mount.device for mount in read_stacks(daemon.mount_dir).get(name, [])]


def replace_killed_at(daemon: RunningDaemon, call: str, backing: Path, image: Path) -> None:
    """Replace `coco` by what is in `backing`, tagged as the generation of `image`, and die as a system call begins."""
    tag = device_tag(generation_of(image).id)
    command = [sys.executable, "-c", REPLACE, str(backing), str(daemon.mount_dir / "coco"), tag]
    assert run_killed_at(call, 1, command).returncode != 0


@pytest.fixture
def daemon(folder: Path) -> Iterator[RunningDaemon]:
    """A daemon that has ended and left version 1 of `coco` mounted."""
    running = RunningDaemon(folder)
    with running:
        make_version(running.source_dir, "coco", 1)
        running.until(lambda: running.is_mounted("coco"))
        running.stop()
        yield running


def is_settled_on(daemon: RunningDaemon, data: bytes) -> bool:
    return len(stack(daemon)) == 1 and len(backings_below(daemon.folder)) == 1 and daemon.read("coco") == data


@pytest.mark.parametrize("call", ["fsopen", "fsconfig", "fsmount", "move_mount", "umount2"])
def test_a_replacement_killed_at_a_system_call_is_finished_by_the_next_daemon(daemon: RunningDaemon, call: str) -> None:
    new = make_version(daemon.source_dir, "coco", 2)
    replace_killed_at(daemon, call, new.image, new.image)
    assert len(stack(daemon)) == (2 if call == "umount2" else 1)
    daemon.start()
    daemon.until(lambda: is_settled_on(daemon, new.data), "the new version alone is there")
    assert bool(daemon.logged("uncovered dataset=coco")) == (call == "umount2")
    daemon.until(lambda: not daemon.dataset("coco").update_waiting)


def test_a_job_that_pins_keeps_what_it_meets_on_top_of_the_newer_one_and_is_told_so(daemon: RunningDaemon) -> None:
    new = make_version(daemon.source_dir, "coco", 2)
    replace_killed_at(daemon, "umount2", new.image, new.image)
    daemon.pin(1, "coco")
    daemon.start()
    daemon.until(lambda: "newer image" in daemon.dataset("coco").problem)
    assert daemon.dataset("coco").update_waiting
    assert daemon.read("coco") != new.data
    assert len(stack(daemon)) == 2
    daemon.release(1)
    daemon.until(lambda: is_settled_on(daemon, new.data), "the new version alone is there")


def test_a_mend_that_was_cut_short_is_finished_though_pinned(daemon: RunningDaemon) -> None:
    image = daemon.source_dir / "coco.squashfs"
    replace_killed_at(daemon, "umount2", image, image)
    (fresh, _) = stack(daemon)
    daemon.pin(1, "coco")
    daemon.start()
    daemon.until(lambda: stack(daemon) == [fresh], "the fresh mount alone is there")
    assert daemon.dataset("coco").holders == ("job:1",)
    assert not daemon.dataset("coco").problem


def make_sick_beneath(daemon: RunningDaemon) -> str:
    """Publish version 2 with many names, and leave a mount of it beneath version 1 that cannot be read any more.

    Returns: its device.
    """
    backing, image = daemon.folder / "copy", daemon.source_dir / "coco.squashfs"
    make_image(backing, files=4000, file_bytes=10)
    image.unlink()
    image.write_bytes(backing.read_bytes())
    replace_killed_at(daemon, "umount2", backing, image)
    (sick, _) = stack(daemon)
    assert sick is not None
    os.truncate(backing, 4096)
    subprocess.run(["blockdev", "--flushbufs", f"/dev/{sick}"], check=True)
    return sick


def test_what_cannot_be_read_beneath_is_never_shown(daemon: RunningDaemon) -> None:
    sick = make_sick_beneath(daemon)
    with pytest.raises(ImageError, match="cannot be read"):
        mounts.uncover(daemon.mount_dir / "coco", sick)
    assert len(stack(daemon)) == 2
    daemon.start()
    # Its backing tells: the name of the sick one's device is given out again at once.
    sick_image = str(daemon.folder / "copy")
    daemon.until(
        lambda: sick_image not in backings_below(daemon.folder).values() and len(stack(daemon)) == 1,
        "all is mounted anew",
    )
    assert daemon.read("coco", "d0/f0").startswith(MARK)
    assert daemon.logged("degraded dataset=coco action=uncover")


def test_an_older_one_beneath_goes_when_the_source_has_a_third(daemon: RunningDaemon) -> None:
    second = make_version(daemon.source_dir, "coco", 2)
    replace_killed_at(daemon, "umount2", second.image, second.image)
    third = make_version(daemon.source_dir, "coco", 3)
    daemon.start()
    daemon.until(lambda: is_settled_on(daemon, third.data), "the third version alone is there")


def test_uncover_does_nothing_unless_that_device_lies_beneath(daemon: RunningDaemon) -> None:
    path = daemon.mount_dir / "coco"
    before = stack(daemon)
    with pytest.raises(DeviceError, match="loop999 is not mounted beneath"):
        mounts.uncover(path, "loop999")
    image = daemon.source_dir / "coco.squashfs"
    replace_killed_at(daemon, "umount2", image, image)
    with pytest.raises(DeviceError, match="is not mounted beneath"):
        mounts.uncover(path, str(before[0]))
    assert len(stack(daemon)) == 2


def test_all_layers_of_ours_go_when_a_dataset_does_and_a_strangers_stays(daemon: RunningDaemon, folder: Path) -> None:
    image = daemon.source_dir / "coco.squashfs"
    replace_killed_at(daemon, "umount2", image, image)
    path = daemon.mount_dir / "coco"
    run(op.UnmountImage(str(path)))
    assert stack(daemon) == []
    assert not path.exists()
    path.mkdir()
    foreign = make_version(folder, "foreign")
    for tag in ("a stranger's", device_tag("0" * 16)):
        with opened(foreign.image) as fd, loopdev.attach(fd, tag=tag, direct_io=False) as device:
            if tag == "a stranger's":
                mounts.mount_image(device.path, path, "squashfs")
                (stranger,) = stack(daemon)
            else:
                with opened(path, os.O_PATH) as target:
                    mounts._mount_and_probe(device.path, target, path, "squashfs", lambda root: None)
    assert len(stack(daemon)) == 2
    run(op.UnmountImage(str(path)))
    assert stack(daemon) == [stranger]


# A pin that crosses a change


def run(request: op.Request) -> None:
    async def do() -> None:
        workers = Workers()
        try:
            await workers.run(request, silence_s=60)
        finally:
            await workers.close(patience_s=10)

    in_child(lambda: asyncio.run(do()))  # whose threads are gone with it


def test_a_job_that_pins_while_a_newer_image_is_being_mounted_keeps_its_version(daemon: RunningDaemon) -> None:
    daemon.start()
    daemon.until(lambda: daemon.is_mounted("coco"))
    before = daemon.read("coco")
    with delayed(daemon.pid, "fsmount", 120):
        for worker in children_of(daemon.pid):  # an idle one was there before the tracer, which does not see it
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        new = make_version(daemon.source_dir, "coco", 2)
        daemon.until(lambda: len(backings_below(daemon.folder)) == 2, "the new image is being mounted")
        daemon.pin(1, "coco")
    daemon.until(lambda: daemon.logged("kept dataset=coco"), "the change is given up")
    assert daemon.read("coco") == before
    daemon.until(lambda: daemon.dataset("coco").update_waiting)
    daemon.release(1)
    daemon.until(lambda: is_settled_on(daemon, new.data), "the new version alone is there")


def changes(daemon: RunningDaemon) -> dict[str, op.Request]:
    """Every request that changes a mount which somebody may have pinned."""
    image = daemon.source_dir / "coco.squashfs"
    path, ledger = str(daemon.mount_dir / "coco"), str(daemon.folder / "state/ledger.sqlite")
    dataset = SourceImage("coco", Location(str(image.parent), image.name), generation_of(image), "squashfs")
    beneath = stack(daemon)[0]
    return {
        "replace": op.MountImage(dataset, FromSource(dataset), path, "test", True, ledger),
        "uncover": op.UncoverMount(path, str(beneath), ledger),
        "unmount": op.UnmountImage(path, ledger),
    }


@pytest.mark.parametrize("change", ["replace", "uncover", "unmount"])
@pytest.mark.parametrize("ledger", ["pinned", "missing", "garbage"])
def test_nothing_changes_under_a_pin_or_while_pins_cannot_be_read(
    daemon: RunningDaemon, change: str, ledger: str
) -> None:
    image = daemon.source_dir / "coco.squashfs"
    replace_killed_at(daemon, "umount2", image, image)
    before = stack(daemon)
    daemon.pin(1, "coco")
    daemon.pin(2, "other")
    request = changes(daemon)[change]
    path = daemon.folder / "state/ledger.sqlite"
    if ledger != "pinned":
        daemon.release(1)
        path.unlink()
    if ledger == "garbage":
        path.write_bytes(b"no ledger" * 1000)
    with pytest.raises(PinnedError if ledger == "pinned" else LedgerError):
        run(request)
    assert stack(daemon) == before
    assert path.exists() == (ledger != "missing")


@pytest.mark.parametrize("change", ["replace", "uncover", "unmount"])
def test_a_change_goes_on_when_only_others_pin(daemon: RunningDaemon, change: str) -> None:
    image = daemon.source_dir / "coco.squashfs"
    replace_killed_at(daemon, "umount2", image, image)
    daemon.pin(1, "other")
    before = stack(daemon)
    run(changes(daemon)[change])
    assert stack(daemon) != before
