import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.errors import DeviceError
from scratch_slurm.node.kernel.mountinfo import (
    Mount,
    find_mount,
    parse_mountinfo,
    parse_stacks,
    read_mounts,
    read_stacks,
    same_mount_namespace_as_init,
)

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


def test_a_recorded_file() -> None:
    found = {each.mount_id: each for each in parse_mountinfo(RECORDED)}
    assert found[42] == mount(
        mount_id=42,
        parent_id=27,
        mount_point="/datasets/imagenet",
        options=("ro", "nosuid", "nodev", "relatime"),
    )
    assert found[51] == mount(mount_id=51, parent_id=27, root="/train", mount_point="/mnt/a b\\\tc")
    assert found[54].source == ""


ROOT = "27 1 254:0 / / rw - ext4 /dev/vda rw"


def line(mount_id, parent_id, path):
    return f"{mount_id} {parent_id} 7:{mount_id} / {path} ro - squashfs /dev/loop{mount_id} ro"


STACKS = [
    pytest.param(
        [ROOT, line(42, 27, "/datasets/a"), line(43, 27, "/datasets/b")], {"a": [42], "b": [43]}, id="one-each"
    ),
    pytest.param(
        [ROOT, line(42, 43, "/datasets/a"), line(43, 27, "/datasets/a")], {"a": [43, 42]}, id="beneath-comes-later"
    ),
    pytest.param([ROOT, line(42, 27, "/datasets/a"), line(43, 42, "/datasets/a")], {"a": [42, 43]}, id="on-top"),
    pytest.param(
        [ROOT, line(44, 42, "/datasets/a"), line(42, 43, "/datasets/a"), line(43, 27, "/datasets/a")],
        {"a": [43, 42, 44]},
        id="beneath-and-on-top",
    ),
    pytest.param(
        [ROOT, line(42, 27, "/datasets/a"), line(50, 27, "/datasets"), line(43, 50, "/datasets/b")],
        {"b": [43]},
        id="the-directory-was-mounted-over",
    ),
    pytest.param(
        [ROOT, line(43, 51, "/datasets/a"), line(50, 27, "/datasets"), line(51, 50, "/datasets")],
        {"a": [43]},
        id="the-directory-was-mounted-over-twice",
    ),
    pytest.param(
        [line(60, 27, "/"), ROOT, line(42, 27, "/datasets/a")], {"a": [42]}, id="what-is-mounted-on-the-root-is-not-met"
    ),
    pytest.param(
        [line(42, 9, "/datasets/a"), line(43, 42, "/datasets/a")], {"a": [42, 43]}, id="a-root-that-is-no-mount"
    ),
    pytest.param(
        [ROOT, line(42, 27, "/datasets/a/b"), line(43, 27, "/x/datasets/c"), line(44, 27, "/datasets")],
        {},
        id="neither-deeper-nor-elsewhere-nor-itself",
    ),
    pytest.param([ROOT, r"62 27 7:9 /datasets/c /y ro - squashfs /dev/loop9 ro"], {}, id="its-root-has-that-name"),
    pytest.param([ROOT, "nonsense", line(42, 27, "/datasets/a")], {"a": [42]}, id="what-does-not-concern-is-not-read"),
]


@pytest.mark.parametrize(("lines", "expected"), STACKS)
def test_what_is_met_on_a_path_is_last(lines, expected) -> None:
    for text in ("\n".join(lines), "\n".join(reversed(lines))):
        found = parse_stacks(text, "/datasets")
        assert {name: [each.mount_id for each in stack] for name, stack in found.items()} == expected


def test_a_directory_with_blanks_and_a_name_with_a_tab() -> None:
    text = "\n".join([ROOT, line(60, 27, r"/data\040sets\134/a\011b"), line(61, 27, r"/data\040sets\134/a/b")])
    assert [each.mount_id for each in parse_stacks(text, "/data sets\\")["a\tb"]] == [60]
    assert list(parse_stacks(text, "/data sets\\")) == ["a\tb"]


def test_mounts_directly_in_the_root() -> None:
    assert list(parse_stacks("\n".join([ROOT, line(42, 27, "/a"), line(43, 27, "/b/c")]), "/")) == ["a"]


def test_links_on_the_way_to_a_directory_are_resolved(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "mountinfo").write_text(f"{ROOT}\n{line(42, 27, tmp_path / 'real/a')}\n")
    assert list(read_stacks(tmp_path / "link", tmp_path / "mountinfo")) == ["a"]


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
def test_the_loop_device_of_a_mount(mount_id, device) -> None:
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
def test_every_path_survives(path, root, source, optional) -> None:
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
def test_any_text_is_parsed_or_refused(text) -> None:
    try:
        parse_mountinfo(text)
    except DeviceError as exc:
        assert "mountinfo" in exc.message
    try:
        parse_stacks(text + f"\n{line(1, 2, '/datasets/a')}", "/datasets")
    except DeviceError as exc:
        assert "mountinfo" in exc.message


def test_names_that_are_not_text_survive(tmp_path) -> None:
    recorded = tmp_path / "mountinfo"
    recorded.write_bytes(b"1 0 0:7 / /x\xff\xfe ro - tmpfs none rw\n")
    assert read_mounts(recorded)[0].mount_point == "/x\udcff\udcfe"


def test_a_missing_file_is_an_error(tmp_path) -> None:
    with pytest.raises(DeviceError, match="mountinfo"):
        read_mounts(tmp_path / "mountinfo")


@pytest.mark.parametrize(("ids", "same"), [((22, 27, 31), True), ((131, 132), False)], ids=["shared-ids", "own-ids"])
def test_the_namespace_of_init(tmp_path, ids, same) -> None:
    for process, mount_ids in (("self", (22, 27, 30)), ("1", ids)):
        (tmp_path / process).mkdir()
        lines = [f"{mount_id} 1 0:7 / /x{mount_id} ro - tmpfs none rw\n" for mount_id in mount_ids]
        (tmp_path / process / "mountinfo").write_text("".join(lines))
    assert same_mount_namespace_as_init(tmp_path) is same


def test_a_path_lies_on_the_deepest_mount_above_it_and_there_on_the_top_one() -> None:
    text = "\n".join(
        [
            "1 0 0:1 / / rw - rootfs rootfs rw",
            "2 1 8:1 / / rw - ext4 /dev/sda1 rw",
            "9 4 0:52 / /shared/data rw - fuse.sshfs two rw",
            "4 2 0:51 / /shared/data rw - fuse.sshfs one rw",
            "5 2 0:60 / /shared/data-of-others rw - nfs three rw",
        ]
    )
    mounts = parse_mountinfo(text)
    found = {path: find_mount(path, mounts) for path in ("/shared/data/a.squashfs", "/shared/data", "/shared/x", "/")}
    assert [(mount.source, mount.number) for mount in found.values() if mount] == [
        ("two", 52),
        ("two", 52),
        ("/dev/sda1", 8 << 20 | 1),
        ("/dev/sda1", 8 << 20 | 1),
    ]
    assert find_mount("/shared", []) is None
