import contextlib
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scratch_slurm.domain.errors import DeviceError, ImageError
from scratch_slurm.node.kernel import loopdev, loopsysfs, mountinfo, mounts, roots
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

MOVE_MOUNT_BENEATH = 0x200


@pytest.fixture
def mount_point(folder):
    mounts.ensure_mount_point(folder / "imagenet")
    return folder / "imagenet"


@pytest.fixture(params=["squashfs", "erofs"])
def fs_type(request):
    return request.param


@pytest.fixture
def image(folder, fs_type):
    path = folder / f"source.{fs_type}"
    make_image(path, fs_type)
    return path


@contextlib.contextmanager
def attached(path):
    with opened(path) as fd, loopdev.attach(fd, tag="test", direct_io=False) as device:
        yield device


def mount(path, mount_point, fs_type, **options):
    with attached(path) as device:
        mounts.mount_image(device.path, mount_point, fs_type, **options)
        return device.name


def replace_on_an_old_kernel(path, mount_point, fs_type, refused_bits=MOVE_MOUNT_BENEATH):
    seccomp.refuse(seccomp.MOVE_MOUNT, errno.EINVAL, argument=4, has_bits=refused_bits)
    return replace(path, mount_point, fs_type)


def replace(path, mount_point, fs_type, **options):
    with attached(path) as device:
        return mounts.replace_image(device.path, mount_point, fs_type, **options)


def names_in(path):
    return sorted(entry.name for entry in Path(path).iterdir())


def mounted_at(mount_point, process="self"):
    found = mountinfo.read_mounts(Path(f"/proc/{process}/mountinfo"))
    return [each for each in found if each.mount_point == str(mount_point)]


# mount


def test_an_image_is_mounted_read_only_without_devices_and_set_uid(image, fs_type, mount_point) -> None:
    name = mount(image, mount_point, fs_type)
    (found,) = mounted_at(mount_point)
    assert {"ro", "nosuid", "nodev"} <= set(found.options)
    assert "noexec" not in found.options
    assert (found.fs_type, found.source, found.device, found.root) == (fs_type, f"/dev/{name}", name, "/")
    for file in image.with_suffix(".tree").rglob("f*"):
        assert (mount_point / file.relative_to(image.with_suffix(".tree"))).read_bytes() == file.read_bytes()
    mounts.unmount(mount_point)
    wait_until(lambda: loopsysfs.read_loop_device(name) is None)


def test_the_probe_sees_the_image_before_anyone_else(image, fs_type, mount_point) -> None:
    seen = []

    def probe(root):
        seen.append((names_in(f"/proc/self/fd/{root}"), names_in(mount_point), mounted_at(mount_point)))

    mount(image, mount_point, fs_type, probe=probe)
    assert seen == [(["d0", "d1"], [], [])]
    assert names_in(mount_point) == ["d0", "d1"]


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_a_failed_probe_leaves_nothing(folder, image, fs_type, mount_point) -> None:
    def probe(root):
        raise ImageError("the manifest wants another file")

    with pytest.raises(ImageError, match="wants another"):
        mount(image, mount_point, fs_type, probe=probe)
    assert mounted_at(mount_point) == []
    wait_until(lambda: not backings_below(folder))


