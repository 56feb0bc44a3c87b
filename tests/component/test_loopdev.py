import errno
import itertools
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scratch_slurm.domain.errors import DeviceError, RetargetError
from scratch_slurm.node.kernel import loopdev, loopsysfs
from scratch_slurm.node.kernel.mounts import mount_image
from tests.kit import seccomp
from tests.kit.images import (
    CHANGED,
    MARK,
    backings_below,
    copy_image,
    in_child,
    make_image,
    opened,
    own_mount_namespace,
    read_cold,
    wait_until,
)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_mounts")]

LOOP_CONFIGURE = 0x4C0A
LOOP_CHANGE_FD = 0x4C06
TAG = "scratch-slurm:0123456789abcdef"


@pytest.fixture
def image(folder):
    make_image(folder / "source.squashfs")
    return folder / "source.squashfs"


@pytest.fixture
def mounted(folder, image):
    """A dataset on its source: (device name, mount point)."""
    mount_point = folder / "datasets"
    mount_point.mkdir()
    with opened(image) as fd, loopdev.attach(fd, tag=TAG, direct_io=False) as device:
        mount_image(device.path, mount_point, "squashfs")
    return device.name, mount_point


def seen(name: str) -> loopsysfs.LoopDevice:
    device = loopsysfs.read_loop_device(name)
    assert device is not None
    return device


def tag_of(name: str) -> str:
    status = loopdev.read_status(name)
    assert status is not None
    return status.tag


def attach(path, **options):
    with opened(path) as fd:
        return loopdev.attach(fd, **{"tag": TAG, "direct_io": False, **options})


def retarget(name, path, **options):
    with opened(path) as fd:
        loopdev.retarget(name, fd, **options)


# attach


def test_an_attached_device_is_read_only_clears_itself_and_carries_its_tag(image) -> None:
    with attach(image) as device:
        assert loopsysfs.read_loop_device(device.name) == loopsysfs.LoopDevice(
            name=device.name,
            minor=os.minor(Path(device.path).stat().st_rdev),
            backing_path=str(image),
            deleted=False,
            size_bytes=image.stat().st_size,
            offset_bytes=0,
            read_only=True,
            auto_clear=True,
            direct_io=False,
        )
        assert loopsysfs.read_backings()[device.name] == loopsysfs.LoopBacking(str(image), False)
        assert loopdev.read_status(device.name) == loopdev.LoopStatus(
            tag=TAG, inode=image.stat().st_ino, device=image.stat().st_dev
        )
        assert Path(device.path).read_bytes() == image.read_bytes()
    assert loopsysfs.read_loop_device(device.name) is None
    assert loopdev.read_status(device.name) is None


def test_a_device_is_read_only_although_the_image_is_open_for_writing(image) -> None:
    with opened(image, os.O_RDWR) as fd, loopdev.attach(fd, tag=TAG, direct_io=False) as device:
        assert seen(device.name).read_only


def test_the_longest_tag_comes_back_whole(image) -> None:
    with attach(image, tag="t" * loopdev.MAX_TAG_BYTES) as device:
        assert tag_of(device.name) == "t" * loopdev.MAX_TAG_BYTES


def test_odd_and_deleted_backing_names(folder, image) -> None:
    odd = copy_image(image, folder / "two\nlines\n")
    with attach(odd) as device:
        assert seen(device.name).backing_path == str(odd)
        odd.unlink()
        found = seen(device.name)
        assert (found.backing_path, found.deleted) == (str(odd), True)


