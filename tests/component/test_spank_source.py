"""The plugin's look at the source, and its arguments; the directory that hangs is a real one (FUSE)."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_slurm.domain.names import IMAGE_SUFFIXES
from tests.kit.hanging import hanging_directory
from tests.kit.spank_library import Arguments, Source, build

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", fullmatch=True)
SHORT = st.text("abAB", max_size=7)
LIMIT_S = 2.0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory):
    return build(tmp_path_factory.mktemp("spank"))


@pytest.fixture(scope="module")
def source(library) -> Source:
    return Source(library)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A source with a few images."""
    for name in ("imagenet.squashfs", "imagenet21k.sqsh", "coco.sqfs", "laion.erofs", "laion.json", ".hidden.erofs"):
        (tmp_path / name).touch()
    return tmp_path


DISTANCES = [
    ("", "", 0), ("a", "", 1), ("abc", "abc", 0), ("abc", "ABC", 0), ("abc", "acb", 1), ("abc", "abd", 1),
    ("abc", "ab", 1), ("abc", "xabc", 1), ("imagenet", "imgaenet", 1), ("kitten", "sitting", 3),
    ("a" * 64, "b" * 64, 64), ("a" * 64, "", 64),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "distance"), DISTANCES)
def test_edit_distance(source: Source, a: str, b: str, distance: int) -> None:
    assert (source.distance(a, b), source.distance(b, a)) == (distance, distance)


def slow_distance(a: str, b: str) -> int:
    """Optimal string alignment by its definition."""
    a, b = a.lower(), b.lower()
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            same = a[i - 1] == b[j - 1]
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (not same))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return table[len(a), len(b)]


@settings(max_examples=300, deadline=None)
@given(SHORT | NAMES, SHORT | NAMES)
def test_edit_distance_is_what_its_definition_says(source: Source, a, b) -> None:
    assert source.distance(a, b) == slow_distance(a, b)


NEAREST = [
    pytest.param("imagenett", ["coco", "imagenet"], ["imagenet"], id="a-letter-too-many"),
    pytest.param("ImageNet", ["imagenet"], ["imagenet"], id="case"),
    pytest.param("imagenet", ["imagenet-21k-winter"], ["imagenet-21k-winter"], id="a-longer-name"),
    pytest.param("imagenet.squashfs", ["imagenet"], ["imagenet"], id="with-the-files-suffix"),
    pytest.param("coco", ["imagenet", "laion"], [], id="nothing-is-like-it"),
    pytest.param("ab", ["abc", "abcdefgh"], ["abc"], id="two-letters-in-common-are-few"),
    pytest.param("abcd", ["abce", "abcf", "abcx", "abd", "abcd2"], ["abcd2", "abce", "abcf"], id="three-by-alphabet"),
    pytest.param("abcdef", ["abcdxy", "abcdez"], ["abcdez", "abcdxy"], id="nearest-first"),
    pytest.param("abcd", ["abce", "abce", "abcf", "abce"], ["abce", "abcf"], id="each-once"),
]


@pytest.mark.parametrize(("wanted", "names", "near"), NEAREST)
def test_nearest(source: Source, wanted: str, names: list[str], near: list[str]) -> None:
    assert source.nearest(wanted, names) == near
    assert source.nearest(wanted, names[::-1]) == near


@settings(max_examples=200, deadline=None)
@given(NAMES, st.lists(NAMES, max_size=12))
def test_no_more_than_three_and_only_what_was_offered(source: Source, wanted, names) -> None:
    near = source.nearest(wanted, names)
    assert len(near) <= 3
    assert set(near) <= set(names)
    assert len(source.hint(wanted, names)) < 256


def test_the_hint_in_words(source: Source) -> None:
    assert source.hint("abcd", []) == ""
    assert source.hint("abcd", ["abce"]) == "; did you mean abce?"
    assert source.hint("abcd", ["abcf", "abce"]) == "; did you mean abce or abcf?"
    assert source.hint("abcd", ["abcf", "abce", "abcg"]) == "; did you mean abce, abcf or abcg?"
    longest = [f"{'x' * 63}{letter}" for letter in "abc"]
    assert source.hint("x" * 64, longest).endswith("c?")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_kind_of_image_is_known(source: Source, directory: Path, suffix: str) -> None:
    (directory / f"mine{suffix}").touch()
    assert source.unknown(directory, "coco,mine,imagenet") is None


def test_the_first_unknown_dataset_with_the_nearest(source: Source, directory: Path) -> None:
    assert source.unknown(directory, "coco,imagenett,xyz") == ("imagenett", ["imagenet", "imagenet21k"])
    assert source.unknown(directory, "xyz") == ("xyz", [])
    assert source.unknown(directory, ",".join([*(["coco"] * 63), "z" * 64])) == ("z" * 64, [])


