"""With whose rights a tree is read that root packs.

Root may read everything, and whoever may change names in a tree can put a link to anything there at any moment. So
root reads a tree with the rights of its owner: whatever is swapped, nothing comes into the image that the owner could
not have read and packed without root.
"""

import contextlib
import grp
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass

from scratch_slurm.domain.errors import DeniedError, UsageError

_NOBODY = 65534
"""As user what may read what is open to all, as group none that files are given to."""


@dataclass(frozen=True)
class Rights:
    """Of a user, as file systems see them."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str


OWN = Rights(-1, -1, (), "you")
"""This process's own; nothing is changed for them."""


def nobodys_rights() -> Rights:
    """The rights that everybody has."""
    return Rights(_NOBODY, _NOBODY, (), "nobody")


def rights_of(uid: int) -> Rights:
    """Look up a user's rights; one that the name service does not know has no group."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Rights(uid, _NOBODY, (), f"uid {uid}")
    return Rights(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)), entry.pw_name)


def parse_user(text: str) -> Rights:
    """Look up the rights of a user by name or number.

    Raises: UsageError: there is none of this name.
    """
    if text.isascii() and text.isdecimal() and int(text[:20]) < 2**32 - 1:
        return OWN if int(text) == os.geteuid() else rights_of(int(text))
    try:
        uid = pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError) as exc:
        raise UsageError(f"--as {text[:80]!r}: there is no such user") from exc
    return OWN if uid == os.geteuid() else rights_of(uid)


def find_group(text: str) -> int:
    """Find a group by name or number.

    Raises: UsageError: there is none of this name.
    """
    if text.isascii() and text.isdecimal() and int(text[:20]) < 2**32 - 1:
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError) as exc:
        raise UsageError(f"--group {text[:80]!r}: there is no such group") from exc


@contextlib.contextmanager
def taken(rights: Rights) -> Iterator[None]:
    """Act with these rights, and so does what is started inside.

    The saved ids stay root's until something is started, which has no way back to root then. The real ids become those
    of a third: so the user in question can neither trace what is started inside nor take its open files, although it
    acts with this user's rights. Source: ptrace(2), "Ptrace access mode checking"; execve(2); capabilities(7).

    Raises: DeniedError: the kernel does not give them (a user namespace without this user).
    """
    if rights is OWN:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    third = _NOBODY if rights.uid != _NOBODY else _NOBODY - 1
    try:
        try:
            os.setgroups(rights.groups)
            os.setresgid(_NOBODY, rights.gid, gid)
            os.setresuid(third, rights.uid, 0)
        except OSError as exc:
            raise DeniedError(f"cannot take the rights of {rights.name}: {exc.strerror}") from exc
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(gid, gid, gid)
        os.setgroups(groups)