def test_files_kept_open_show_every_switch_and_binding(folder, image) -> None:
    copy = copy_image(image, folder / "cached.squashfs")
    kept: dict[str, int] = {}
    with attach(image) as device:
        assert loopsysfs.read_backings(kept=kept)[device.name].path == str(image)
        file = kept[device.name]
        for path in (copy, image, copy):
            retarget(device.name, path)
            assert loopsysfs.read_backings(kept=kept)[device.name].path == str(path)
        copy.rename(folder / "renamed")
        assert loopsysfs.read_backings(kept=kept)[device.name].path == f"{folder}/renamed"
        (folder / "renamed").unlink()
        assert loopsysfs.read_backings(kept=kept)[device.name].deleted
        assert kept[device.name] == file
    name = device.name
    # The same device, bound anew unseen. A test beside this one may have been given it meanwhile.
    if subprocess.run(["losetup", f"/dev/{name}", image], check=False).returncode:
        for each in kept.values():
            os.close(each)
        return
    try:
        assert loopsysfs.read_backings(kept=kept)[name] == loopsysfs.LoopBacking(str(image), False)
    finally:
        subprocess.run(["losetup", "-d", f"/dev/{name}"], check=True)
    assert loopsysfs.read_backings(kept=kept).keys() >= kept.keys()
    assert loopsysfs.read_backings(kept=kept).get(name, loopsysfs.LoopBacking("", False)).path != str(image)
    for each in kept.values():
        os.close(each)


def test_no_file_stays_open_unless_it_is_kept() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    loopsysfs.read_backings()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_directory_is_refused_and_nothing_stays_bound(folder) -> None:
    with pytest.raises(DeviceError, match="cannot bind the image"):
        attach(folder)
    assert not [each for each in loopsysfs.read_backings().values() if each.path.startswith(str(folder))]


def test_racing_callers_get_devices_of_their_own(image) -> None:
    with ThreadPoolExecutor(8) as pool:
        devices = list(pool.map(lambda _: attach(image), range(24)))
    try:
        assert len({device.name for device in devices}) == 24
        assert all(tag_of(device.name) == TAG for device in devices)
    finally:
        for device in devices:
            device.close()


def attach_while_refused(image, code, pauses):
    seccomp.refuse(seccomp.IOCTL, code, argument=1, equals=LOOP_CONFIGURE)
    with attach(image, direct_io=True, sleep=pauses.append) as device:
        return seen(device.name), loopdev.read_status(device.name)


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EINVAL], ids=["ENOTTY", "EINVAL"])
def test_without_loop_configure_the_device_is_the_same(image, code) -> None:
    with attach(image, direct_io=True) as device:
        expected = seen(device.name), loopdev.read_status(device.name)
    device, status = in_child(attach_while_refused, image, code, [])
    assert (device.read_only, device.auto_clear, device.direct_io) == (True, True, expected[0].direct_io)
    assert (device.backing_path, device.size_bytes, status) == (str(image), expected[0].size_bytes, expected[1])
    assert not backings_below(image.parent)


def count_pauses(image):
    pauses: list[float] = []
    try:
        attach_while_refused(image, errno.EBUSY, pauses)
    except DeviceError as exc:
        return len(pauses), sum(pauses), exc.message


def test_a_free_device_that_is_always_taken_ends_in_an_error(image) -> None:
    pauses, waited_s, message = in_child(count_pauses, image)
    assert (pauses, message) == (31, "loop devices: other programs took the free one 32 times")
    assert waited_s < 1


def attach_with_own_dev(image, prepare):
    own_mount_namespace()
    subprocess.run(["mount", "-t", "tmpfs", "none", "/dev"], check=True)
    os.mknod("/dev/loop-control", stat.S_IFCHR | 0o600, os.makedev(10, 237))
    for number in range(256):
        prepare(Path(f"/dev/loop{number}"))
    with attach(image) as device:
        node = Path(device.path).stat()
        return stat.S_ISBLK(node.st_mode), oct(stat.S_IMODE(node.st_mode)), tag_of(device.name)


def test_a_missing_device_node_is_made_for_root_only(image) -> None:
    assert in_child(attach_with_own_dev, image, lambda node: None) == (True, "0o600", TAG)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda node: node.write_bytes(b""), id="a-file"),
        pytest.param(lambda node: os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(7, 255)), id="another-device"),
    ],
)
def test_a_wrong_device_node_is_refused(image, prepare) -> None:
    with pytest.raises(DeviceError, match=r"/dev/loop\d+: not the node of device 7:\d+"):
        in_child(attach_with_own_dev, image, prepare)


