"""A disk that answers with I/O errors, or not at all, when told to: an ext4 on a loop device on a file behind FUSE.

    with SickDisk(folder, folder / "ssd1", 64 << 20) as disk:
        disk.set(Health.FAILS)             # every read and write of the device is an I/O error
        disk.set(Health.HANGS)             # none is answered; what waits goes on when it is well again
        disk.set(Health.WELL)
        disk.blocked()                     # requests that hang now
        disk.take_out()                    # it is pulled: whoever has files open keeps them
        disk.put_back()                    # checked by e2fsck, and mounted again

Nothing of the device lies in the page cache below ext4: each of its requests reaches the server. What ext4 itself has
in memory (directories, what was just read) it goes on answering, as with a real disk.

A process in a request that hangs cannot be killed. It ends when the disk is well again, or when the server ends, which
leaving the block sees to.
"""

import contextlib
import enum
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

_START_S = 20.0
_FILE = "device"


class Health(enum.StrEnum):
    """What the device does with a request."""

    WELL = "well"
    FAILS = "fails"
    HANGS = "hangs"


class SickDisk:
    """See the module.

    Args:
        folder: its image and its server's mount point lie here.
        mount_point: made when it is not there.
    """

    def __init__(self, folder: Path, mount_point: Path, size_bytes: int) -> None:
        self.mount_point = mount_point
        self._image = folder / f"{mount_point.name}.disk"
        self._behind = folder / f"{mount_point.name}.fuse"
        self._size_bytes = size_bytes
        self._server: subprocess.Popen[str] | None = None
        self._devices: list[str] = []

    def __enter__(self) -> Self:
        self._behind.mkdir()
        self.mount_point.mkdir(mode=0o700)
        with self._image.open("xb") as image:
            image.truncate(self._size_bytes)
        _run("mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-J", "size=4", "-E", "nodiscard", str(self._image))
        command = [sys.executable, __file__, str(self._image), str(self._behind)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        try:
            give_up_at = time.monotonic() + _START_S
            while not os.path.ismount(self._behind):
                assert self._server.poll() is None and time.monotonic() < give_up_at, "FUSE did not come up"
                time.sleep(0.01)
            self._mount()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def set(self, health: Health) -> None:
        """In force when it returns."""
        self._ask(health)

    def blocked(self) -> int:
        """Count the requests that hang now."""
        return int(self._ask("blocked"))

    def take_out(self) -> None:
        """Detach the file system, as a disk that is pulled; open files stay open."""
        _run("umount", "-l", str(self.mount_point))

    def put_back(self) -> None:
        """Check the file system and mount it again. Nothing may have a file of it open any more."""
        for device in self._devices:
            _let_go(device)
        self._devices.clear()
        checked = subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True, text=True, check=False)
        assert checked.returncode in (0, 1, 2), checked.stdout + checked.stderr
        self._mount()

    def close(self) -> None:
        """Unmount, end the server and let the devices go; twice is fine."""
        server, self._server = self._server, None
        if server is None:
            return
        assert server.stdin is not None and server.stdout is not None
        with contextlib.suppress(OSError):
            server.stdin.write(f"{Health.WELL}\n")  # whatever hangs goes on, and ext4 writes its last
        subprocess.run(["umount", "-l", str(self.mount_point)], check=False, stderr=subprocess.DEVNULL)
        for device in self._devices:
            subprocess.run(["losetup", "-d", device], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["umount", "-l", str(self._behind)], check=False, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        server.kill()
        server.wait()
        for pipe in (server.stdin, server.stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def _mount(self) -> None:
        device = _run("losetup", "--find", "--show", str(self._behind / _FILE)).strip()
        self._devices.append(device)
        _run("mount", "-o", "errors=remount-ro", device, str(self.mount_point))

    def _ask(self, question: str) -> str:
        assert self._server is not None and self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(f"{question}\n")
        assert select.select([self._server.stdout], [], [], _START_S)[0], "the FUSE server does not answer"
        answer = self._server.stdout.readline().strip()
        assert answer, "the FUSE server has ended"
        return answer


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _let_go(device: str) -> None:
    """Detach a loop device, and wait until nothing uses it: only then may its file be checked."""
    subprocess.run(["losetup", "-d", device], check=False, stderr=subprocess.DEVNULL)
    backing = Path("/sys/block", Path(device).name, "loop", "backing_file")
    give_up_at = time.monotonic() + _START_S
    while backing.exists():
        assert time.monotonic() < give_up_at, f"{device}: something has it open"
        time.sleep(0.02)


def _serve(image: str, mount_point: str) -> None:
    import errno

    import mfusepy  # type: ignore[import-untyped, unused-ignore]

    fd = os.open(image, os.O_RDWR)
    changed = threading.Condition()
    health, blocked = Health.WELL, 0

    def meet() -> None:
        nonlocal blocked
        with changed:
            blocked += 1
            changed.wait_for(lambda: health is not Health.HANGS)
            blocked -= 1
            if health is Health.FAILS:
                raise mfusepy.FuseOSError(errno.EIO)

    def answer_questions() -> None:
        nonlocal health
        for line in sys.stdin:
            with changed:
                if line.strip() != "blocked":
                    health = Health(line.strip())
                    changed.notify_all()
                answer = blocked
            print(answer, flush=True)
        subprocess.run(["umount", "-l", mount_point], check=False, stderr=subprocess.DEVNULL)
        os._exit(1)  # the parent died without cleaning up

    class OneFile(mfusepy.Operations):  # type: ignore[misc, unused-ignore]
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": 0o40755, "st_nlink": 2}
            if path != f"/{_FILE}":
                raise mfusepy.FuseOSError(errno.ENOENT)
            return {"st_mode": 0o100600, "st_nlink": 1, "st_size": os.fstat(fd).st_size}

        def open(self, path: str, flags: int) -> int:
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            meet()
            return os.pread(fd, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            meet()
            return os.pwrite(fd, data, offset)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            meet()
            return 0

    threading.Thread(target=answer_questions, daemon=True).start()
    mfusepy.FUSE(
        OneFile(), mount_point, foreground=True, direct_io=True, max_threads=32, max_idle_threads=32, fsname="sick-disk"
    )
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2])
