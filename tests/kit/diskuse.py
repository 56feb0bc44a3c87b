"""What a cache directory really takes on its disk, watched from outside while a daemon works in it."""

import contextlib
import os
import threading
from pathlib import Path
from typing import Self

from tests.kit.images import backings_below


def disk_use(cache_dir: Path) -> int:
    """Add up the blocks of all files of a cache directory, served, staged and on their way out, each once.

    A deleted file that a loop device still reads counts too.
    """
    # First: what is deleted meanwhile must not be counted twice.
    held = [
        int(Path(f"/sys/block/{name}/size").read_text()) * 512
        for name, path in backings_below(cache_dir).items()
        if path.endswith(" (deleted)")
    ]
    used: dict[int, int] = {}
    for folder in (cache_dir, cache_dir / ".staging"):
        # A cleaner may take the folder.
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    used[status.st_ino] = status.st_blocks * 512 if entry.is_file(follow_symlinks=False) else 0
    return sum(used.values()) + sum(held)


class DiskWatch:
    """Samples the disk use without a pause; `most_bytes` is the most that was seen."""

    def __init__(self, cache_dir: Path) -> None:
        self.most_bytes = 0
        self.samples = 0
        self._cache_dir = cache_dir
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            # Files move while they are added up: only what two looks in a row agree on was really there.
            use_bytes = min(disk_use(self._cache_dir), disk_use(self._cache_dir))
            self.most_bytes = max(self.most_bytes, use_bytes)
            self.samples += 1