def test_without_the_loop_driver_the_hint_names_it(image) -> None:
    def attach_without_control():
        own_mount_namespace()
        subprocess.run(["mount", "-t", "tmpfs", "none", "/dev"], check=True)
        attach(image)

    with pytest.raises(DeviceError) as caught:
        in_child(attach_without_control)
    assert caught.value.hint == "modprobe loop"


# direct I/O


def test_direct_io_follows_the_wish_through_switches(folder, image) -> None:
    copy = copy_image(image, folder / "copy")
    with attach(image, direct_io=True) as device:
        if not device.direct_io:
            pytest.skip(f"the file system of {folder} has no direct I/O")
        switched = []
        for path, direct_io in [(copy, False), (image, True), (copy, True), (image, False)]:
            retarget(device.name, path, direct_io=direct_io)
            switched.append(seen(device.name).direct_io)
    assert switched == [False, True, True, False]


@pytest.fixture
def buffered_only(folder, image):
    """The image on a file system that refuses O_DIRECT: squashfs itself."""
    (folder / "outer").mkdir()
    copy_image(image, folder / "outer" / "image")
    subprocess.run(["mksquashfs", folder / "outer", folder / "outer.squashfs", "-quiet", "-no-progress"], check=True)
    (folder / "nested").mkdir()
    subprocess.run(["mount", "-o", "loop,ro", folder / "outer.squashfs", folder / "nested"], check=True)
    return folder / "nested" / "image"


def test_where_direct_io_is_refused_the_device_is_buffered(image, buffered_only) -> None:
    with attach(buffered_only, direct_io=True) as device:
        assert not device.direct_io
        assert Path(device.path).read_bytes() == image.read_bytes()
    with attach(image, direct_io=True) as device:
        retarget(device.name, buffered_only, direct_io=True)
        assert not seen(device.name).direct_io
        assert Path(device.path).read_bytes() == image.read_bytes()


# retarget


def test_a_switch_changes_the_backing_and_keeps_the_tag(folder, image) -> None:
    copy = copy_image(image, folder / "copy")
    with attach(image) as device:
        retarget(device.name, copy)
        found = seen(device.name)
        assert (found.backing_path, found.auto_clear, found.read_only) == (str(copy), True, True)
        assert loopdev.read_status(device.name) == loopdev.LoopStatus(
            tag=TAG, inode=copy.stat().st_ino, device=copy.stat().st_dev
        )


def test_open_files_read_the_new_backing(folder, image, mounted) -> None:
    name, mount_point = mounted
    copy = copy_image(image, folder / "copy", changed=True)
    with opened(mount_point / "d0/f0") as fd:
        assert os.pread(fd, len(MARK), 0) == MARK
        retarget(name, copy)
        image.unlink()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, len(CHANGED), 0) == CHANGED
    assert read_cold(mount_point / "d1/f3").startswith(CHANGED)


def test_readers_see_right_bytes_through_many_switches(folder) -> None:
    mount_point = folder / "busy"
    mount_point.mkdir()
    content = make_image(folder / "busy.squashfs", seed=1)
    copies = [folder / "busy.squashfs", copy_image(folder / "busy.squashfs", folder / "busy.copy")]
    with attach(copies[0]) as device:
        mount_image(device.path, mount_point, "squashfs")
    shares = [sorted(content)[start::3] for start in range(3)]
    stop = threading.Event()

    def read_until_stopped(names):
        rounds = 0
        while not stop.is_set():
            rounds += 1
            for name in names:
                assert read_cold(mount_point / name) == content[name], name
        return rounds

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read_until_stopped, names) for names in shares]
        try:
            for path in itertools.islice(itertools.cycle(reversed(copies)), 100):
                retarget(device.name, path)
        finally:
            stop.set()
        assert all(reader.result() > 0 for reader in readers)