def test_garbage_is_refused_with_the_kernels_reason(folder, fs_type, mount_point) -> None:
    (folder / "garbage").write_bytes(b"garbage!" * 20_000)
    with pytest.raises(ImageError, match=rf"^/dev/loop\d+: cannot mount it as {fs_type}: ") as caught:
        mount(folder / "garbage", mount_point, fs_type)
    if fs_type == "squashfs":  # erofs writes its reason to the kernel's log alone
        assert "SQUASHFS superblock" in caught.value.message
    assert mounted_at(mount_point) == []
    wait_until(lambda: not backings_below(folder))


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_a_truncated_image_is_refused(folder, image, fs_type, mount_point) -> None:
    os.truncate(image, image.stat().st_size // 8192 * 4096)
    with pytest.raises(ImageError):
        mount(image, mount_point, fs_type)
    assert mounted_at(mount_point) == []


def test_a_missing_device_is_no_fault_of_the_image(mount_point) -> None:
    with pytest.raises(DeviceError, match="/dev/loop104857"):
        mounts.mount_image("/dev/loop104857", mount_point, "squashfs")


def test_an_unknown_file_system_is_named(mount_point) -> None:
    with pytest.raises(DeviceError, match="this kernel has no squashfs9"):
        mounts.mount_image("/dev/loop0", mount_point, "squashfs9")  # type: ignore[arg-type]


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_a_symlink_is_no_mount_point(folder, image, fs_type) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "link").symlink_to("elsewhere")
    for refused in (
        lambda: mount(image, folder / "link", fs_type),
        lambda: mounts.ensure_mount_point(folder / "link"),
        lambda: roots.probe_mount(folder / "link"),
        lambda: mounts.unmount(folder / "link"),
    ):
        with pytest.raises(DeviceError, match=f"^{folder}/link: "):
            refused()
    assert mounted_at(folder / "elsewhere") == []


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_a_second_mount_on_the_path_is_refused_also_by_another_name(folder, image, fs_type, mount_point) -> None:
    name = mount(image, mount_point, fs_type)
    (folder / "alias").symlink_to(folder)
    for path in (mount_point, folder / "alias" / mount_point.name):
        with pytest.raises(DeviceError, match=f"{fs_type} of /dev/{name} is mounted there already"):
            mount(image, path, fs_type)
    assert len(mounted_at(mount_point)) == 1


def without_fsopen(code, function, *arguments, **options):
    def run():
        seccomp.refuse(seccomp.FSOPEN, code)
        return function(*arguments, **options)

    return in_child(run)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM], ids=["old-kernel", "old-container"])
def test_without_fsopen_the_mount_is_the_same(folder, image, fs_type, mount_point, code) -> None:
    without_fsopen(code, mount, image, mount_point, fs_type)
    (found,) = mounted_at(mount_point)
    assert {"ro", "nosuid", "nodev"} <= set(found.options)
    assert (mount_point / "d0/f0").read_bytes().startswith(MARK)
    copy = copy_image(image, folder / "copy", changed=True)
    assert without_fsopen(code, replace, copy, mount_point, fs_type) is False
    assert len(mounted_at(mount_point)) == 1
    assert (mount_point / "d0/f0").read_bytes().startswith(CHANGED)


def test_without_fsopen_a_failed_probe_or_garbage_leaves_nothing(folder, image, fs_type, mount_point) -> None:
    def probe(root):
        assert names_in(f"/proc/self/fd/{root}") == ["d0", "d1"]
        raise ImageError("the manifest wants another file")

    with pytest.raises(ImageError, match="wants another"):
        without_fsopen(errno.ENOSYS, mount, image, mount_point, fs_type, probe=probe)
    (folder / "garbage").write_bytes(b"garbage!" * 20_000)
    with pytest.raises(ImageError, match="Invalid argument"):
        without_fsopen(errno.ENOSYS, mount, folder / "garbage", mount_point, fs_type)
    assert mounted_at(mount_point) == []


def test_without_fsopen_a_bad_replacement_leaves_the_old_mount(folder, image, fs_type, mount_point) -> None:
    mount(image, mount_point, fs_type)
    before = mounted_at(mount_point)
    (folder / "garbage").write_bytes(b"garbage!" * 20_000)
    with pytest.raises(ImageError):
        without_fsopen(errno.ENOSYS, replace, folder / "garbage", mount_point, fs_type)

    def probe(root):
        raise ImageError("the manifest wants another file")

    with pytest.raises(ImageError, match="wants another"):
        without_fsopen(errno.ENOSYS, replace, image, mount_point, fs_type, probe=probe)
    assert mounted_at(mount_point) == before


