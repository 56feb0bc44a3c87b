"""Learn whose mounts are ours: read the tags of new devices, in workers, as a tag may hang with its backing."""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.domain.names import parse_device_tag
from scratch_slurm.service import operations as op
from scratch_slurm.service.memory import Memory, MountKey
from scratch_slurm.service.observe import SeenMount
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

_AGAIN_S = 5.0
_TRIES = 2


class Identifier:
    """Reads tags into `memory.generations`, and root directories into `memory.roots`."""

    def __init__(self, config: Config, memory: Memory, workers: Workers) -> None:
        self._config = config
        self._memory = memory
        self._workers = workers
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
        memory, silence_s = self._memory, self._config.source_timeout_s

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.Tag):
                generation_id = memory.generations[key] = parse_device_tag(line.text)
                if generation_id and line.root:
                    memory.roots[generation_id] = line.root

        def on_hang() -> None:
            memory.hanging_since[dataset] = time.time() - silence_s

        request = op.ReadTag(device, "" if key in self._covered else str(self._config.mount_dir / dataset))
        try:
            await self._workers.run(request, silence_s=silence_s, on_line=on_line, on_hang=on_hang)
        except ScratchError as exc:
            log.warning("cannot identify dataset=%s device=%s problem=%r", dataset, device, str(exc))
            self._failed[key] = self._failed.get(key, 0) + 1
            await asyncio.sleep(_AGAIN_S)
        finally:
            memory.hanging_since.pop(dataset, None)


def _keys(mounts: Iterable[SeenMount]) -> Iterator[MountKey]:
    for mount in mounts:
        if mount.device is not None:
            yield (mount.dataset, mount.mount_id, mount.device)
