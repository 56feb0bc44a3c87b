"""What was seen already, within bounds. Pure: has no clock."""

import heapq

MOST = 65_536
"""Remembered at once, about 13 MB: 500 messages a second for two minutes."""


class Once:
    """Takes each stamp once: remembered are those from `floor` on, and older ones are not taken at all.

    So forgetting never lets one in again, whatever the clock does, and a flood costs the oldest and no memory.

    Args:
        most: how many are remembered; more raise the floor.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._heap: list[tuple[int, bytes]] = []
        self._seen: set[tuple[int, bytes]] = set()
        self.floor = 0
        """The earliest time that is still taken."""

    @property
    def remembered(self) -> int:
        """How many are remembered now."""
        return len(self._seen)

    def forget(self, before: int) -> None:
        """Take nothing older than a time any more."""
        self.floor = max(self.floor, before)
        while self._heap and self._heap[0][0] < self.floor:
            self._seen.remove(heapq.heappop(self._heap))

    def take(self, at: int, nonce: bytes) -> bool:
        """Take a stamp. Returns: False: it was taken before, or is older than the floor."""
        stamp = (at, nonce)
        if at < self.floor or stamp in self._seen:
            return False
        heapq.heappush(self._heap, stamp)
        self._seen.add(stamp)
        if len(self._heap) > self._most:
            self.forget(self._heap[0][0] + 1)
        return True
