"""Who may read what: the mode bits of an image's file are the rule, and its mount may let in nobody else. Pure.

Access control lists are not looked at, nor are the directories above the image: many sites show the source to root
alone, and the datasets to everybody.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import product

from scratch_slurm.domain.model import Permissions, SourceImage

ROOT = 0
_STICKY = 0o1000


@dataclass(frozen=True)
class Person:
    """A user with the groups that the kernel gives a process of his."""

    uid: int
    gids: frozenset[int] | None
    """The primary and the supplementary groups; None: they are not known (yet)."""


def is_public(permissions: Permissions) -> bool:
    """Tell whether everybody may read a file, whoever it is."""
    return permissions.mode & 0o444 == 0o444


def may_read(person: Person, permissions: Permissions | None) -> bool | None:
    """Tell whether a person may read a file.

    Args:
        permissions: None: they are not known (yet). What is not known is for root alone.
    Returns: None: it depends on what is not known, the permissions or the person's groups.
    """
    if permissions is None:
        return True if person.uid == ROOT else None
    return _has(person, permissions, 0o4)


def may_enter(person: Person, root: Permissions) -> bool | None:
    """Tell whether a person may list a mounted root directory or pass through it.

    Returns: None: it depends on the person's groups, which are not known.
    """
    return _has(person, root, 0o5)


def _has(person: Person, permissions: Permissions, bits: int) -> bool | None:
    """Tell whether any of the bits is set in the one class that is the person's. Source: path_resolution(7)"""
    if person.uid == ROOT:
        return True
    owner, group, other = (bool(permissions.mode & bits << shift) for shift in (6, 3, 0))
    if person.uid == permissions.uid:
        return owner
    if group == other:
        return other
    if person.gids is None:
        return None
    return group if permissions.gid in person.gids else other


def too_open(root: Permissions, image: Permissions) -> str | None:
    """Tell whether a mount lets in anybody who may not read its image.

    Only the classes that the two name matter, so all kinds of people are tried.

    Args:
        root: the mounted root directory, which is the gate to all that lies below it.
        image: the image's file in the source.
    Returns: who gets in wrongly; None: nobody.
    """
    stranger = max(root.uid, image.uid) + 1
    for uid in dict.fromkeys((stranger, root.uid, image.uid)):
        for chosen in product((False, True), repeat=2):
            gids = frozenset(gid for gid, has in zip((root.gid, image.gid), chosen, strict=True) if has)
            person = Person(uid, gids)
            if may_enter(person, root) and not may_read(person, image):
                return _word(person, stranger)
    return None


def _word(person: Person, stranger: int) -> str:
    groups = " and ".join(str(gid) for gid in sorted(person.gids or ()))
    who = "everybody" if person.uid == stranger else f"user {person.uid}"
    return f"{who} in group {groups}" if groups else who


def as_file(root: Permissions) -> Permissions:
    """Give the permissions of an image that its root directory tells of, where the image itself cannot be asked."""
    readable = sum(0o4 << shift for shift in (6, 3, 0) if root.mode & 0o5 << shift)
    return replace(root, mode=readable)


def distrust_file(permissions: Permissions, directory: Permissions, owners: Collection[int]) -> str | None:
    """Tell why root must not mount an image: somebody else could change it, or its bytes as they are read.

    Args:
        permissions: of the image's file.
        directory: of the source; a group that may write there may write the images, too.
        owners: users who are trusted beside root.
    Returns: the reason; None: it is trusted.
    """
    if permissions.uid not in (ROOT, *owners):
        trusted = ", ".join(str(uid) for uid in dict.fromkeys((ROOT, *owners)))
        return f"belongs to user {permissions.uid}, who is none of {trusted}: chown it, or see source_owners"
    if permissions.mode & 0o002:
        return f"may be written by everybody (mode {permissions.mode:04o}): chmod o-w"
    if permissions.mode & 0o020 and not (directory.mode & 0o020 and directory.gid == permissions.gid):
        return f"may be written by group {permissions.gid} (mode {permissions.mode:04o}): chmod g-w"
    return None


def distrust_directory(directory: Permissions, owners: Collection[int]) -> str | None:
    """Tell why root must not mount anything from a source: others could put their images under trusted names.

    Returns: the reason; None: it is trusted.
    """
    if directory.uid not in (ROOT, *owners):
        return (
            f"belongs to user {directory.uid}, who is neither root nor one of source_owners; nothing of it is mounted"
        )
    if directory.mode & 0o002 and not directory.mode & _STICKY:
        return f"may be written by everybody (mode {directory.mode:04o}): chmod o-w it; nothing of it is mounted"
    return None


def refuse(image: SourceImage, root: Permissions | None) -> str | None:
    """Tell why an image is not served: its mount would let in more people than its file does.

    Args:
        root: its mounted root directory; None: it has not been seen.
    """
    who = too_open(root, image.permissions) if root else None
    return word_refusal(image.permissions, root, who) if root and who else None


def word_refusal(image: Permissions, root: Permissions, who: str) -> str:
    """Say what is wrong with an image that is too open inside, and how to mend it."""
    return (
        f"({image}) holds a root directory ({root}) that lets in {who}: build it again with"
        " `scratch-slurm build --group GROUP --mode MODE`, or chmod 0644 it for all"
    )
