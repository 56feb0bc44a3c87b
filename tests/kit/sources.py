"""A source directory behind FUSE that is slow, fails or hangs when told to.

    with SlowSource(directory, mount_point, latency_s=0.005) as source:
        source.set(hang=True)              # every read blocks; hang_all=True: stat, listing and open as well
        source.set(hang=False)             # what was blocked goes on
        source.set(fail=True, only=("coco.squashfs",), fail_from=1 << 20)
        source.counters()["coco.squashfs"].requests

Read-only. It shows the inodes (unless told to shift them), sizes and times of the files below, so a generation is the
same through the mount, and the kernel caches no attributes. Other users may look (allow_other). O_DIRECT works: such a
read reaches the server in requests of 1 MiB, a plain one in requests of 128 KiB, read ahead, at most 12 at once.

SIGKILL ends a process that hangs in a plain read here, but not one that hangs in a direct read, in stat or in open: the
kernel waits for the server's answer to those. They end when the server answers or is killed.

The server is a process of its own. Leaving the block unmounts, lazily if something still holds the mount, and kills the
server by its process id, which ends every read that hangs with an error.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_START_S = 20.0


@dataclass(frozen=True)
class Knobs:
    """What is wrong with the source now."""

    latency_s: float = 0.0
    """Each read request takes this long at least; requests do not wait for each other."""
    bytes_per_s: float = 0.0
    """All reads together; 0 is no limit."""
    hang: bool = False
    """Reads block until this is off again."""
    hang_open: bool = False
    """Opening blocks, so that the kernel holds whoever opens, killed or not; a read lets the killed go."""
    hang_all: bool = False
    """As a dead NFS server: stat, listing, open and statvfs block too, of everything."""
    fail: bool = False
    """Reads answer EIO."""
    fail_from: int = 0
    """Only reads that reach to this offset or beyond fail."""
    inode_shift: int = 0
    """Added to all inode numbers, as a file system has others that invents them."""
    only: tuple[str, ...] = ()
    """File names that `hang`, `hang_open` and `fail` are about; none means all."""


@dataclass(frozen=True)
class Counter:
    """Read requests that the server answered for a file, and their bytes."""

    requests: int = 0
    bytes: int = 0


def why_not() -> str | None:
    """Say what is missing to mount FUSE here; None when nothing is."""
    if os.geteuid() != 0:
        return "FUSE mounts for other users need root"
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse"
    try:
        import mfusepy  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except (ImportError, OSError) as exc:
        return f"mfusepy or libfuse3 is missing: {exc}"
    return None


class SlowSource:
    """A mounted passthrough of `directory`. See the module.

    Args:
        directory: the real files; they may be changed while it is mounted.
        mount_point: made when it is not there.
        knobs: the fields of Knobs to start with.
    """

    def __init__(self, directory: Path, mount_point: Path, **knobs: Any) -> None:
        self.directory = directory
        self.path = mount_point
        self.knobs = Knobs(**knobs)
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(self.directory.resolve()), str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        try:
            self._ask({"set": dataclasses.asdict(self.knobs)})
            give_up_at = time.monotonic() + _START_S
            # Not stat(): with hang_all it would block.
            while not _is_mounted(self.path):
                if time.monotonic() > give_up_at or self._server.poll() is not None:
                    raise RuntimeError(f"FUSE did not come up on {self.path}")
                time.sleep(0.01)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The server's process id: killing it makes every access fail with ENOTCONN."""
        assert self._server is not None
        return self._server.pid

    def set(self, **knobs: Any) -> None:
        """Change knobs; in force when it returns. Those not named stay."""
        self.knobs = dataclasses.replace(self.knobs, **knobs)
        self._ask({"set": dataclasses.asdict(self.knobs)})

    def counters(self) -> dict[str, Counter]:
        """Read the counters by file name, since the mount."""
        return {name: Counter(*pair) for name, pair in self._ask({"counters": True}).items()}

    def blocked(self) -> int:
        """Count the requests that hang now."""
        return int(self._ask({"blocked": True})["blocked"])

    def close(self) -> None:
        """Unmount and end the server; twice is fine."""
        server, self._server = self._server, None
        if server is None:
            return
        clean = subprocess.run(
            ["fusermount3", "-u", str(self.path)], stderr=subprocess.DEVNULL, check=False, timeout=30
        )
        if clean.returncode != 0:
            subprocess.run(["umount", "-l", str(self.path)], stderr=subprocess.DEVNULL, check=False, timeout=30)
            server.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        server.kill()
        server.wait()
        for pipe in (server.stdin, server.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._server is not None
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        if not select.select([self._server.stdout], [], [], _START_S)[0]:
            raise RuntimeError("the FUSE server does not answer")
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError("the FUSE server has ended")
        return dict(json.loads(answer))


def _is_mounted(path: Path) -> bool:
    wanted = str(path.resolve().parent / path.name)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == wanted for line in lines)


