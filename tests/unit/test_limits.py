"""What bounds mksquashfs, from recorded files of the kernel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain.limits import (
    MIB,
    Bound,
    CgroupFolder,
    Limits,
    choose_resources,
    find_folders,
    parse_amount,
    parse_field,
    parse_quota,
    read_cgroups,
)

GIB = 2**30
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "37 31 0:34 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory\n"
)
V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
CONTAINER = "900 880 0:26 /system.slice/box.scope /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"

FOLDERS = [
    pytest.param(
        "4:memory:/slurm/uid_7/job_1\n3:cpuset:/\n2:cpu,cpuacct:/\n0::/\n",
        V1,
        [
            ("/sys/fs/cgroup/memory/slurm/uid_7/job_1", "memory"),
            ("/sys/fs/cgroup/memory/slurm/uid_7", "memory"),
            ("/sys/fs/cgroup/memory/slurm", "memory"),
            ("/sys/fs/cgroup/memory", "memory"),
            ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
        ],
        id="v1-each-hierarchy-to-its-top",
    ),
    pytest.param(
        "0::/user.slice/user-1000.slice\n",
        V2,
        [
            ("/sys/fs/cgroup/user.slice/user-1000.slice", ""),
            ("/sys/fs/cgroup/user.slice", ""),
            ("/sys/fs/cgroup", ""),
        ],
        id="v2",
    ),
    pytest.param(
        "0::/system.slice/box.scope/inner\n",
        CONTAINER,
        [("/sys/fs/cgroup/inner", ""), ("/sys/fs/cgroup", "")],
        id="container-sees-a-part",
    ),
    pytest.param("0::/\n", CONTAINER, [("/sys/fs/cgroup", "")], id="container-with-a-namespace-of-its-own"),
    pytest.param("0::/../../other\n", V2, [("/sys/fs/cgroup", "")], id="moved-out-of-its-namespace"),
    pytest.param("0::/a\n", V1, [], id="v2-not-mounted"),
    pytest.param("nonsense\n\n", "nonsense\n", [], id="nonsense"),
]


@pytest.mark.parametrize(("cgroups", "mountinfo", "expected"), FOLDERS)
def test_the_folders_are_the_own_group_and_all_above_it(
    cgroups: str, mountinfo: str, expected: list[tuple[str, ...]]
) -> None:
    found = find_folders(cgroups, mountinfo)
    assert [(folder.path, ",".join(sorted(folder.controllers))) for folder in found] == expected


AMOUNTS = [("629145600\n", 600 * MIB), ("max\n", None), ("9223372036854771712\n", None), ("", None), ("-1", None)]


@pytest.mark.parametrize(("text", "expected"), AMOUNTS)
def test_parse_amount(text: str, expected: int | None) -> None:
    assert parse_amount(text) == expected


QUOTAS = [
    ("max 100000\n", None),
    ("150000 100000\n", 1.5),
    ("-1\n 100000\n", None),
    ("200000\n 100000\n", 2.0),
    (" ", None),
    ("0 0", None),
]


@pytest.mark.parametrize(("text", "expected"), QUOTAS)
def test_parse_quota(text: str, expected: float | None) -> None:
    assert parse_quota(text) == expected


def test_parse_field_of_both_forms() -> None:
    assert parse_field("MemTotal:       16 kB\nMemAvailable:   12 kB\n", "MemAvailable") == 12 * 1024
    assert parse_field("cache 5\ninactive_file 7\n", "inactive_file") == 7
    assert parse_field("total_inactive_file 7\n", "inactive_file") is None


V2_FILES = {"/c/a/memory.max": "max", "/c/a/cpu.max": "max 100000", "/c/memory.max": "1000", "/c/memory.high": "900"}
LEFT = [
    pytest.param([("/c/a", ""), ("/c", "")], V2_FILES, (900, "/c/memory.high"), None, id="the-tightest-of-all-above"),
    pytest.param(
        [("/c", "")],
        {"/c/memory.max": "1000", "/c/memory.current": "700", "/c/memory.stat": "anon 1\ninactive_file 400\n"},
        (700, "/c/memory.max"),
        None,
        id="what-is-taken-is-gone-but-for-files-that-can-be-dropped",
    ),
    pytest.param(
        [("/c", "")], {"/c/memory.max": "10", "/c/memory.current": "70"}, (0, "/c/memory.max"), None, id="none"
    ),
    pytest.param(
        [("/m/j", "memory"), ("/m", "memory"), ("/p", "cpu")],
        {
            "/m/j/memory.limit_in_bytes": "9223372036854771712",
            "/m/memory.limit_in_bytes": "1000",
            "/m/memory.usage_in_bytes": "500",
            "/m/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            "/p/cpu.cfs_quota_us": "50000",
            "/p/cpu.cfs_period_us": "100000",
        },
        (600, "/m/memory.limit_in_bytes"),
        0.5,
        id="v1",
    ),
    pytest.param([("/c", "")], {}, None, None, id="nothing-known"),
]


@pytest.mark.parametrize(("folders", "files", "memory", "processors"), LEFT)
def test_read_cgroups(
    folders: list[tuple[str, ...]], files: dict[str, str], memory: tuple[int, str] | None, processors: float | None
) -> None:
    given_folders = [CgroupFolder(path, frozenset(names.split(",")) - {""}) for path, names in folders]
    assert read_cgroups(given_folders, files) == (Bound(*memory) if memory else None, processors)


CHOICES = [
    pytest.param(Limits(None, None, 8), 16 * GIB, (4 * GIB, 8), "machine", id="a-quarter-as-mksquashfs-itself"),
    pytest.param(Limits(Bound(600 * MIB, "group"), None, 2), 16 * GIB, (260 * MIB, 2), "group", id="half-of-the-rest"),
    pytest.param(Limits(Bound(10 * MIB, "group"), None, 2), 16 * GIB, (16 * MIB, 2), "group", id="not-below-16-MiB"),
    pytest.param(Limits(Bound(64 * GIB, "group"), None, 2), 16 * GIB, (4 * GIB, 2), "machine", id="much-is-not-all"),
    pytest.param(
        Limits(None, Bound(GIB, "ulimit"), 64), 16 * GIB, (360 * MIB, 8), "ulimit", id="stacks-take-address-space"
    ),
]


@pytest.mark.parametrize(("limits", "total_bytes", "expected", "by"), CHOICES)
def test_choose_resources(limits: Limits, total_bytes: int, expected: tuple[int, ...], by: str) -> None:
    chosen = choose_resources(limits, entries=0, total_bytes=total_bytes)
    assert (chosen.memory_bytes, chosen.processors) == expected
    assert by in chosen.by


def test_many_files_take_memory_besides() -> None:
    limits = Limits(Bound(4 * GIB, "group"), None, 1)
    few, many = (choose_resources(limits, entries=entries, total_bytes=64 * GIB) for entries in (0, 2_000_000))
    assert few.memory_bytes - many.memory_bytes > 900 * MIB


@given(
    memory=st.none() | st.integers(0, 2**45),
    addresses=st.none() | st.integers(0, 2**45),
    processors=st.integers(0, 512),
    entries=st.integers(0, 10**9),
    total_bytes=st.integers(0, 2**45),
)
def test_what_is_chosen_is_never_more_than_half_of_what_is_left(
    memory, addresses, processors, entries, total_bytes
) -> None:
    first, second = (None if amount is None else Bound(amount, "x") for amount in (memory, addresses))
    chosen = choose_resources(Limits(first, second, processors), entries=entries, total_bytes=total_bytes)
    assert chosen.processors >= 1
    assert chosen.memory_bytes >= 16 * MIB
    for amount in (memory, addresses, total_bytes // 2):
        assert amount is None or chosen.memory_bytes <= max(16 * MIB, amount // 2)
