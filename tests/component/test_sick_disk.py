"""A node with two disks, one of which dies, hangs or comes back, under readers and under a copy."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.daemon import RunningDaemon, read_held
from tests.kit.datasets import Version, make_version
from tests.kit.disks import small_disk
from tests.kit.images import clean_up
from tests.kit.sick_disk import Health, SickDisk
from tests.kit.sources import why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("own_mounts"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

MB = 1 << 20
FILE_BYTES = 8 * 131072
"""Whole blocks: an I/O error in the last, shared one would be remembered by squashfs under the open file."""


class TwoDisks:
    """A daemon with a sick disk, which has one MB more, and a sound one."""

    def __init__(self, folder: Path, daemon: RunningDaemon, sick: SickDisk) -> None:
        self.folder, self.daemon, self.sick = folder, daemon, sick
        self.versions: dict[str, Version] = {}

    def publish(self, *names: str, file_bytes: int = FILE_BYTES) -> None:
        for name in names:
            self.versions[name] = make_version(self.daemon.source_dir, name, 1, file_bytes=file_bytes)
        self.daemon.until(lambda: self.daemon.is_mounted(*names))

    def cache(self, *names: str) -> None:
        """Publish datasets, pin each by a job of its own, and wait for their copies."""
        self.publish(*names)
        for number, name in enumerate(names, start=1):
            self.daemon.pin(number, name)
        self.daemon.until(lambda: self.daemon.is_cached(*names))

    def lie_in(self, disk: str) -> set[str]:
        """Tell what has a whole copy on a disk."""
        return {path.name.partition("@")[0] for path in (self.folder / disk / "cache").glob("*.image")}

    def forget_pages(self) -> None:
        """Take what memory holds of the copies out of it: who reads them now asks their disks."""
        for path in self.folder.glob("*/cache/*.image"):
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    def check(self) -> None:
        for disk in self.daemon.status().disks:
            assert disk.used_bytes <= disk.capacity_bytes and (disk.problem or disk.free_bytes >= disk.reserve_bytes)


@contextlib.contextmanager
def two_disks(folder: Path, *, megabytes: tuple[float, float] = (20, 21), **config: Any) -> Iterator[TwoDisks]:
    """Start such a node. `megabytes`: the capacity of the sound disk, and of the sick one."""
    with contextlib.ExitStack() as stack:
        sick = stack.enter_context(SickDisk(folder, folder / "sick", 96 << 20))
        stack.enter_context(small_disk(folder, folder / "sound", 64 << 20))
        stack.callback(clean_up, folder / "datasets")
        dirs = [
            {"dir": str(folder / name / "cache"), "mount": str(folder / name), "capacity": f"{size} MB"}
            for name, size in zip(("sound", "sick"), megabytes, strict=True)
        ]
        values = {"reserve": "1 MB", "source_timeout": "3", "copy": {"bandwidth": "2 MB"}, **config}
        with RunningDaemon(folder, cache_dirs=dirs, **values) as daemon:
            stack.callback(sick.set, Health.WELL)
            yield TwoDisks(folder, daemon, sick)
            sick.set(Health.WELL)
            daemon.stop()


class Reader:
    """A job that reads its dataset's file again and again, from the device, and never lets go of it."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.reads = 0
        """Whole and right ones."""
        self.errors = 0
        self.wrong = ""
        self._data = data
        self._fd = os.open(path, os.O_RDONLY)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._fd)

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            try:
                if read_held(self._fd) != self._data:
                    self.wrong = "it read bytes that are not the dataset's"
                self.reads += 1
            except OSError:
                self.errors += 1


@contextlib.contextmanager
def readers(node: TwoDisks) -> Iterator[dict[str, Reader]]:
    """A reader of each dataset; whatever happens, none reads anything wrong."""
    with contextlib.ExitStack() as stack:
        found = {
            name: stack.enter_context(Reader(node.daemon.path(name), version.data))
            for name, version in node.versions.items()
        }
        try:
            yield found
        finally:
            node.sick.set(Health.WELL)  # whoever hangs in a read must come back
    assert [reader.wrong for reader in found.values() if reader.wrong] == []


def read_on(node: TwoDisks, reader: Reader, what: str) -> None:
    """Wait until a reader has read all once more, rightly."""
    seen = reader.reads
    node.daemon.until(lambda: reader.reads > seen + 1, what)


def lies_on(node: TwoDisks, name: str, disk: str) -> bool:
    """Whether `status` tells of a copy on a disk."""
    return any(Path(place).parent.name == disk for place in node.daemon.dataset(name).disks)