class _Server:
    """The file system; its methods run in libfuse's threads."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.knobs = Knobs()
        self.changed = threading.Condition()
        self.blocked = 0
        self.free_at = 0.0
        self.counters: dict[str, list[int]] = {}

    def meet(self, path: str, *, reading: bool = False, opening: bool = False) -> None:
        """Block while the knobs say so."""
        name = path.rsplit("/", 1)[-1]
        with self.changed:
            if self._hangs(name, reading, opening):
                self.blocked += 1
                self.changed.wait_for(lambda: not self._hangs(name, reading, opening))
                self.blocked -= 1

    def _hangs(self, name: str, reading: bool, opening: bool) -> bool:
        knobs = self.knobs
        hangs = (reading and knobs.hang) or (opening and knobs.hang_open)
        return knobs.hang_all or (hangs and (not knobs.only or name in knobs.only))

    def pay(self, path: str, offset: int, size: int) -> bool:
        """Take the time that a read takes; False when it is to fail."""
        knobs = self.knobs
        name = path.rsplit("/", 1)[-1]
        wait_s = knobs.latency_s
        if knobs.bytes_per_s:
            with self.changed:
                self.free_at = max(self.free_at, time.monotonic()) + size / knobs.bytes_per_s
                wait_s += self.free_at - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        return not (knobs.fail and offset + size > knobs.fail_from and (not knobs.only or name in knobs.only))

    def count(self, path: str, size: int) -> None:
        with self.changed:
            counter = self.counters.setdefault(path.rsplit("/", 1)[-1], [0, 0])
            counter[0] += 1
            counter[1] += size

    def answer_questions(self) -> None:
        """Serve the parent's questions; ends with the process when the parent goes away."""
        for line in sys.stdin:
            question = json.loads(line)
            answer: dict[str, Any] = {}
            with self.changed:
                if "set" in question:
                    self.knobs = Knobs(**{**question["set"], "only": tuple(question["set"]["only"])})
                    self.changed.notify_all()
                elif "counters" in question:
                    answer = dict(self.counters)
                else:
                    answer = {"blocked": self.blocked}
            print(json.dumps(answer), flush=True)
        # The parent died without cleaning up. The mount must not outlive it.
        subprocess.run(["umount", "-l", sys.argv[2]], check=False, stderr=subprocess.DEVNULL)
        os._exit(1)


def _serve(root: str, mount_point: str) -> None:
    import errno

    import mfusepy  # type: ignore[import-untyped, unused-ignore]

    server = _Server(root)
    threading.Thread(target=server.answer_questions, daemon=True).start()

    class Passthrough(mfusepy.Operations):  # type: ignore[misc, unused-ignore]
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            server.meet(path, reading=False)
            # By descriptor where there is one: its file may have been removed or replaced, and goes on being read.
            status = os.lstat(server.root + path) if fh is None else os.fstat(fh)
            names = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
            times = ("st_atime", "st_mtime", "st_ctime")
            shown = {name: getattr(status, name) for name in names} | {
                name: getattr(status, f"{name}_ns") for name in times
            }
            return shown | {"st_ino": status.st_ino + server.knobs.inode_shift}

        def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
            server.meet(path, reading=False)
            # With use_ino, a name without its inode number has 0, and readdir(3) leaves it out.
            shift = server.knobs.inode_shift
            return [(entry.name, {"st_ino": entry.inode() + shift}, 0) for entry in os.scandir(server.root + path)]

        def readlink(self, path: str) -> str:
            server.meet(path, reading=False)
            return str(Path(server.root + path).readlink())

        def statfs(self, path: str) -> dict[str, int]:
            server.meet(path, reading=False)
            disk = os.statvfs(server.root + path)
            return {name: getattr(disk, name) for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail")}

        def open(self, path: str, flags: int) -> int:
            server.meet(path, opening=True)
            if flags & (os.O_WRONLY | os.O_RDWR):
                raise mfusepy.FuseOSError(errno.EROFS)
            return os.open(server.root + path, os.O_RDONLY)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            server.meet(path, reading=True)
            if not server.pay(path, offset, size):
                raise mfusepy.FuseOSError(errno.EIO)
            data = os.pread(fh, size, offset)
            server.count(path, len(data))
            return data

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    mfusepy.FUSE(
        Passthrough(),
        mount_point,
        foreground=True,
        ro=True,
        allow_other=True,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=0,
        max_threads=32,
        max_idle_threads=32,
        fsname="slow-source",
    )
    os._exit(0)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(15, b"slow-source")  # PR_SET_NAME
    _serve(sys.argv[1], sys.argv[2])
