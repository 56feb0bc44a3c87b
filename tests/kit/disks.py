"""Small file systems of their own, for what must fill up or be looked at alone."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(folder: Path, mount_point: Path, size_bytes: int) -> Iterator[None]:
    """Mount an ext4 of that size on `mount_point`, which is made; its image lies in `folder`."""
    image = folder / f"{mount_point.name}.ext4"
    image.touch()
    os.truncate(image, size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-m", "0", str(image)], check=True)
    mount_point.mkdir(mode=0o700)
    command = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["mount", device, mount_point], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", mount_point], check=False)
        subprocess.run(["losetup", "-d", device], check=True)
