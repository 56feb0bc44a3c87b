"""spank/namespace.c: a process in a mount namespace of its own sees what is mounted on the node, then and later."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.spank_library import build

pytestmark = pytest.mark.root

# What a task of a job does: it answers each word on a line of its own.
JOB = """
import ctypes, os, subprocess, sys
library, node, directory = ctypes.CDLL(sys.argv[1]), os.open(sys.argv[2], os.O_RDONLY), sys.argv[3]
for line in sys.stdin:
    word, _, path = line.strip().partition(" ")
    if word == "show":
        why = ctypes.create_string_buffer(256)
        print(why.value.decode() if library.namespace_show(node, directory.encode(), why) else "shown", flush=True)
    elif word == "list":
        try:
            print(*sorted(os.listdir(path)), flush=True)
        except OSError as exc:
            print(exc.strerror, flush=True)
    elif word == "mounts":
        real = os.path.realpath(directory)
        print(sum(line.split()[4] == real for line in open("/proc/self/mountinfo")), flush=True)
    else:
        done = subprocess.run(line.split(), capture_output=True, text=True)
        print(done.returncode, done.stderr.strip(), flush=True)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory):
    return build(tmp_path_factory.mktemp("spank"))


def run(*words: Path | str) -> None:
    subprocess.run([str(word) for word in words], check=True)


class Node:
    """This test's own mount namespace: a directory for mounts, on a file system that propagates or does not."""

    def __init__(self, folder: Path, propagation: str) -> None:
        run("mount", "-t", "tmpfs", "none", folder)
        run("mount", f"--make-{propagation}", folder)
        self.mount_dir = folder / "datasets"
        self.mount_dir.mkdir()

    def mount(self, name: str) -> None:
        path = self.mount_dir / name
        path.mkdir()
        run("mount", "-t", "tmpfs", "none", path)
        (path / f"of-{name}").touch()

    def unmount(self, name: str) -> None:
        run("umount", self.mount_dir / name)


class Job:
    """A process in a mount namespace of its own, from when it is made."""

    def __init__(self, library, mount_dir: Path, propagation: str) -> None:
        apart = ["unshare", "--mount", f"--propagation={propagation}"] if propagation else []
        node = f"/proc/{os.getpid()}/ns/mnt"
        self.process = subprocess.Popen(
            [*apart, sys.executable, "-c", JOB, library._name, node, str(mount_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.mount_dir = mount_dir
        self.ask("mounts")  # it is in its namespace

    def ask(self, words: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def show(self) -> str:
        return self.ask("show")

    def sees(self, name: str) -> str:
        return self.ask(f"list {self.mount_dir}/{name}")


@pytest.fixture
def job(library: Path) -> Iterator[Callable[[Path, str], Job]]:
    started: list[Job] = []

    def start(mount_dir: Path, propagation: str) -> Job:
        started.append(Job(library, mount_dir, propagation))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


def test_a_private_copy_is_replaced_once_by_a_clone_that_hears_of_later_mounts(
    folder: Path, job: Callable[[Path, str], Job]
) -> None:
    node = Node(folder, "shared")
    node.mount("early")
    task = job(node.mount_dir, "private")
    node.mount("prologs")
    assert task.sees("prologs") == "", "an empty directory, as it was"
    assert [task.show() for _ in range(3)] == ["shown"] * 3
    assert task.ask("mounts") == "1", "once for all tasks of the job"
    node.mount("later")
    assert [task.sees(name) for name in ("early", "prologs", "later")] == ["of-early", "of-prologs", "of-later"]
    node.unmount("prologs")
    assert task.sees("prologs") == ""


def test_what_the_job_mounts_there_does_not_reach_the_node(folder: Path, job: Callable[[Path, str], Job]) -> None:
    node = Node(folder, "shared")
    node.mount("alpha")
    task = job(node.mount_dir, "private")
    assert task.show() == "shown"
    assert task.ask(f"mount -t tmpfs none {node.mount_dir}/alpha") == "0 "
    assert task.sees("alpha") == ""
    assert (node.mount_dir / "alpha" / "of-alpha").exists()
    assert task.ask(f"umount {node.mount_dir}/alpha") == "0 "
    assert task.sees("alpha") == "of-alpha"


@pytest.mark.parametrize("propagation", ["slave", "unchanged", ""], ids=["slave", "shared", "no-namespace"])
def test_nothing_is_done_where_the_node_s_mounts_come_by_themselves(
    folder: Path, job: Callable[[Path, str], Job], propagation: str
) -> None:
    node = Node(folder, "shared")
    task = job(node.mount_dir, propagation)
    assert task.show() == "shown"
    assert task.ask("mounts") == "0"
    node.mount("later")
    assert task.sees("later") == "of-later"


def test_a_copy_that_is_shared_with_others_than_the_node_is_replaced(
    folder: Path, job: Callable[[Path, str], Job]
) -> None:
    """After `mount --make-shared` it has a group of mounts, but another one."""
    node = Node(folder, "shared")
    task = job(node.mount_dir, "private")
    assert task.ask(f"mount --make-shared {folder}") == "0 "
    assert task.show() == "shown"
    node.mount("later")
    assert task.sees("later") == "of-later"


def test_where_the_node_propagates_nothing_each_task_sees_what_is_mounted_when_it_starts(
    folder: Path, job: Callable[[Path, str], Job]
) -> None:
    node = Node(folder, "private")
    node.mount("early")
    task = job(node.mount_dir, "private")
    for name in ("first", "second"):
        node.mount(name)
        assert task.sees(name) == ""
        assert task.show() == "shown"
        assert task.sees(name) == f"of-{name}"
        assert task.sees("early") == "of-early"
        assert task.ask("mounts") == "1", "they do not pile up"


def test_a_directory_behind_a_symbolic_link(
    folder: Path, job: Callable[[Path, str], Job], tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = Node(folder, "shared")
    link = tmp_path_factory.mktemp("links") / "datasets"
    link.symlink_to(node.mount_dir)
    task = job(link, "private")
    node.mount("prologs")
    assert task.show() == "shown"
    assert task.sees("prologs") == "of-prologs"
    assert task.ask("mounts") == "1"


def test_a_directory_that_is_a_mount_point_itself(folder: Path, job: Callable[[Path, str], Job]) -> None:
    node = Node(folder, "shared")
    run("mount", "--bind", node.mount_dir, node.mount_dir)
    run("mount", "--make-shared", node.mount_dir)
    task = job(node.mount_dir, "private")
    node.mount("prologs")
    assert task.show() == "shown"
    assert task.sees("prologs") == "of-prologs"


def test_a_directory_that_is_missing_is_a_reason(folder: Path, job: Callable[[Path, str], Job]) -> None:
    node = Node(folder, "shared")
    task = job(node.mount_dir, "private")
    assert task.ask(f"mount -t tmpfs none {folder}") == "0 ", "the job has something else there"
    assert task.show() == "cannot find its mount: No such file or directory"
    other = job(folder / "only-there", "private")
    assert other.ask(f"mount -t tmpfs none {folder}") == "0 "
    assert other.ask(f"mkdir {folder}/only-there") == "0 "
    assert other.show() == "cannot open it on the node: No such file or directory"
