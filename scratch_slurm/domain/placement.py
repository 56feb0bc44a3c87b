"""Whether the cache directory lies where it belongs. Pure."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "jfs", "nilfs2", "reiserfs"))
"""File systems on a disk of the node's own. All others may be memory, the network's, or another one in disguise."""

_OCTAL = re.compile(r"\\([0-7]{3})", re.ASCII)
_HEX = re.compile(r"\\x([0-9a-fA-F]{2})", re.ASCII)
_NO_MOUNT_POINTS = ("none", "swap")


@dataclass(frozen=True)
class Place:
    """Where the cache directory lies, or would."""

    fs_type: str
    on_root: bool
    """On the file system that is mounted on `/`."""
    missing: Mapping[str, str]
    """Mount points on the way to it on which nothing is mounted -> who says that they are such."""


def parse_fstab(text: str) -> list[str]:
    """Find the mount points in /etc/fstab; a line that is none says nothing.

    Source: fstab(5)
    """
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 3 and not fields[0].startswith("#") and fields[1] not in _NO_MOUNT_POINTS:
            found.append(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[1]))
    return [point for point in found if point.startswith("/")]


def parse_mount_unit(file_name: str) -> str | None:
    """Tell the mount point that a systemd unit of this name mounts; None: it is no mount unit's.

    Source: systemd.mount(5), "Where="; systemd-escape(1)
    """
    name, dot, kind = file_name.rpartition(".")
    if not dot or kind != "mount" or not name:
        return None
    if name == "-":
        return "/"
    path = "/" + name.replace("-", "/")
    return _HEX.sub(lambda match: chr(int(match[1], 16)), path)


def on_the_way(mount_points: Collection[str], directory: str) -> list[str]:
    """Choose the mount points that lie on the way to a directory, itself included; `/` is no choice of anybody's."""
    way = {directory, *(str(parent) for parent in PurePosixPath(directory).parents)} - {"/"}
    return sorted({_tidy(point) for point in mount_points} & way)


def judge_place(place: Place, cache_dir: str, *, any_file_system: bool) -> tuple[str, str]:
    """Say why the cache must not be there (problem), and why it had better not be (warning); empty: nothing.

    Args:
        any_file_system: the site says that it may lie on any.
    """
    for point, who in sorted(place.missing.items()):
        return (f"{cache_dir}: nothing is mounted on {point}, which {who} names as a mount point", "")
    if place.fs_type not in LOCAL and not any_file_system:
        return (
            f"{cache_dir}: is on a file system of type {place.fs_type}, which may be memory or the network's;"
            " cache_on_any_file_system: true takes it all the same",
            "",
        )
    if place.on_root:
        return (
            "",
            f"{cache_dir}: is on the root file system, which the node needs as well;"
            " cache_mount says which disk should be mounted there",
        )
    return ("", "")


def _tidy(point: str) -> str:
    return str(PurePosixPath(point))