# replace


@contextlib.contextmanager
def path_is_never_empty(mount_point):
    """Look at the path without a pause meanwhile."""
    stop = threading.Event()
    empty = []

    def watch():
        while not stop.is_set():
            if not names_in(mount_point):
                empty.append(mount_point)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    assert not empty


def test_replacing_keeps_open_files_and_never_empties_the_path(folder, image, fs_type, mount_point) -> None:
    copy = copy_image(image, folder / "copy", changed=True)
    old = mount(image, mount_point, fs_type)
    with opened(mount_point / "d0/f0") as fd:
        with path_is_never_empty(mount_point):
            seamless = replace(copy, mount_point, fs_type)
        if not seamless:
            pytest.skip("this kernel cannot mount beneath")
        assert len(mounted_at(mount_point)) == 1
        assert (mount_point / "d0/f0").read_bytes().startswith(CHANGED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, len(MARK), 0) == MARK
        assert loopsysfs.read_loop_device(old) is not None
    wait_until(lambda: loopsysfs.read_loop_device(old) is None)


def test_where_beneath_is_refused_the_old_mount_goes_first(folder, image, fs_type, mount_point) -> None:
    copy = copy_image(image, folder / "copy", changed=True)
    old = mount(image, mount_point, fs_type)

    assert in_child(replace_on_an_old_kernel, copy, mount_point, fs_type) is False
    assert len(mounted_at(mount_point)) == 1
    assert (mount_point / "d0/f0").read_bytes().startswith(CHANGED)
    wait_until(lambda: loopsysfs.read_loop_device(old) is None)


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_a_replacement_that_comes_to_nothing_says_so(image, fs_type, mount_point) -> None:
    mount(image, mount_point, fs_type)
    every_move = 0x04
    with pytest.raises(DeviceError, match="the old mount is gone, and the new one refused: Invalid argument"):
        in_child(replace_on_an_old_kernel, image, mount_point, fs_type, every_move)
    assert mounted_at(mount_point) == []


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_a_bad_replacement_leaves_the_old_mount(folder, image, fs_type, mount_point) -> None:
    mount(image, mount_point, fs_type)
    before = mounted_at(mount_point)
    (folder / "garbage").write_bytes(b"garbage!" * 20_000)
    with pytest.raises(ImageError):
        replace(folder / "garbage", mount_point, fs_type)

    def probe(root):
        raise ImageError("the manifest wants another file")

    with pytest.raises(ImageError):
        replace(image, mount_point, fs_type, probe=probe)
    assert mounted_at(mount_point) == before


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_there_must_be_something_to_replace(folder, image, fs_type, mount_point) -> None:
    with pytest.raises(DeviceError, match="it is not a mount point"):
        replace(image, mount_point, fs_type)
    wait_until(lambda: not backings_below(folder))


NAMESPACE = ["unshare", "--mount", "--propagation"]


