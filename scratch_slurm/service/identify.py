"""Learn whose mounts are ours: read the tags of new devices, in workers, as a tag may hang with its backing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator

from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.service.events import MountKey
from scratch_slurm.service.hands import Hands
from scratch_slurm.service.memory import Memory
from scratch_slurm.service.observe import SeenMount

log = logging.getLogger(__name__)

_AGAIN_S = 5.0
_TRIES = 2


class Identifier:
    """Reads tags into `memory.generations`, and root directories into `memory.roots`."""

    def __init__(
        self, memory: Memory, hands: Hands, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._memory = memory
        self._hands = hands
        self._sleep = sleep
        self._failed: dict[MountKey, int] = {}
        """How often a tag could not be read."""
        self._covered: set[MountKey] = set()

    def choose(self, mounted: Iterable[SeenMount], covered: Iterable[SeenMount] = ()) -> list[MountKey]:
        """Choose the mounts whose tags are to be read; what is remembered of mounts that are gone is forgotten.

        Args:
            mounted: what readers meet.
            covered: what lies beneath; its root directory cannot be looked at.
        """
        generations = self._memory.generations
        self._covered = set(_keys(covered))
        keys = {*_keys(mounted), *self._covered}
        for gone in generations.keys() - keys:
            del generations[gone]
        self._failed = {key: tries for key, tries in self._failed.items() if key in keys}
        return [key for key in keys - generations.keys() if self._failed.get(key, 0) < _TRIES]

    def forget(self, dataset: str) -> None:
        """Forget a dataset's mounts: the kernel gives mount ids and devices out again at once."""
        self._memory.forget_mount(dataset)
        self._failed = {key: tries for key, tries in self._failed.items() if key[0] != dataset}

    async def read(self, key: MountKey) -> None:
        """Read one tag; a failure is logged, and tried again once.

        The kernel asks the storage of the backing, which need not know a removed file any more. A device that never
        tells is one of an unknown generation: replaced, or unmounted, when nobody pins it.
        """
        dataset, _, device = key
        try:
            tag = await self._hands.identify(dataset, device, mounted=key not in self._covered)
            self._memory.generations[key] = tag.generation_id
            if tag.generation_id and tag.root:
                self._memory.roots[tag.generation_id] = tag.root
        except ScratchError as exc:
            log.warning("cannot identify dataset=%s device=%s problem=%r", dataset, device, str(exc))
            self._failed[key] = self._failed.get(key, 0) + 1
            await self._sleep(_AGAIN_S)


def _keys(mounts: Iterable[SeenMount]) -> Iterator[MountKey]:
    for mount in mounts:
        if mount.device is not None:
            yield (mount.dataset, mount.mount_id, mount.device)
