"""The ledger: pins and events. Must not hold what the kernel or a directory can tell.

A use count is no column: it is the number of jobs in `pins`. A power cut may lose the newest pins of jobs, which end
with the boot anyway. The administrator's pins outlive the boot, so their transactions are synced.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from scratch_slurm.domain.errors import DeniedError, LedgerError
from scratch_slurm.domain.pins import ADMINISTRATOR, Pin
from scratch_slurm.node.ledger.ledgerfile import LedgerFile

# Every hook imports this module, and pathlib takes 8 ms: paths are text here, but where that is rare.
if TYPE_CHECKING:
    from pathlib import Path

EVENTS_KEPT = 5000
# Of what is no job's, whatever jobs do: a user with many short jobs does not push out what happened to the node.
OTHER_EVENTS_KEPT = 2500

_SCHEMA_VERSION = 1
# A pin counts in the boot that made it; one with an empty boot_id, the administrator's, counts in every boot.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pins (
    dataset TEXT NOT NULL,
    holder TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    uid INTEGER NOT NULL,
    asked_at REAL NOT NULL,
    asked_monotonic REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (holder, dataset)
);
CREATE INDEX IF NOT EXISTS pins_by_dataset ON pins (dataset);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    event TEXT NOT NULL,
    dataset TEXT NOT NULL,
    holder TEXT NOT NULL,
    detail TEXT NOT NULL
);
"""
# What an earlier release of the same version did not have.
_ADDED_COLUMNS = {"pins": {"asked_monotonic": "REAL NOT NULL DEFAULT 0"}, "events": {}}
_EVERY_BOOT = ""
_READ_PATIENCE_S = 5.0


class Event(NamedTuple):
    """Something that happened to a dataset or the node; `at` in epoch seconds, empty text where it does not apply."""

    at: float
    event: str
    dataset: str
    holder: str
    detail: str


def read_boot_id(path: "str | Path" = "/proc/sys/kernel/random/boot_id") -> str:
    """Read what names this boot of this node.

    Raises: LedgerError: the kernel does not tell.
    """
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise LedgerError(f"{path}: cannot read it: {exc}") from exc


def read_holders(path: "str | Path", dataset: str) -> tuple[str, ...]:
    """Read who pins a dataset now: this boot's jobs, and the administrator. No file is made or mended for it.

    Raises: LedgerError: that cannot be read.
    """
    from urllib.parse import quote  # not for the hooks

    boot_id = read_boot_id()
    try:
        db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_READ_PATIENCE_S)
        try:
            rows = db.execute(
                "SELECT holder FROM pins WHERE dataset = ? AND boot_id IN (?, ?)", (dataset, boot_id, _EVERY_BOOT)
            ).fetchall()
        finally:
            db.close()
    except sqlite3.Error as exc:
        raise LedgerError(f"{path}: cannot read who pins {dataset}: {exc}") from exc
    return tuple(holder for (holder,) in rows)