@pytest.mark.parametrize("propagation", ["unchanged", "slave"], ids=["peer", "slave"])
@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_shared_mounts_are_replaced_in_every_namespace(folder, image, fs_type, propagation) -> None:
    # As "/" is under systemd: jobs, containers and services hold peers and slaves of it.
    shared = folder / "shared"
    shared.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", shared], check=True)
    subprocess.run(["mount", "--make-shared", shared], check=True)
    mount_point = shared / "imagenet"
    mounts.ensure_mount_point(mount_point)
    copy = copy_image(image, folder / "copy", changed=True)
    command = [*NAMESPACE, propagation, "sh", "-c", "echo ready; exec cat"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"ready\n"
        old = mount(image, mount_point, fs_type)
        assert [each.device for each in mounted_at(mount_point, other.pid)] == [old]
        with path_is_never_empty(mount_point), path_is_never_empty(Path(f"/proc/{other.pid}/root{mount_point}")):
            assert replace(copy, mount_point, fs_type) is True
        (new,) = mounted_at(mount_point)
        assert new.device != old
        assert [each.device for each in mounted_at(mount_point, other.pid)] == [new.device]
        wait_until(lambda: loopsysfs.read_loop_device(old) is None)
        mounts.unmount(mount_point)
        assert mounted_at(mount_point, other.pid) == []
    finally:
        other.communicate()


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_a_stranger_with_a_private_copy_keeps_the_old_mount(folder, image, fs_type, mount_point) -> None:
    old = mount(image, mount_point, fs_type)
    copy = copy_image(image, folder / "copy", changed=True)
    command = [*NAMESPACE, "private", "sh", "-c", "echo ready; exec cat"]
    stranger = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert stranger.stdout is not None
    try:
        assert stranger.stdout.readline() == b"ready\n"
        replace(copy, mount_point, fs_type)
        assert [each.device for each in mounted_at(mount_point, stranger.pid)] == [old]
        assert loopsysfs.read_loop_device(old) is not None
    finally:
        stranger.communicate()
    wait_until(lambda: loopsysfs.read_loop_device(old) is None)


# unmount, mount points


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_a_busy_mount_goes_only_lazily(image, fs_type, mount_point) -> None:
    mount(image, mount_point, fs_type)
    with opened(mount_point / "d0/f0") as fd:
        with pytest.raises(DeviceError, match="busy") as caught:
            mounts.unmount(mount_point, lazy=False)
        assert "fuser" in (caught.value.hint or "")
        mounts.unmount(mount_point)
        assert mounted_at(mount_point) == []
        assert os.pread(fd, len(MARK), 0) == MARK
    with pytest.raises(DeviceError, match="it is not a mount point"):
        mounts.unmount(mount_point)


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_unmounting_does_not_follow_a_symlink(folder, image, fs_type, mount_point) -> None:
    mount(image, mount_point, fs_type)
    (folder / "link").symlink_to(mount_point)
    with pytest.raises(DeviceError, match="link: cannot unmount"):
        mounts.unmount(folder / "link")
    assert len(mounted_at(mount_point)) == 1


def as_nobody(function, *arguments):
    def run():
        os.setgid(65534)
        os.setuid(65534)
        return function(*arguments)

    return in_child(run)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_bare_mount_point_does_not_pass_for_an_empty_dataset(image, fs_type, mount_point, umask) -> None:
    mount_point.rmdir()
    old_umask = os.umask(umask)
    try:
        for _ in range(2):
            mounts.ensure_mount_point(mount_point)
    finally:
        os.umask(old_umask)
    made = mount_point.stat()
    assert (oct(made.st_mode), made.st_uid, made.st_gid) == ("0o40000", 0, 0)
    open_to_all(mount_point)
    for path in (mount_point, mount_point / "d0"):
        with pytest.raises(PermissionError):
            as_nobody(names_in, path)
    mount(image, mount_point, fs_type)
    assert as_nobody(names_in, mount_point) == ["d0", "d1"]
    mounts.unmount(mount_point)
    with pytest.raises(PermissionError):
        as_nobody(names_in, mount_point)
    mount_point.rmdir()


def open_to_all(path):
    """Let others come as far as a path: pytest's directories are root's alone."""
    for folder in path.parents:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)


def made_by_an_earlier_release(path):
    path.mkdir()
    path.chmod(0o755)


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_mount_points_of_an_earlier_release_are_closed_below_their_mounts_too(folder, image, fs_type) -> None:
    directory = folder / "datasets"
    directory.mkdir()
    for name in ("mounted", "bare", "used"):
        made_by_an_earlier_release(directory / name)
    (directory / "private").mkdir(mode=0o700)
    (directory / "used/file").write_text("somebody's")
    (directory / "file").write_text("")
    (directory / "link").symlink_to("used")
    made_by_an_earlier_release(directory / "strangers")
    os.chown(directory / "strangers", 65534, 65534)
    mount(image, directory / "mounted", fs_type)
    mounts.close_mount_points(directory)
    assert names_in(directory / "mounted") == ["d0", "d1"]
    mounts.unmount(directory / "mounted")
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in directory.iterdir() if path.is_dir()}
    assert modes == {
        "mounted": "0o0",
        "bare": "0o0",
        "used": "0o755",
        "link": "0o755",
        "private": "0o700",
        "strangers": "0o755",
    }


