"""Find mounts that remember an I/O error: squashfs keeps one with the metadata it struck, until it is mounted anew.

Only a look through the mount tells, and a look may hang with the backing: it is taken in a worker, of mounts that were
read since the last look, and no more often than the source is listed.
"""

import logging
from collections.abc import Callable, Iterable

from scratch_slurm.domain.dataset import Card
from scratch_slurm.domain.errors import DiskError, ImageError, ScratchError
from scratch_slurm.domain.sight import MountKey, SeenMount
from scratch_slurm.service.events import BadCopy, Event, Looked
from scratch_slurm.service.hands import Hands

log = logging.getLogger(__name__)


class Health:
    """Looks through mounts, and tells what they answer.

    Args:
        tell: takes `Looked` and `BadCopy`.
        interval_s: the least time between two looks at one mount.
    """

    def __init__(self, hands: Hands, tell: Callable[[Event], None], *, interval_s: float) -> None:
        self._hands = hands
        self._tell = tell
        self._interval_s = interval_s
        self._looked: dict[str, tuple[MountKey, float, int]] = {}
        """Dataset -> its mount, when it was looked at (monotonic seconds), and the bytes that had been read by then."""

    def choose(self, cards: Iterable[Card], now: float) -> list[Card]:
        """Choose the datasets to look at.

        Args:
            now: monotonic seconds.
        """
        looked, chosen = {}, []
        for card in cards:
            mount = _find_mount(card)
            if mount is None:
                continue
            key, read_bytes = mount.key, card.reads.source_bytes + card.reads.cache_bytes
            assert key is not None, "ours are on loop devices"
            last = self._looked.get(card.name)
            # A mount is looked at when it is made, and the reads of the look itself are none of a job's.
            if last is None or last[0] != key:
                last = (key, now, read_bytes)
            looked[card.name] = last
            if now - last[1] >= self._interval_s and (last[2] != read_bytes or card.fault):
                chosen.append(card)
        self._looked = looked
        return chosen

    async def look(self, card: Card) -> None:
        """Look at one dataset's mount."""
        mount = _find_mount(card)
        if mount is None or mount.key is None:
            return
        dataset, key = card.name, mount.key
        copy_path = card.mounted.copy_path if card.mounted else ""
        try:
            await self._hands.probe(dataset, key[1], copy_path)
            self._tell(Looked(dataset, key, ""))
        except (ImageError, DiskError) as exc:
            if not card.fault:
                log.warning("unwell dataset=%s device=%s problem=%r", dataset, key[1], exc.message)
            self._tell(Looked(dataset, key, exc.message))
            if isinstance(exc, DiskError):  # a mount of the same copy might look well, and serve what cannot be read
                self._tell(BadCopy(dataset, copy_path, exc.message))
        except ScratchError as exc:
            log.warning("cannot look at dataset=%s problem=%r", dataset, exc.message)  # it may be gone, or hang
        finally:
            self._looked.pop(dataset, None)


def _find_mount(card: Card) -> SeenMount | None:
    """Find what readers meet, where that is ours."""
    return card.seen.top if card.mounted else None