class Ledger:
    """The pins and events of this node. Threads may share one: they take turns, a call at a time.

    Every method raises LedgerError when the file cannot be read or written, or is in use for longer than
    `busy_timeout_s`; what it was to change is then unchanged.

    Args:
        path: the SQLite file; its directory is made if missing.
        boot_id: this boot, from `read_boot_id`.
        now: epoch seconds, to be shown.
        monotonic: seconds since the node booted.
        busy_timeout_s: the longest wait for another process's transaction, and for another thread's call.
        later: open the file with the first call, and try again with each that follows one that failed.
    Raises: LedgerError: unless `later`: the file cannot be opened or made, others may write there, or a newer release
        wrote it.
    """

    def __init__(
        self,
        path: "str | Path",
        *,
        boot_id: str,
        now: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        busy_timeout_s: float = 5.0,
        later: bool = False,
    ) -> None:
        self.boot_id = boot_id
        self._now = now
        self._monotonic = monotonic
        self._file = LedgerFile(
            path,
            schema=_SCHEMA,
            added_columns=_ADDED_COLUMNS,
            version=_SCHEMA_VERSION,
            on_new=self._begin,
            on_mended=self._mended,
            busy_timeout_s=busy_timeout_s,
        )
        if not later:
            self._file.run(lambda db: None)

    @property
    def moved_aside(self) -> "Path | None":
        """Where this object has put a corrupt file; the new one begins with an event `ledger-corrupt`."""
        return self._file.moved_aside

    def close(self) -> None:
        """Close the file; any number of times."""
        self._file.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pin(self, holder: str, datasets: Iterable[str], *, uid: int) -> None:
        """Pin datasets, all or none. What the holder pins already keeps its time of asking.

        Args:
            holder: `job:<id>` or `administrator`.
            datasets: checked names, in the order of asking.
            uid: the user who asked.
        """
        asked_at, asked_monotonic = self._now(), 0.0 if holder == ADMINISTRATOR else self._monotonic()
        boot_id = _EVERY_BOOT if holder == ADMINISTRATOR else self.boot_id
        names = list(datasets)

        def add(db: sqlite3.Connection) -> None:
            for dataset in names:
                # A job id can come again after a reboot: what is left of the earlier one has no say.
                db.execute(
                    "DELETE FROM pins WHERE holder = ? AND dataset = ? AND boot_id <> ?", (holder, dataset, boot_id)
                )
                added = db.execute(
                    "INSERT INTO pins (dataset, holder, boot_id, uid, asked_at, asked_monotonic)"
                    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (dataset, holder, boot_id, uid, asked_at, asked_monotonic),
                )
                if added.rowcount:
                    _add_event(db, Event(asked_at, "pinned", dataset, holder, f"uid={uid}"))

        self._file.write(add, durable=holder == ADMINISTRATOR)

    def release(
        self,
        holder: str,
        datasets: Iterable[str] | None = None,
        *,
        event: str = "released",
        detail: str = "",
        owner: int | None = None,
    ) -> tuple[str, ...]:
        """Release a holder's pins; what it does not pin is no error.

        Args:
            holder: `job:<id>` or `administrator`.
            datasets: names; None: all that it pins.
            event, detail: how it is remembered.
            owner: release only if all of the holder's pins are this user's; None: whoever's they are.
        Returns: the datasets that it did pin, by name.
        Raises: DeniedError: some of the pins are another user's; nothing was released.
        """
        wanted = None if datasets is None else set(datasets)

        def take(db: sqlite3.Connection) -> tuple[str, ...]:
            rows = db.execute("SELECT dataset, uid FROM pins WHERE holder = ? ORDER BY dataset", (holder,)).fetchall()
            if owner is not None and any(uid != owner for _, uid in rows):
                raise DeniedError(f"{holder}: is another user's")
            released = tuple(dataset for dataset, _ in rows if wanted is None or dataset in wanted)
            self._delete_pins(db, [(dataset, holder) for dataset in released], event, detail)
            return released

        return self._file.write(take, durable=holder == ADMINISTRATOR)

    def pins(self) -> list[Pin]:
        """List the pins of this boot's jobs and the administrator's, in the order of asking."""

        def read(db: sqlite3.Connection) -> list[Pin]:
            rows = db.execute(
                "SELECT dataset, holder, uid, asked_at, asked_monotonic FROM pins"
                " WHERE boot_id IN (?, ?) ORDER BY rowid",
                (self.boot_id, _EVERY_BOOT),
            )
            return [Pin(*row) for row in rows]

        return self._file.run(read)

    def forget_other_boots(self) -> tuple[tuple[str, str], ...]:
        """Delete the pins that the jobs of earlier boots left. Returns: (dataset, holder) of each."""

        def forget(db: sqlite3.Connection) -> tuple[tuple[str, str], ...]:
            rows = db.execute(
                "SELECT dataset, holder FROM pins WHERE boot_id NOT IN (?, ?) ORDER BY dataset, holder",
                (self.boot_id, _EVERY_BOOT),
            ).fetchall()
            self._delete_pins(db, rows, "forgotten")
            return tuple((dataset, holder) for dataset, holder in rows)

        return self._file.write(forget)

    def record(self, event: str, *, dataset: str = "", holder: str = "", detail: str = "") -> None:
        """Remember an event. Jobs' are kept among the newest `EVENTS_KEPT`, of others `OTHER_EVENTS_KEPT`."""
        happened = Event(self._now(), event, dataset, holder, detail)
        self._file.write(lambda db: _add_event(db, happened))

    def events(self, limit: int) -> list[Event]:
        """List the newest `limit` events, the newest first."""

        def read(db: sqlite3.Connection) -> list[Event]:
            rows = db.execute(
                "SELECT at, event, dataset, holder, detail FROM events ORDER BY id DESC LIMIT ?", (max(0, limit),)
            )
            return [Event(*row) for row in rows]

        return self._file.run(read)

    def _delete_pins(self, db: sqlite3.Connection, pins: list[tuple[str, str]], event: str, detail: str = "") -> None:
        db.executemany("DELETE FROM pins WHERE dataset = ? AND holder = ?", pins)
        for dataset, holder in pins:
            _add_event(db, Event(self._now(), event, dataset, holder, detail))

    def _begin(self, db: sqlite3.Connection, why: str) -> None:
        _add_event(db, Event(self._now(), "ledger-corrupt", "", "", why))

    def _mended(self, db: sqlite3.Connection, tables: list[str]) -> None:
        _add_event(db, Event(self._now(), "ledger-mended", "", "", f"made again: {', '.join(tables)}"))


def _add_event(db: sqlite3.Connection, event: Event) -> None:
    added = db.execute(
        "INSERT INTO events (at, event, dataset, holder, detail) VALUES (?, ?, ?, ?, ?)",
        (event.at, event.event, event.dataset, event.holder, event.detail),
    )
    db.execute("DELETE FROM events WHERE id <= ? AND holder GLOB 'job:*'", ((added.lastrowid or 0) - EVENTS_KEPT,))
    if not event.holder.startswith("job:"):
        db.execute(
            "DELETE FROM events WHERE holder NOT GLOB 'job:*' AND id <= ("
            "SELECT id FROM events WHERE holder NOT GLOB 'job:*' ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (OTHER_EVENTS_KEPT,),
        )