def begin_copy_to_the_sick_disk(node: TwoDisks) -> None:
    """Let a job pin `new`; returns while its copy to the sick disk, which is the emptier one, is under way."""
    node.publish("new", file_bytes=12 * MB)
    node.daemon.pin(9, "new")
    parts = node.folder / "sick/cache/.staging"
    node.daemon.until(lambda: list(parts.glob("new@*.part")), "its copy is begun")


def test_a_disk_that_dies_under_readers_and_under_a_copy_takes_only_its_own_copies(folder: Path) -> None:
    with two_disks(folder) as node:
        daemon, sick = node.daemon, node.sick
        node.cache("a", "b", "c", "d")
        lost, kept = node.lie_in("sick"), node.lie_in("sound")
        assert len(lost) == len(kept) == 2
        with readers(node) as found:
            for reader in found.values():
                read_on(node, reader, "all read")
            begin_copy_to_the_sick_disk(node)
            sick.set(Health.FAILS)
            node.forget_pages()
            errors = {name: found[name].errors for name in kept}
            daemon.until(
                lambda: all(daemon.logged(f"retargeted dataset={each}", "its copy is bad") for each in lost),
                "the source",
            )
            for name, reader in found.items():
                read_on(node, reader, f"the open file of {name} is read on")
            daemon.until(lambda: daemon.is_cached(*node.versions), "the sound disk takes them")
            assert node.lie_in("sound") == set(node.versions)
            assert [disk.problem for disk in daemon.status().disks] == [
                "", "a copy to it failed or gave no answer; see the log",
            ]  # fmt: skip
            for name, version in node.versions.items():
                assert daemon.read(name) == version.data
            for name in kept:
                assert found[name].errors == errors[name] == 0, "the other disk's readers saw nothing of it"
            node.check()


def test_a_disk_that_hangs_under_readers_and_under_a_copy_keeps_only_what_reads_or_writes_it(folder: Path) -> None:
    with two_disks(folder, megabytes=(20, 25)) as node:
        daemon, sick = node.daemon, node.sick
        node.cache("a", "b", "c", "d", "e", "f")
        kept = node.lie_in("sound")
        with readers(node) as found:
            for reader in found.values():
                read_on(node, reader, "all read")
            node.publish("new", "more")
            sick.set(Health.HANGS)
            node.forget_pages()
            daemon.pin(9, "new")
            daemon.until(sick.blocked, "it hangs")
            daemon.until(lambda: "gives no answer since" in daemon.dataset("new").problem, "the job is told")
            assert daemon.read("new") == node.versions["new"].data, "its job reads the source"
            daemon.pin(10, "more")
            daemon.until(lambda: daemon.is_cached("more"), "the sound disk takes what comes")
            assert "more" in node.lie_in("sound")
            for name in kept:
                read_on(node, found[name], f"{name} is read on")
                assert found[name].errors == 0
            sick.set(Health.WELL)
            for name, reader in found.items():
                read_on(node, reader, f"{name} is read on when the disk answers")
            daemon.until(lambda: daemon.is_cached(*node.versions), "all goes on")
            for name, version in node.versions.items():
                assert daemon.read(name) == version.data
            node.check()


def test_what_a_disk_that_comes_back_has_is_used_again_unless_the_other_one_has_it_by_now(folder: Path) -> None:
    with two_disks(folder, megabytes=(3.5, 4.5)) as node:
        daemon = node.daemon
        node.cache("a", "b", "c", "d")
        lost = node.lie_in("sick")
        assert len(lost) == 2
        with readers(node) as found:
            node.sick.take_out()
            daemon.until(lambda: "nothing is mounted" in daemon.status().disks[1].problem, "it is told")
            daemon.until(lambda: len(node.lie_in("sound")) == 3, "there is room for one of the two")
            (twice,) = lost & node.lie_in("sound")
            (once,) = lost - {twice}
            daemon.until(lambda: daemon.is_cached(twice))
            daemon.until(lambda: "waits for room" in daemon.dataset(once).problem)
            staged = len(daemon.logged("staged dataset="))
            node.sick.put_back()
            daemon.until(lambda: daemon.is_cached(once), "its copy is used again")
            daemon.until(lambda: node.lie_in("sick") == {once}, "the second copy goes")
            assert daemon.logged(f"evicted dataset={twice}", "another disk has a copy of it")
            assert len(daemon.logged("staged dataset=")) == staged, "nothing was copied again"
            assert [disk.problem for disk in daemon.status().disks] == ["", ""]
            assert lies_on(node, once, "sick") and lies_on(node, twice, "sound") and not lies_on(node, twice, "sick")
            for name, reader in found.items():
                read_on(node, reader, f"{name} is read on")
                assert reader.errors == 0
            assert daemon.plan().actions == ()
            node.check()
