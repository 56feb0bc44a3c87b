"""A node as release 0.1.0 left it: files and names as that release wrote them, made without today's code.

What is copied here are the names and shapes of its files, which are on other people's disks: `generation_id` of its
`Generation.id`, the journal's version 1, catalog.json, reads.json, and the manifest of its `build`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

CHUNK_BYTES = 64 * 2**20


def generation_id(image: Path, digest: str | None = None) -> str:
    """Name an image's version. Without a manifest by inode, size and mtime; with one by size, mtime and its digest."""
    status = image.stat()
    parts = [0 if digest else status.st_ino, status.st_size, status.st_mtime_ns, *([digest] if digest else [])]
    return hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def write_manifest(image: Path) -> str:
    """Write what `build` wrote beside an image; returns the digest."""
    digest = blake3(image.read_bytes()).hexdigest()
    body = {"dataset": image.stem, "size_bytes": image.stat().st_size, "blake3": digest, "files": 1}
    image.with_suffix(".json").write_text(json.dumps(body, indent=2) + "\n")
    return digest


@dataclass(frozen=True)
class OldNode:
    """The directories of a node of that release."""

    source_dir: Path
    cache_dir: Path
    state_dir: Path

    def prepare(self) -> None:
        for directory in (self.cache_dir, self.cache_dir / ".staging", self.state_dir):
            directory.mkdir(mode=0o700, exist_ok=True)

    def cache(self, image: Path, digest: str | None = None) -> Path:
        """Leave a whole copy."""
        copy = self.cache_dir / f"{image.stem}@{generation_id(image, digest)}.image"
        copy.write_bytes(image.read_bytes())
        copy.chmod(0o600)
        return copy

    def begin_copy(self, image: Path, digest: str | None = None, *, chunks: int = 1) -> Path:
        """Leave a copy that was killed: its blocks are reserved, its first chunks are there and in the journal."""
        part = self.cache_dir / ".staging" / f"{image.stem}@{generation_id(image, digest)}.part"
        data, status = image.read_bytes(), image.stat()
        with part.open("wb") as file:
            file.write(data[: chunks * CHUNK_BYTES])
            file.truncate(status.st_size)
        header = {
            "type": "copy",
            "inode": 0 if digest else status.st_ino,
            "size_bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "chunk_bytes": CHUNK_BYTES,
            "version": 1,
        }
        ends = [(number + 1) * CHUNK_BYTES for number in range(chunks)]
        lines = [{"type": "chunk", "end_bytes": end, "digest": blake3(data[:end]).hexdigest()} for end in ends]
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (header, *lines))
        part.with_suffix(".journal").write_text(text)
        return part

    def list_source(self, images: dict[Path, str | None]) -> None:
        """Leave catalog.json. Args: images: with the digests of their manifests."""
        listed = {}
        for image, digest in images.items():
            status = image.stat()
            generation = {
                "inode": 0 if digest else status.st_ino,
                "size_bytes": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "digest": digest,
                "former_inode": status.st_ino if digest else 0,
            }
            permissions = {"uid": status.st_uid, "gid": status.st_gid, "mode": status.st_mode & 0o7777}
            listed[image.stem] = {
                "dataset": image.stem,
                "path": str(image),
                "generation": generation,
                "fs_type": "squashfs",
                "permissions": permissions,
            }
        body = {"source_dir": str(self.source_dir), "source_owners": [], "images": listed}
        path = self.state_dir / "catalog.json"
        path.write_text(json.dumps(body))
        path.chmod(0o600)

    def count_reads(self, boot_id: str, dataset: str, device: str, read_bytes: int) -> None:
        """Leave reads.json with one dataset that was read from its copy.

        Args:
            device: as `loop3@17`, of which 17 is the mount id.
        """
        counter = {
            "period_s": 600.0,
            "device": device,
            "device_bytes": read_bytes,
            "source_bytes": 0,
            "cache_bytes": read_bytes,
            "reading_since": 1.0,
            "last_read_at": 1.0,
            "samples": [[1.0, read_bytes]],
            "reading_from_bytes": 0,
            "ended_readings": 0,
            "ended_readings_s": 0.0,
        }
        (self.state_dir / "reads.json").write_text(json.dumps({"boot_id": boot_id, "counters": {dataset: counter}}))