def test_other_files_are_no_images(source: Source, directory: Path) -> None:
    for name in ("x.json", "x.squashfs.new", "x", "x.tar", ".x.squashfs", "-x.squashfs"):
        (directory / name).touch()
    assert source.unknown(directory, "x") == ("x", [])


def test_what_a_link_points_to_is_not_touched(source: Source, directory: Path) -> None:
    (directory / "far.squashfs").symlink_to("/nowhere/far")
    assert source.unknown(directory, "far") is None


def test_names_of_strangers_reach_no_terminal(source: Source, directory: Path) -> None:
    (directory / "abc\x1b[31m.squashfs").touch()
    (directory / ("abcd" * 17 + ".squashfs")).touch()
    assert source.unknown(directory, "abc") == ("abc", [])


SILENT = [
    pytest.param(lambda path: path / "nosuch", id="not-there"),
    pytest.param(lambda path: path / "imagenet.squashfs", id="no-directory"),
    pytest.param(lambda path: (path / "empty").mkdir() or path / "empty", id="not-mounted"),
]


@pytest.mark.parametrize("make", SILENT)
def test_a_source_that_tells_nothing_makes_nothing_unknown(
    source: Source, directory: Path, make: Callable[..., Any]
) -> None:
    assert source.unknown(make(directory), "xyz") is None


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o000, 0o711, 0o444])
def test_a_source_that_the_user_may_not_read_makes_nothing_unknown(
    library, source: Source, directory: Path, mode: int
) -> None:
    directory.chmod(mode)
    parents = [path for path in directory.parents if path.owner() == "root" and not path.stat().st_mode & 1]
    for path in parents:
        path.chmod(path.stat().st_mode | 0o711)
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        os._exit(source.unknown(directory, "xyz") is not None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    with hanging_directory(tmp_path / "hanging") as path:
        yield path


@pytest.mark.root
def test_a_source_that_hangs_is_given_up_and_keeps_nothing_open(library, hanging: Path) -> None:
    """Whoever reads the output of sbatch sees its end at once."""
    program = (
        "import ctypes, sys, time\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "started = time.monotonic()\n"
        "room = ctypes.create_string_buffer(4096)\n"
        "print(library.source_find_unknown(sys.argv[2].encode(), b'xyz', room), time.monotonic() - started)\n"
    )
    words = [sys.executable, "-c", program, library._name, str(hanging)]
    started = time.monotonic()
    output = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=20).stdout
    found, took = output.split()
    assert found == "0"
    assert LIMIT_S - 0.1 < float(took) < LIMIT_S + 10
    assert time.monotonic() - started < float(took) + 10


def test_no_process_is_left(source: Source, directory: Path) -> None:
    """The child is waited for; the grandchild is nobody's of ours."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = children.read_text()
    source.unknown(directory, "xyz")
    assert children.read_text() == before


DEFAULTS = {
    "mount_dir": "/datasets",
    "run_dir": "/run/scratch-slurm",
    "source_dir": None,
    "unknown": "refuse",
    "hooks": None,
}
ARGUMENTS = [
    pytest.param([], {}, 0, id="defaults"),
    pytest.param(
        ["mount_dir=/d", "run_dir=/r", "source_dir=/s", "hooks=/h"],
        {"mount_dir": "/d", "run_dir": "/r", "source_dir": "/s", "hooks": "/h"},
        0,
        id="directories",
    ),
    pytest.param(["unknown=warn"], {"unknown": "warn"}, 0, id="warn"),
    pytest.param(["unknown=ignore"], {"unknown": "ignore"}, 0, id="ignore"),
    pytest.param(["unknown=refuse"], {}, 0, id="refuse"),
    pytest.param(["unknown=Warn"], {}, 1, id="no-policy"),
    pytest.param(["unknown="], {}, 1, id="empty-policy"),
    pytest.param(["unknown"], {}, 1, id="no-value"),
    pytest.param(["source_dir=shared"], {}, 1, id="relative"),
    pytest.param(["hooks=lib"], {}, 1, id="relative-hooks"),
    pytest.param(["source_dir=/s", "sourcedir=/x", "x"], {"source_dir": "/s"}, 2, id="unknown-arguments"),
    pytest.param(["mount_dir=/" + "x" * 1024], {}, 1, id="too-long"),
]


@pytest.mark.parametrize(("words", "changes", "logged"), ARGUMENTS)
def test_arguments(library, words: list[str], changes: dict[str, str], logged: int) -> None:
    assert Arguments(library).read(*words) == ({**DEFAULTS, **changes}, logged)


def test_the_line_to_copy_has_good_arguments(library) -> None:
    text = (Path(__file__).parents[2] / "spank" / "plugstack.conf.in").read_text().replace("@HOOKS@", "/lib")
    lines = [line.removeprefix("# ").split() for line in text.splitlines() if "optional @PLUGIN@" in line]
    assert len(lines) == 2
    assert all(Arguments(library).read(*line[2:])[1] == 0 for line in lines)
