"""`make install` into an image: it leaves a node that works, and asks no network and no package manager."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.kit.wheels import make_wheels

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = ("scratch-slurm", "scratch-slurmd", "scratch-slurm-hook")
SPANK_H = Path("/usr/include/slurm/spank.h")

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or not SPANK_H.exists(), reason="needs a compiler and Debian's libslurm-dev"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, for the plugin is built in it."""
    copy = tmp_path_factory.mktemp("install") / "source"
    unwanted = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "*.o", "built-with", "__pycache__", ".*_cache")
    shutil.copytree(REPOSITORY, copy, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def guards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the PATH: whoever calls a package manager fails, and leaves a mark."""
    directory = tmp_path_factory.mktemp("guards")
    for name in ("apt-get", "apt", "dpkg", "dnf", "yum"):
        (directory / name).write_text(f"#!/bin/sh\ntouch {directory}/called\nexit 9\n")
        (directory / name).chmod(0o755)
    return directory


def make(source: Path, guards: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": f"{guards}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/nonexistent",
        "PIP_NO_INDEX": "1",
        "LANG": "C.UTF-8",
    }
    argv = ["make", "-C", str(source), *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def installed(source: Path, guards: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """`make install` with a prefix of its own, first into an image, which is then brought to where it shall run."""
    base = tmp_path_factory.mktemp("place")
    wheels, image, prefix = base / "wheels", base / "image", base / "prefix"
    wheels.mkdir()
    make_wheels(wheels)
    words = [f"DESTDIR={image}", f"PREFIX={prefix}", f"WHEELS={wheels}", f"PYTHON={sys.executable}"]
    make(source, guards, "install", *words)
    make(source, guards, "install", *words)  # an upgrade
    image_of_prefix = image / prefix.relative_to("/")
    image_of_prefix.rename(prefix)
    return {"image": image, "prefix": prefix, "lib": prefix / "lib" / "scratch-slurm", "wheels": wheels}


def run(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [str(word) for word in words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_it_asks_no_package_manager(installed: Mapping[str, Path], guards: Path) -> None:
    assert not (guards / "called").exists()


@pytest.mark.parametrize("program", ["scratch-slurm", "scratch-slurmd"])
def test_the_programs_run_where_they_are_installed(installed: Mapping[str, Path], program: str) -> None:
    done = run(installed["prefix"] / "bin" / program, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert program in done.stdout
    assert str(installed["image"]) not in (installed["lib"] / "venv" / "bin" / program).read_text()


@pytest.mark.parametrize("hook", ["prolog", "epilog"])
def test_the_stubs_find_the_hook_below_the_prefix(installed: Mapping[str, Path], tmp_path: Path, hook: str) -> None:
    program, mark = installed["prefix"] / "bin" / "scratch-slurm-hook", tmp_path / "mark"
    original = program.readlink()
    program.unlink()
    program.write_text(f"#!/bin/sh\necho $1 >{mark}\n")
    program.chmod(0o755)
    try:
        done = run(installed["lib"] / f"{hook}.d" / "50-scratch-slurm", SPANK_DATASETS="a", SLURM_JOB_ID="1")
    finally:
        program.unlink()
        program.symlink_to(original)
    assert (done.returncode, mark.read_text()) == (0, f"{hook}\n")


def test_slurms_files_are_told_the_prefix(installed: Mapping[str, Path]) -> None:
    lib = installed["lib"]
    lines = [line for line in (lib / "plugstack.conf").read_text().splitlines() if not line.startswith("#")]
    assert lines and all(line.startswith(f"optional {lib}/scratch_slurm.so ") for line in lines)
    assert f'dofile, "{lib}/scratch_slurm.lua"' in (lib / "job_submit.lua").read_text()
    assert {"scratch_slurm.so", "scratch_slurm.lua", "job_submit.lua"} <= {path.name for path in lib.iterdir()}


def unit_of(image: Path) -> Path:
    return image / "etc" / "systemd" / "system" / "scratch-slurmd.service"


def test_the_unit_starts_the_daemon_below_the_prefix(installed: Mapping[str, Path]) -> None:
    unit = unit_of(installed["image"]).read_text()
    assert re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE) == [f"{installed['prefix']}/bin/scratch-slurmd"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(installed: Mapping[str, Path]) -> None:
    done = run("systemd-analyze", "verify", "--man=no", unit_of(installed["image"]), PATH=os.defpath)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "scratch-slurmd" in line]
    assert said == []


def test_uninstall_removes_what_install_put_and_names_slurms_lines(
    installed: Mapping[str, Path], source: Path, guards: Path, tmp_path: Path
) -> None:
    image, prefix = tmp_path / "image", installed["prefix"]
    shutil.copytree(installed["image"] / "etc", image / "etc")
    shutil.copytree(prefix, image / prefix.relative_to("/"), symlinks=True)
    words = [f"DESTDIR={image}", f"PREFIX={prefix}"]
    config, other = image / "etc/scratch-slurm/config.yaml", image / installed["lib"].relative_to("/") / "other"
    config.write_text("mine")
    other.write_text("mine too")
    told = make(source, guards, "uninstall", *words).stdout
    assert {path for path in image.rglob("*") if not path.is_dir()} == {other, config}
    for line in (
        f"{installed['lib']}/scratch_slurm.so",
        "Prolog=",
        "JobSubmitPlugins=lua",
        "SuspendProgram",
    ):
        assert line in told
    assert make(source, guards, "uninstall", *words).returncode == 0, "again, with nothing there"


def test_a_python_that_is_too_old_is_told(source: Path, guards: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\nexec /usr/bin/env python3 -c "import sys; sys.exit(sys.version_info < (99,))"\n')
    old.chmod(0o755)
    done = make(source, guards, "install", f"DESTDIR={tmp_path}/image", f"PYTHON={old}", check=False)
    assert done.returncode != 0
    assert "Python 3.11 or later is needed" in done.stderr
    assert not (tmp_path / "image").exists()


# The plugin.


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A Slurm with a prefix of its own, as far as its headers go."""
    shutil.copytree(SPANK_H.parent, tmp_path / "slurm" / "include" / "slurm")
    return tmp_path / "slurm"


@pytest.fixture
def spank(tmp_path: Path) -> Path:
    copy = tmp_path / "spank"
    shutil.copytree(REPOSITORY / "spank", copy, ignore=shutil.ignore_patterns("*.so", "*.o", "built-with"))
    return copy


def test_the_plugin_is_built_again_when_slurms_headers_are_others(spank: Path, slurm: Path, guards: Path) -> None:
    plugin, word = spank / "scratch_slurm.so", f"SLURM_PREFIX={slurm}"
    make(spank, guards, word)

    def is_built_again(*words: str) -> bool:
        os.utime(plugin, (9e8, 9e8))
        for each in spank.glob("*.o"):
            os.utime(each, (8e8, 8e8))
        for each in [*spank.glob("*.[ch]"), *spank.glob("*.map"), spank / "Makefile", spank / "built-with"]:
            os.utime(each, (7e8, 7e8))
        make(spank, guards, *words)
        return plugin.stat().st_mtime != 9e8

    assert not is_built_again(word)
    version = slurm / "include" / "slurm" / "slurm_version.h"
    text = version.read_text()
    version.write_text(re.sub(r"(SLURM_VERSION_NUMBER 0x[0-9a-f]*)[0-9a-f]\b", r"\1f", text))
    assert version.read_text() != text
    os.utime(version, (6e8, 6e8))  # packages have old dates
    assert is_built_again(word), "another release"
    assert not is_built_again(word)
    assert is_built_again(), "the system's Slurm, not the one of the prefix"
    assert not is_built_again()


def test_headers_of_another_slurm_are_not_taken(spank: Path, guards: Path, tmp_path: Path) -> None:
    done = make(spank, guards, f"SLURM_PREFIX={tmp_path}/nothing", check=False)
    assert done.returncode != 0
    assert "slurm/spank.h" in done.stderr and not (spank / "scratch_slurm.so").exists()


def test_without_a_compiler_a_plugin_that_is_there_is_taken_and_none_is_an_error(
    spank: Path, guards: Path, tmp_path: Path
) -> None:
    words = ["install", "CC=nosuchcc", f"DESTDIR={tmp_path}/image", "PREFIX=/usr"]
    done = make(spank, guards, *words, check=False)
    assert done.returncode != 0
    assert "there is no compiler nosuchcc" in done.stderr
    (spank / "scratch_slurm.so").write_bytes(b"built elsewhere")
    assert "taken as it is" in make(spank, guards, *words).stdout
    assert (tmp_path / "image/usr/lib/scratch-slurm/scratch_slurm.so").read_bytes() == b"built elsewhere"
