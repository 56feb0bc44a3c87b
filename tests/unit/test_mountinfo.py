from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.errors import DeviceError
from scratch_slurm.node.mountinfo import Mount, parse_mountinfo, read_mounts, same_mount_namespace_as_init

RECORDED = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
42 27 7:3 / /datasets/imagenet ro,nosuid,nodev,relatime shared:217 master:5 - squashfs /dev/loop3 ro,errors=continue
51 27 7:3 /train /mnt/a\040b\134\011c ro shared:9 - squashfs /dev/loop3 ro
52 27 7:48 / /datasets/parted ro - erofs /dev/loop3 ro
53 27 7:4 / /datasets/alias ro - erofs /dev/disk/by-label/x ro
54 27 0:50 / /home rw - fuse.sshfs  rw
55 27 259:1 / /part ro - ext4 /dev/loop5p1 ro
"""


def mount(**changes):
    base = {
        "mount_id": 1,
        "parent_id": 0,
        "root": "/",
        "mount_point": "/x",
        "options": ("ro",),
        "fs_type": "squashfs",
    }
    return Mount(**{**base, "source": "/dev/loop3", "device": "loop3", **changes})


def test_a_recorded_file():
    found = {each.mount_id: each for each in parse_mountinfo(RECORDED)}
    assert found[42] == mount(
        mount_id=42,
        parent_id=27,
        mount_point="/datasets/imagenet",
        options=("ro", "nosuid", "nodev", "relatime"),
    )
    assert found[51] == mount(mount_id=51, parent_id=27, root="/train", mount_point="/mnt/a b\\\tc")
    assert found[54].source == ""


def test_only_the_mounts_directly_in_a_directory():
    text = (
        RECORDED
        + r"""60 27 7:9 / /data\040sets\134/a\011b ro - squashfs /dev/loop9 ro
61 27 7:9 / /data\040sets\134/a/b ro - squashfs /dev/loop9 ro
62 27 7:9 / /x/data\040sets\134/a ro - squashfs /dev/loop9 ro
63 27 7:9 /data\040sets\134/c /y ro - squashfs /dev/loop9 ro
"""
    )
    assert [each.mount_id for each in parse_mountinfo(text, Path("/data sets\\"))] == [60]
    assert [each.mount_id for each in parse_mountinfo(text, Path("/datasets"))] == [42, 52, 53]


@pytest.mark.parametrize(
    ("mount_id", "device"),
    [
        pytest.param(27, None, id="another-block-device"),
        pytest.param(42, "loop3", id="source-and-minor-agree"),
        pytest.param(52, "loop3", id="max_part-shifts-the-minor"),
        pytest.param(53, "loop4", id="source-is-an-alias"),
        pytest.param(55, None, id="partition-of-a-loop-device"),
    ],
)
def test_the_loop_device_of_a_mount(mount_id, device):
    assert {each.mount_id: each.device for each in parse_mountinfo(RECORDED)}[mount_id] == device


PATHS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)


def escape(path):
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in path)


@given(
    path=PATHS,
    root=PATHS,
    source=st.sampled_from(["/dev/loop3", "none", ""]) | PATHS,
    optional=st.lists(st.sampled_from(["shared:1", "master:22", "propagate_from:3", "unbindable"])),
)
def test_every_path_survives(path, root, source, optional):
    fields = [
        "36",
        "35",
        "0:7",
        escape(root),
        escape(path),
        "ro",
        *optional,
        "-",
        "tmpfs",
        escape(source),
        "rw",
    ]
    line = " ".join(fields) + "\n"
    expected = mount(
        mount_id=36, parent_id=35, root=root, mount_point=path, fs_type="tmpfs", source=source, device=None
    )
    assert parse_mountinfo(line * 2) == [expected] * 2


@given(st.text())
def test_any_text_is_parsed_or_refused(text):
    try:
        parse_mountinfo(text)
    except DeviceError as exc:
        assert "mountinfo" in exc.message


def test_names_that_are_not_text_survive(tmp_path):
    recorded = tmp_path / "mountinfo"
    recorded.write_bytes(b"1 0 0:7 / /x\xff\xfe ro - tmpfs none rw\n")
    assert read_mounts(recorded)[0].mount_point == "/x\udcff\udcfe"


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DeviceError, match="mountinfo"):
        read_mounts(tmp_path / "mountinfo")


@pytest.mark.parametrize(("ids", "same"), [((22, 27, 31), True), ((131, 132), False)], ids=["shared-ids", "own-ids"])
def test_the_namespace_of_init(tmp_path, ids, same):
    for process, mount_ids in (("self", (22, 27, 30)), ("1", ids)):
        (tmp_path / process).mkdir()
        lines = [f"{mount_id} 1 0:7 / /x{mount_id} ro - tmpfs none rw\n" for mount_id in mount_ids]
        (tmp_path / process / "mountinfo").write_text("".join(lines))
    assert same_mount_namespace_as_init(tmp_path) is same
