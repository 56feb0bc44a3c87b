"""Where the cache may lie: what should be mounted is, on a disk of the node's own; and what is said otherwise."""

import pytest

from scratch_slurm.domain.placement import Place, judge_place, on_the_way, parse_fstab, parse_mount_unit

FSTABS = [
    pytest.param("", [], id="empty"),
    pytest.param("# /dev/sdb /ssd ext4 defaults 0 2\n", [], id="a-comment"),
    pytest.param("/dev/sdb /ssd ext4 nofail 0 2\n", ["/ssd"], id="a-disk"),
    pytest.param("  /dev/sdb\t/ssd  ext4\n", ["/ssd"], id="blanks-and-no-options"),
    pytest.param("/dev/sdb none swap sw 0 0\nUUID=1 swap swap sw 0 0\n", [], id="swap"),
    pytest.param(r"/dev/sdb /my\040disk ext4 defaults 0 2", ["/my disk"], id="a-blank-in-its-name"),
    pytest.param("nonsense\n/dev/sdb\n\n/dev/sdc /a xfs x 0 0", ["/a"], id="lines-that-are-none"),
    pytest.param("/dev/sdb relative ext4 defaults 0 2", [], id="no-path"),
]


@pytest.mark.parametrize(("text", "points"), FSTABS)
def test_mount_points_in_fstab(text: str, points: list[str]) -> None:
    assert parse_fstab(text) == points


UNITS = [
    pytest.param("ssd.mount", "/ssd", id="one"),
    pytest.param("mnt-nvme0.mount", "/mnt/nvme0", id="a-path"),
    pytest.param(r"mnt-nvme\x2d0.mount", "/mnt/nvme-0", id="a-dash"),
    pytest.param(r"my\x20disk.mount", "/my disk", id="a-blank"),
    pytest.param("-.mount", "/", id="root"),
    pytest.param("ssd.automount", None, id="another-unit"),
    pytest.param("ssd.mount.d", None, id="a-drop-in"),
    pytest.param(".mount", None, id="no-name"),
    pytest.param("", None, id="nothing"),
]


@pytest.mark.parametrize(("name", "point"), UNITS)
def test_mount_points_in_the_names_of_units(name: str, point: str | None) -> None:
    assert parse_mount_unit(name) == point


WAYS = [
    pytest.param(["/ssd"], "/ssd/scratch-slurm", ["/ssd"], id="its-parent"),
    pytest.param(["/ssd/cache"], "/ssd/cache", ["/ssd/cache"], id="itself"),
    pytest.param(
        ["/", "/ss", "/ssd/scratch", "/home", "/ssd/scratch-slurm/below"], "/ssd/scratch-slurm", [], id="none"
    ),
    pytest.param(["/mnt", "/mnt/a", "/mnt/b"], "/mnt/a/cache", ["/mnt", "/mnt/a"], id="several"),
    pytest.param(["/ssd/", "//ssd"], "/ssd/cache", ["/ssd"], id="slashes"),
]


@pytest.mark.parametrize(("points", "directory", "chosen"), WAYS)
def test_only_what_lies_on_the_way_counts(points: list[str], directory: str, chosen: list[str]) -> None:
    assert on_the_way(points, directory) == chosen


MISSING = {"/ssd": "/etc/fstab"}
PLACES = [
    pytest.param(Place("ext4", False, {}), False, "", "", id="a-disk-of-its-own"),
    pytest.param(Place("xfs", False, {}), True, "", "", id="whatever-the-site-allows"),
    pytest.param(Place("ext4", True, {}), False, "", "root file system", id="the-root-disk-is-warned-of"),
    pytest.param(Place("ext4", True, MISSING), False, "nothing is mounted on /ssd", "", id="not-mounted"),
    pytest.param(
        Place("ext4", True, MISSING), True, "which /etc/fstab names", "", id="not-mounted-whatever-is-allowed"
    ),
    pytest.param(Place("overlay", True, {}), True, "", "root file system", id="a-containers-root"),
    *(
        pytest.param(Place(kind, False, {}), False, f"type {kind}", "", id=kind)
        for kind in ("tmpfs", "ramfs", "overlay", "nfs4", "lustre", "fuse.sshfs", "autofs", "9p", "one-of-2030")
    ),
    pytest.param(Place("tmpfs", False, {}), True, "", "", id="memory-that-the-site-allows"),
]


@pytest.mark.parametrize(("place", "any_file_system", "problem", "warning"), PLACES)
def test_the_verdict(place: Place, any_file_system: bool, problem: str, warning: str) -> None:
    found = judge_place(place, "/ssd/scratch-slurm", any_file_system=any_file_system)
    for text, words in zip(found, (problem, warning), strict=True):
        assert (words in text) if words else text == ""
    assert all(text.startswith("/ssd/scratch-slurm: ") for text in found if text)
