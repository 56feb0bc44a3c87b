"""The formats that `scratch-slurm build` writes, for tests that hold for each."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from scratch_slurm.cli.main import run


@dataclass(frozen=True)
class Kind:
    """A format, with the program that packs it."""

    name: str
    program: str
    package: str
    version: str
    """What the program says when it is asked for its version; a fake says so too."""
    slow: str
    """The compression that takes longest."""

    @property
    def suffix(self) -> str:
        return f".{self.name}"

    def files(self, dataset: str = "coco") -> list[str]:
        """List what is published, in order of name."""
        return sorted(dataset + suffix for suffix in (".chunks", ".json", self.suffix))

    def image(self, where: Path, dataset: str = "coco") -> Path:
        return where / (dataset + self.suffix)

    def build(self, *arguments: object) -> int:
        """Run `scratch-slurm build` in this process; returns its exit code."""
        return run(["build", "--format", self.name, *map(str, arguments)])

    def unpack(self, image: Path, out: Path) -> Path:
        """Unpack an image with the format's own tools."""
        if self.name == "squashfs":
            command = ["unsquashfs", "-no-progress", "-d", str(out), str(image)]
        else:
            command = ["fsck.erofs", f"--extract={out}", str(image)]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
        return out

    def fake(self, folder: Path, body: str) -> Path:
        """Write a program of this name into a folder: it tells a version, and otherwise runs this shell code."""
        folder.mkdir()
        program = folder / self.program
        program.write_text(f"#!/bin/bash\ncase $1 in -version|-V) echo '{self.version}'; exit;; esac\n{body}\n")
        program.chmod(0o755)
        return program


SQUASHFS = Kind("squashfs", "mksquashfs", "squashfs-tools", "mksquashfs version 4.5.1 (2022/03/17)", "xz")
EROFS = Kind("erofs", "mkfs.erofs", "erofs-utils", "mkfs.erofs 1.5", "lz4hc")

KINDS = [pytest.param(kind, id=kind.name) for kind in (SQUASHFS, EROFS)]
