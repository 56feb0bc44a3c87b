"""How the datasets are read: a counter for each that was. They outlive a restart of the daemon in a small file."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.dataset import Reads
from scratch_slurm.domain.errors import LedgerError
from scratch_slurm.domain.sight import MountKey, SeenMount
from scratch_slurm.domain.throughput import ReadCounter, usual_streak_s
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.service.ledger_side import LedgerSide

log = logging.getLogger(__name__)

_SAVE_EVERY_S = 30.0


_Mark = tuple[MountKey, int]
"""A mount, and the bytes read of its device."""


class Counters:
    """Counts the reads of each dataset, through every switch and restart of its device.

    What is not read costs one comparison a look: it has no counter, or one that rests until something is read again.
    """

    def __init__(self, period_s: float, saved: Mapping[str, ReadCounter] | None = None) -> None:
        self._period_s = period_s
        self.by_dataset = dict(saved or {})
        """Of those that were ever read."""
        self._at_rest: dict[str, _Mark] = {}
        """Dataset that is not read -> what its device had read by then."""
        self._reads: dict[str, Reads] = {}
        self._looked_at = 0.0

    def take(self, mounts: Iterable[SeenMount], read_bytes: Mapping[str, int], now: float) -> Mapping[str, Reads]:
        """Take a look at the devices' counters.

        Args:
            mounts: those that are ours.
            read_bytes: dataset -> what its device has read.
            now: monotonic seconds.
        Returns: how each of these datasets is read, of those that ever were; what is not mounted is not read.
        """
        mounted = set()
        for mount in mounts:
            dataset, key = mount.dataset, mount.key
            assert key is not None, "ours are on loop devices"
            mounted.add(dataset)
            mark = (key, read_bytes.get(dataset, 0))
            if self._at_rest.get(dataset) != mark:
                self._count(mount, mark, now)
        for gone in (self.by_dataset.keys() | self._at_rest.keys()) - mounted:
            for known in (self.by_dataset, self._at_rest, self._reads):
                known.pop(gone, None)
        self._looked_at = now
        return self._reads

    def usual_streak_s(self, now: float, horizon_s: float) -> float:
        """How long a streak goes on here, see `throughput.usual_streak_s`."""
        return usual_streak_s(self.by_dataset.values(), now, horizon_s)

    def _count(self, mount: SeenMount, mark: _Mark, now: float) -> None:
        dataset, rested = mount.dataset, self._at_rest.pop(mount.dataset, None)
        counter = self.by_dataset.get(dataset)
        if counter is None:
            if rested is None or rested[0] != mark[0]:
                self._at_rest[dataset] = mark  # what was read before is not ours
                return
            counter = self.by_dataset[dataset] = ReadCounter(self._period_s)
        if rested is not None:  # as it was at the look before
            counter.sample(self._looked_at, _name(rested[0]), rested[1], mount.backing)
        # A device's counter goes on when it is bound anew, so the mount is part of its name.
        counter.sample(now, _name(mark[0]), mark[1], mount.backing)
        if counter.is_flat and not counter.is_read(now):
            self._at_rest[dataset] = mark
        self._reads[dataset] = counter.reads(now)


# They are the same in each round.
@functools.lru_cache(maxsize=8192)
def _name(key: MountKey) -> str:
    mount_id, device = key
    return f"{device}@{mount_id}"


class _Saved(msgspec.Struct):
    boot_id: str
    """The monotonic clock and the devices' counters begin anew with each boot."""
    counters: dict[str, ReadCounter]


def save_counters(path: Path, counters: Mapping[str, ReadCounter], boot_id: str) -> None:
    """Write the counters of all datasets that were read, by rename; a failure costs a window of history only."""
    read = {dataset: counter for dataset, counter in counters.items() if counter.total_bytes}
    new = path.with_name(path.name + ".new")
    try:
        new.write_bytes(msgspec.json.encode(_Saved(boot_id, read)))
        new.replace(path)
    except OSError as exc:
        log.warning("cannot save the read counters file=%s problem=%r", path, word_os_error(exc, path))


def load_counters(path: Path, boot_id: str, period_s: float) -> dict[str, ReadCounter]:
    """Read the counters of an earlier daemon of this boot; none if there are none, or they cannot be read."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
        if saved.boot_id == boot_id:
            for counter in saved.counters.values():
                counter.period_s = period_s
            return saved.counters
    return {}


class CountersKeeper:
    """Saves the counters now and then, past a disk that hangs."""

    def __init__(self, config: Config, ledger: LedgerSide, counters: Counters) -> None:
        self._path = config.reads_path
        self._every_s = max(_SAVE_EVERY_S, config.period_s / 10)
        self._ledger = ledger
        self._counters = counters

    async def run(self) -> None:
        """Save for ever; ends only when cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.save()

    async def save(self) -> None:
        """Save once; where its disk hangs a window of history is lost."""
        counters = dict(self._counters.by_dataset)
        with contextlib.suppress(LedgerError):
            await self._ledger.call(lambda: save_counters(self._path, counters, self._ledger.boot_id))
