"""Whose connections are open, and whose turn it is to be answered. No I/O."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from scratch_slurm.domain.access import ROOT


@dataclass
class _User:
    seats: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Seats:
    """Counts connections by user. Nothing is kept of a user without any.

    Args:
        each: the most that one user may have; root may have any number.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._users: dict[int, _User] = {}

    def take(self, uid: int) -> bool:
        """Give a user a seat; False: all that are for one user are taken."""
        user = self._users.setdefault(uid, _User())
        if uid != ROOT and user.seats >= self._each:
            return False
        user.seats += 1
        return True

    def leave(self, uid: int) -> None:
        """Take a seat back."""
        user = self._users[uid]
        user.seats -= 1
        if user.seats == 0:
            del self._users[uid]

    @asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """Wait for the turn of a user that has a seat, and have it while the context lasts: one at a time."""
        async with self._users[uid].turn:
            yield
