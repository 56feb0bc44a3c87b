"""Find mounts that remember an I/O error: squashfs keeps one with the metadata it struck, until it is mounted anew.

Only a look through the mount tells, and a look may hang with the backing: it is taken in a worker, of mounts that were
read since the last look, and no more often than the source is listed.
"""

import logging
from collections.abc import Iterable

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DiskError, ImageError, ScratchError
from scratch_slurm.domain.model import Backing
from scratch_slurm.service.events import MountKey
from scratch_slurm.service.hands import Hands
from scratch_slurm.service.memory import Memory
from scratch_slurm.service.observe import SeenMount

log = logging.getLogger(__name__)


class Health:
    """Keeps `memory.unwell`, and tells `memory.bad_copies`."""

    def __init__(self, config: Config, memory: Memory, hands: Hands) -> None:
        self._config = config
        self._memory = memory
        self._hands = hands
        self._looked: dict[MountKey, tuple[float, int]] = {}
        """When it was looked at (monotonic seconds), and what had been read of its device by then, in bytes."""

    def choose(self, mounted: Iterable[SeenMount], now: float) -> list[SeenMount]:
        """Choose the mounts to look at; what is remembered of mounts that are gone is forgotten.

        Args:
            mounted: those that are ours.
            now: monotonic seconds.
        """
        looked, unwell = {}, self._memory.unwell
        chosen = []
        for mount in mounted:
            key = _key(mount)
            # A mount is looked at when it is made, and the reads of the look itself are none of a job's.
            at, read_bytes = looked[key] = self._looked.get(key) or (now, mount.read_bytes)
            if now - at >= self._config.interval_s and (mount.read_bytes != read_bytes or key in unwell):
                chosen.append(mount)
        self._looked = looked
        for gone in unwell.keys() - looked.keys():
            del unwell[gone]
        for gone in self._memory.cut_off.keys() - looked.keys():
            del self._memory.cut_off[gone]
        return chosen

    async def look(self, mount: SeenMount) -> None:
        """Look at one mount; what it says is in `memory.unwell` and `memory.bad_copies` afterwards."""
        dataset, memory = mount.dataset, self._memory
        key = _key(mount)

        copy_path = mount.backing_path if mount.backing is Backing.CACHE else ""
        try:
            await self._hands.probe(dataset, key[2], copy_path)
            memory.unwell.pop(key, None)
        except (ImageError, DiskError) as exc:
            if key not in memory.unwell:
                log.warning("unwell dataset=%s device=%s problem=%r", dataset, key[2], exc.message)
            memory.unwell[key] = exc.message
            if isinstance(exc, DiskError):  # a mount of the same copy might look well, and serve what cannot be read
                memory.bad_copies[copy_path] = exc.message
        except ScratchError as exc:
            log.warning("cannot look at dataset=%s problem=%r", dataset, exc.message)  # it may be gone, or hang
        finally:
            self._looked.pop(key, None)


def _key(mount: SeenMount) -> MountKey:
    assert mount.device is not None, "ours are on loop devices"
    return (mount.dataset, mount.mount_id, mount.device)
