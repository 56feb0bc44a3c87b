"""Learn whose mounts are ours: read the tags of new devices, in workers, as a tag may hang with its backing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator

from scratch_slurm.domain.dataset import Card
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.domain.sight import MountKey
from scratch_slurm.service.events import Event, Gate, Identified
from scratch_slurm.service.hands import Hands

log = logging.getLogger(__name__)

_AGAIN_S = 5.0
_TRIES = 2


class Identifier:
    """Asks devices for their tags, and tells what they say.

    Args:
        tell: takes `Identified`, and the `Gate` of what readers meet.
    """

    def __init__(
        self,
        hands: Hands,
        tell: Callable[[Event], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._hands = hands
        self._tell = tell
        self._sleep = sleep
        self._failed: dict[tuple[str, MountKey], int] = {}
        """How often the tag of a mount could not be read."""

    def choose(self, cards: Iterable[Card]) -> list[tuple[str, MountKey, bool]]:
        """Choose the mounts whose tags are to be read.

        Returns: the dataset, the mount, and whether it lies beneath another: its root directory cannot be looked at.
        """
        unknown = [each for card in cards if not _is_known(card) for each in _find_unknown(card)]
        self._failed = {(name, key): self._failed[name, key] for name, key, _ in unknown if (name, key) in self._failed}
        return [each for each in unknown if self._failed.get(each[:2], 0) < _TRIES]

    def forget(self, dataset: str) -> None:
        """Forget a dataset's mounts: the kernel gives mount ids and devices out again at once."""
        self._failed = {key: tries for key, tries in self._failed.items() if key[0] != dataset}

    async def read(self, dataset: str, mount: MountKey, is_beneath: bool) -> None:
        """Read one tag; a failure is logged, and tried again once.

        The kernel asks the storage of the backing, which need not know a removed file any more. A device that never
        tells is one of an unknown generation: replaced, or unmounted, when nobody pins it.
        """
        _, device = mount
        try:
            tag = await self._hands.identify(dataset, device, mounted=not is_beneath)
            self._tell(Identified(dataset, mount, tag.generation_id))
            if tag.generation_id and tag.root:
                self._tell(Gate(dataset, tag.generation_id, tag.root))
        except ScratchError as exc:
            log.warning("cannot identify dataset=%s device=%s problem=%r", dataset, device, str(exc))
            self._failed[dataset, mount] = self._failed.get((dataset, mount), 0) + 1
            await self._sleep(_AGAIN_S)


def _is_known(card: Card) -> bool:
    """Whether all is known of its mounts, as it is of most."""
    top = card.seen.top
    return card.seen.beneath is None and (top is None or top.key in card.learned.tags)


def _find_unknown(card: Card) -> Iterator[tuple[str, MountKey, bool]]:
    seen = card.seen
    for mount, is_beneath in ((seen.top, False), (seen.beneath, True)):
        key = mount.key if mount else None
        if key is not None and key not in card.learned.tags:
            yield card.name, key, is_beneath
