"""The read counters outlive a restart of the daemon: a small file in state_dir, worth nothing after a reboot."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import LedgerError
from scratch_slurm.domain.throughput import ReadCounter
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.service.ledger_side import LedgerSide

log = logging.getLogger(__name__)

_SAVE_EVERY_S = 30.0


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

    def __init__(self, config: Config, ledger: LedgerSide, counters: Mapping[str, ReadCounter]) -> None:
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
        counters = dict(self._counters)
        with contextlib.suppress(LedgerError):
            await self._ledger.call(lambda: save_counters(self._path, counters, self._ledger.boot_id))
