"""Users and their groups, by the name service.

Everything here may block for as long as a directory service does not answer: call it only in a child process that can
be killed.
"""

import os
import pwd
from collections.abc import Iterable

from scratch_slurm.domain.errors import NotFoundError


def read_groups(uid: int) -> tuple[int, ...]:
    """Read a user's primary and supplementary groups.

    Raises: NotFoundError: there is no such user, or the name service does not answer.
    """
    try:
        account = pwd.getpwuid(uid)
        return tuple(os.getgrouplist(account.pw_name, account.pw_gid))
    except (KeyError, OSError) as exc:
        raise NotFoundError(f"user {uid} is not known to this node") from exc


def read_uids(users: Iterable[str | int]) -> tuple[int, ...]:
    """Turn names and numbers of users into numbers.

    Raises: NotFoundError: there is no such user, or the name service does not answer.
    """
    return tuple(user if isinstance(user, int) else _read_uid(user) for user in users)


def _read_uid(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, OSError) as exc:
        raise NotFoundError(f"user {name!r} is not known to this node") from exc