def test_another_size_is_refused_with_both_sizes(folder, image, mounted) -> None:
    name, mount_point = mounted
    larger = copy_image(image, folder / "larger")
    os.truncate(larger, image.stat().st_size + 4096)
    with pytest.raises(RetargetError) as caught:
        retarget(name, larger)
    size = image.stat().st_size
    assert f"the device has {size} bytes, the new image {size + 4096}" in caught.value.message
    assert seen(name).backing_path == str(image)
    assert read_cold(mount_point / "d0/f0").startswith(MARK)


def test_a_refused_switch_keeps_direct_io(folder, image) -> None:
    (folder / "short").write_bytes(b"short")
    with attach(image, direct_io=True) as device:
        with pytest.raises(RetargetError):
            retarget(device.name, folder / "short")
        assert seen(device.name).direct_io == device.direct_io


def test_an_old_backing_that_changed_refuses_with_a_way_out(folder, image) -> None:
    copy = copy_image(image, folder / "copy")
    with attach(image) as device:
        os.truncate(image, 4096)
        with pytest.raises(RetargetError, match="although the size is right") as caught:
            retarget(device.name, copy)
    assert "mount the dataset anew" in (caught.value.hint or "")


def test_a_writable_device_is_refused(folder, image) -> None:
    copy = copy_image(image, folder / "copy")
    command = ["losetup", "--find", "--show", image]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    with pytest.raises(RetargetError, match="the device is not read-only"):
        retarget(Path(path).name, copy)


def test_an_unbound_device_is_refused(image) -> None:
    with attach(image) as device:
        pass
    with pytest.raises(RetargetError, match=f"{device.name}: cannot switch: the device is not bound"):
        retarget(device.name, image)


def test_another_refusal_gives_the_kernels_reason(image, mounted) -> None:
    def retarget_while_refused():
        seccomp.refuse(seccomp.IOCTL, errno.EPERM, argument=1, equals=LOOP_CHANGE_FD)
        retarget(mounted[0], image)

    with pytest.raises(RetargetError, match=r"cannot switch: Operation not permitted; the device has \d+ bytes"):
        in_child(retarget_while_refused)


# going away


def test_the_device_goes_by_itself_with_its_mount(mounted) -> None:
    name, mount_point = mounted
    with opened(mount_point / "d0/f0"):
        subprocess.run(["umount", "-l", mount_point], check=True)
        assert loopsysfs.read_loop_device(name) is not None
    wait_until(lambda: loopsysfs.read_loop_device(name) is None)


def test_a_detached_device_goes_when_its_mount_goes(mounted) -> None:
    name, mount_point = mounted
    loopdev.detach(name)
    assert read_cold(mount_point / "d0/f0").startswith(MARK)
    subprocess.run(["umount", mount_point], check=True)
    wait_until(lambda: loopsysfs.read_loop_device(name) is None)


def test_detaching_what_is_not_bound_is_no_error(image) -> None:
    with attach(image) as device:
        loopdev.detach(device.name)
    loopdev.detach(device.name)
    loopdev.detach("loop104857")


ATTACH_AND_WAIT = """
import os, sys
from pathlib import Path
from scratch_slurm.node.kernel import loopdev, mounts
with loopdev.attach(os.open(sys.argv[1], os.O_RDONLY), tag="t", direct_io=False) as device:
    if sys.argv[2] == "detached-mount":
        def wait(root):
            print("ready", flush=True)
            input()
        mounts.mount_image(device.path, Path(sys.argv[3]), "squashfs", probe=wait)
    print("ready", flush=True)
    input()
"""


@pytest.mark.parametrize("moment", ["attached", "detached-mount"])
def test_kill_9_between_attach_and_mount_leaves_nothing(folder, image, moment) -> None:
    (folder / "datasets").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", ATTACH_AND_WAIT, image, moment, folder / "datasets"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        assert list(backings_below(folder).values()) == [str(image)]
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    wait_until(lambda: not backings_below(folder))
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
