"""Who is who: the groups of users, asked of the name service in a worker process and never waited for by the rounds."""

import asyncio
import logging
import time
from collections.abc import Callable

from scratch_slurm.domain.access import Person, may_read
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.domain.model import Permissions
from scratch_slurm.service.hands import Hands

log = logging.getLogger(__name__)

FRESH_S = 300.0
"""So long an answer is taken for true; then it is asked for again, and holds until the next answer is there."""
_RETRY_S = 30.0
_ASKED_AT_ONCE = 2
_MOST = 4096


class People:
    """The groups of those users on whose groups something depends.

    Args:
        most: users that are remembered, and that may wait to be asked about; others are not asked about.
        on_news: called when something became known, or cannot be told.
        monotonic: seconds.
    """

    def __init__(
        self,
        hands: Hands,
        *,
        on_news: Callable[[], object],
        most: int = _MOST,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hands = hands
        self._on_news = on_news
        self._most = most
        self._monotonic = monotonic
        self._slots = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._groups: dict[int, frozenset[int]] = {}
        self._ask_at: dict[int, float] = {}
        """User -> when to ask again, monotonic seconds."""
        self._problems: dict[int, str] = {}
        self._asking: dict[int, asyncio.Task[None]] = {}

    def judge(self, uid: int, permissions: Permissions | None) -> bool | None:
        """Tell whether a user may read a file; asks for his groups if it depends on them.

        Args:
            permissions: None: they are not known (yet).
        Returns: None: it is not known yet, or cannot be told: `problem` has the reason then.
        """
        verdict = may_read(Person(uid, None), permissions)
        if verdict is not None or permissions is None:
            return verdict
        due = uid not in self._asking and self._monotonic() >= self._ask_at.get(uid, 0.0)
        if due and len(self._asking) < self._most:
            self._asking[uid] = asyncio.create_task(self._ask(uid))
        return may_read(Person(uid, self._groups.get(uid)), permissions)

    def problem(self, uid: int) -> str:
        """Tell why a user's groups are not known; empty when they are, or nothing has gone wrong yet."""
        return "" if uid in self._groups else self._problems.get(uid, "")

    def close(self) -> None:
        """Ask nobody any more."""
        for task in self._asking.values():
            task.cancel()

    async def _ask(self, uid: int) -> None:
        try:
            async with self._slots:
                self._groups[uid] = await self._hands.groups_of(uid)
            self._problems.pop(uid, None)
            self._ask_at[uid] = self._monotonic() + FRESH_S
        except ScratchError as exc:
            log.warning("no groups uid=%d problem=%r", uid, exc.message)
            self._problems[uid] = exc.message
            self._ask_at[uid] = self._monotonic() + _RETRY_S
        finally:
            self._asking.pop(uid, None)
            self._forget()
            self._on_news()

    def _forget(self) -> None:
        """Keep the newest answers only: whoever can connect to the socket could fill the memory."""
        while len(self._ask_at) > self._most:
            oldest = next(iter(self._ask_at))
            for known in (self._ask_at, self._groups, self._problems):
                known.pop(oldest, None)