def test_one_of_an_earlier_release_is_closed_when_it_is_used_again(folder) -> None:
    made_by_an_earlier_release(folder / "imagenet")
    mounts.ensure_mount_point(folder / "imagenet")
    assert oct((folder / "imagenet").stat().st_mode) == "0o40000"


def test_an_existing_directory_keeps_its_mode(folder) -> None:
    (folder / "imagenet").mkdir(mode=0o700)
    mounts.ensure_mount_point(folder / "imagenet")
    assert oct((folder / "imagenet").stat().st_mode) == "0o40700"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("file", "the mount point is not a directory", id="file"),
        pytest.param("dangling", "the mount point is a symlink", id="dangling-symlink"),
        pytest.param("none/imagenet", "cannot make the mount point: No such file", id="no-directory-above"),
    ],
)
def test_what_cannot_become_a_mount_point(folder, name, reason) -> None:
    (folder / "file").write_bytes(b"kept")
    (folder / "dangling").symlink_to("nowhere")
    with pytest.raises(DeviceError, match=f"{name}: {reason}"):
        mounts.ensure_mount_point(folder / name)
    assert (folder / "file").read_bytes() == b"kept"
    assert not (folder / "nowhere").exists()


# probe


def test_a_healthy_dataset_passes(image, fs_type, mount_point) -> None:
    mount(image, mount_point, fs_type)
    roots.probe_mount(mount_point)


@pytest.mark.parametrize("fs_type", ["squashfs"], indirect=True)
def test_a_poisoned_squashfs_fails_until_it_is_replaced(folder, image, fs_type, mount_point) -> None:
    size = image.stat().st_size
    copy = copy_image(image, folder / "copy")
    mount(image, mount_point, fs_type, probe=lambda root: None)
    # The metadata lies at the end of the image: the next look at it fails.
    os.truncate(image, 4096)
    subprocess.run(["blockdev", "--flushbufs", mounted_at(mount_point)[0].source], check=True)
    with pytest.raises(ImageError, match=rf"^{mount_point}: \S+: the mounted image cannot be read: Input/output error"):
        roots.probe_mount(mount_point)
    image.write_bytes(copy.read_bytes())
    assert image.stat().st_size == size
    with pytest.raises(ImageError) as caught:
        roots.probe_mount(mount_point)
    assert "mounted anew" in (caught.value.hint or "")
    replace(copy, mount_point, fs_type)
    roots.probe_mount(mount_point)
    assert read_cold(mount_point / "d0/f0").startswith(MARK)


def test_a_probe_of_a_large_dataset_is_bounded(folder, mount_point) -> None:
    make_image(folder / "large.squashfs", files=300, file_bytes=10)
    mount(folder / "large.squashfs", mount_point, "squashfs", probe=lambda root: None)
    trace = folder / "trace"
    script = "import sys; from pathlib import Path; from scratch_slurm.node.kernel.roots import probe_mount as p"
    command = ["strace", "-o", trace, "-e", "trace=newfstatat", sys.executable, "-c", f"{script}; p(Path(sys.argv[1]))"]
    try:
        subprocess.run([*command, mount_point], check=True, cwd=Path(__file__).parents[2])
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    looked_up = [line for line in trace.read_text().splitlines() if '"f' in line]
    assert 0 < len(looked_up) <= 64


# namespace


def test_the_namespace_of_init_is_told_from_an_own_one() -> None:
    def after_leaving():
        own_mount_namespace()
        return mountinfo.same_mount_namespace_as_init()

    assert in_child(after_leaving) is False
