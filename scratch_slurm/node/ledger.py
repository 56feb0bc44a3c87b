"""The ledger: pins and events in one SQLite file. Must not hold what the kernel or a directory can tell.

    <state_dir>/                      0700, root's; its flock guards making the file and moving a corrupt one aside
        ledger.sqlite  -wal  -shm     0600; the daemon and every hook write it, each through its own connection
        ledger.sqlite.corrupt-<n>     what could not be read, kept for a person to look at

Every change is one `BEGIN IMMEDIATE` transaction, so that writers queue for SQLite's one write lock, for
`busy_timeout_s` at most, and none of them ever waits while it holds what another one wants. A use count is no column:
it is the number of jobs in `pins`.

Durability: write-ahead log with synchronous=NORMAL. A killed process loses nothing that was committed; a power cut may
lose the newest transactions, and with them only pins of jobs, which end with the boot anyway. The administrator's
pins outlive the boot, so their transactions are synced (FULL).

A file that is corrupt is moved aside and a new one begun: its pins are lost, but with it no job could pin at all.
"""

import contextlib
import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from scratch_slurm.domain.errors import DeniedError, LedgerError
from scratch_slurm.domain.pins import ADMINISTRATOR, Pin

# Every hook imports this module, and pathlib takes 8 ms: paths are text here, but where that is rare.
if TYPE_CHECKING:
    from pathlib import Path

EVENTS_KEPT = 5000

_SCHEMA_VERSION = 1
# A pin counts in the boot that made it; one with an empty boot_id, the administrator's, counts in every boot.
_SCHEMA = """
CREATE TABLE pins (
    dataset TEXT NOT NULL,
    holder TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    uid INTEGER NOT NULL,
    asked_at REAL NOT NULL,
    PRIMARY KEY (holder, dataset)
);
CREATE INDEX pins_by_dataset ON pins (dataset);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    event TEXT NOT NULL,
    dataset TEXT NOT NULL,
    holder TEXT NOT NULL,
    detail TEXT NOT NULL
);
"""
_EVERY_BOOT = ""

_CORRUPT_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_LOCK_PAUSE_S = 0.02

_NO_FILE = (0, 0)

T = TypeVar("T")


class Event(NamedTuple):
    """Something that happened to a dataset or the node; `at` in epoch seconds, empty text where it does not apply."""

    at: float
    event: str
    dataset: str
    holder: str
    detail: str


class _CorruptError(LedgerError):
    """The file is no ledger any more; never leaves this module."""


def read_boot_id(path: "str | Path" = "/proc/sys/kernel/random/boot_id") -> str:
    """Read what names this boot of this node.

    Raises: LedgerError: the kernel does not tell.
    """
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise LedgerError(f"{path}: cannot read it: {exc}") from exc


class Ledger:
    """The pins and events of this node. Threads may share one: they take turns, a call at a time.

    Every method raises LedgerError when the file cannot be read or written, or is in use for longer than
    `busy_timeout_s`; what it was to change is then unchanged.

    Args:
        path: the SQLite file; its directory is made if missing.
        boot_id: this boot, from `read_boot_id`.
        now: epoch seconds.
        busy_timeout_s: the longest wait for another process's transaction, and for another thread's call.
    Raises: LedgerError: the file cannot be opened or made, others may write there, or a newer release wrote it.
    """

    moved_aside: "Path | None" = None
    """Where this object has put a corrupt file; the new one begins with an event `ledger-corrupt`."""

    def __init__(
        self, path: "str | Path", *, boot_id: str, now: Callable[[], float], busy_timeout_s: float = 5.0
    ) -> None:
        self.path = os.fspath(path)
        self._directory = self.path.rpartition("/")[0] or "."
        self.boot_id = boot_id
        self._now = now
        self._busy_timeout_s = busy_timeout_s
        self._turn = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._identity = _NO_FILE
        self._run(lambda db: None)

    def close(self) -> None:
        """Close the file; any number of times."""
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):  # everything is committed: there is nothing left to fail
                db.close()

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
        asked_at = self._now()
        boot_id = _EVERY_BOOT if holder == ADMINISTRATOR else self.boot_id
        names = list(datasets)

        def add(db: sqlite3.Connection) -> None:
            for dataset in names:
                # A job id can come again after a reboot: what is left of the earlier one has no say.
                db.execute(
                    "DELETE FROM pins WHERE holder = ? AND dataset = ? AND boot_id <> ?", (holder, dataset, boot_id)
                )
                added = db.execute(
                    "INSERT INTO pins (dataset, holder, boot_id, uid, asked_at) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT DO NOTHING",
                    (dataset, holder, boot_id, uid, asked_at),
                )
                if added.rowcount:
                    _add_event(db, Event(asked_at, "pinned", dataset, holder, f"uid={uid}"))

        self._write(add, durable=holder == ADMINISTRATOR)

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

        return self._write(take, durable=holder == ADMINISTRATOR)

    def pins(self) -> list[Pin]:
        """List the pins of this boot's jobs and the administrator's, in the order of asking."""

        def read(db: sqlite3.Connection) -> list[Pin]:
            rows = db.execute(
                "SELECT dataset, holder, uid, asked_at FROM pins WHERE boot_id IN (?, ?) ORDER BY asked_at, rowid",
                (self.boot_id, _EVERY_BOOT),
            )
            return [Pin(dataset=dataset, holder=holder, uid=uid, asked_at=at) for dataset, holder, uid, at in rows]

        return self._run(read)

    def forget_other_boots(self) -> tuple[tuple[str, str], ...]:
        """Delete the pins that the jobs of earlier boots left. Returns: (dataset, holder) of each."""

        def forget(db: sqlite3.Connection) -> tuple[tuple[str, str], ...]:
            rows = db.execute(
                "SELECT dataset, holder FROM pins WHERE boot_id NOT IN (?, ?) ORDER BY dataset, holder",
                (self.boot_id, _EVERY_BOOT),
            ).fetchall()
            self._delete_pins(db, rows, "forgotten")
            return tuple((dataset, holder) for dataset, holder in rows)

        return self._write(forget)

    def remove_unless_pinned(self, dataset: str, remove: Callable[[], None]) -> bool:
        """Call `remove` unless somebody pins the dataset, while nobody can begin to pin it.

        All other writers wait meanwhile: `remove` must be as short as a rename, and must not call the ledger.

        Returns: whether `remove` was called. What it raises goes through.
        """

        def remove_if_free(db: sqlite3.Connection) -> bool:
            pinned = db.execute(
                "SELECT 1 FROM pins WHERE dataset = ? AND boot_id IN (?, ?) LIMIT 1",
                (dataset, self.boot_id, _EVERY_BOOT),
            ).fetchone()
            if pinned is None:
                remove()
            return pinned is None

        return self._write(remove_if_free)

    def record(self, event: str, *, dataset: str = "", holder: str = "", detail: str = "") -> None:
        """Remember an event; of more than `EVENTS_KEPT` the oldest are forgotten."""
        happened = Event(self._now(), event, dataset, holder, detail)
        self._write(lambda db: _add_event(db, happened))

    def events(self, limit: int) -> list[Event]:
        """List the newest `limit` events, the newest first."""

        def read(db: sqlite3.Connection) -> list[Event]:
            rows = db.execute(
                "SELECT at, event, dataset, holder, detail FROM events ORDER BY id DESC LIMIT ?", (max(0, limit),)
            )
            return [Event(*row) for row in rows]

        return self._run(read)

    def _delete_pins(self, db: sqlite3.Connection, pins: list[tuple[str, str]], event: str, detail: str = "") -> None:
        db.executemany("DELETE FROM pins WHERE dataset = ? AND holder = ?", pins)
        for dataset, holder in pins:
            _add_event(db, Event(self._now(), event, dataset, holder, detail))

    def _write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Do `work` in one transaction that holds the write lock from its beginning."""

        def transact(db: sqlite3.Connection) -> T:
            # Not inside the transaction: SQLite refuses it there. Source: https://sqlite.org/pragma.html
            db.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # on a full disk SQLite has rolled back by itself
                    db.execute("ROLLBACK")
                raise
            return result

        return self._run(transact)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in turn, once more on a new file if this one turns out to be corrupt."""
        if not self._turn.acquire(timeout=self._busy_timeout_s):
            raise LedgerError(f"{self.path}: another thread has been using it for {self._busy_timeout_s:g} s")
        try:
            try:
                return self._attempt(work)
            except _CorruptError as exc:
                self._begin_anew(exc)
                return self._attempt(work)
        finally:
            self._turn.release()

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._connection())
        except sqlite3.Error as exc:
            raise self._ledger_error(exc) from exc

    def _connection(self) -> sqlite3.Connection:
        """The connection to the file that has the name now: another process may have moved a corrupt one aside."""
        if self._db is not None and self._identity == self._file_identity():
            return self._db
        self.close()
        try:
            self._check_directory()
            return self._open()
        except BaseException as exc:
            self.close()  # it may be half made
            if isinstance(exc, OSError):
                raise LedgerError(f"{exc.filename or self.path}: {exc.strerror}") from exc
            raise

    def _file_identity(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)  # noqa: PTH116 - every hook pays for pathlib
        except OSError:
            return _NO_FILE
        return (status.st_dev, status.st_ino)

    def _open(self) -> sqlite3.Connection:
        db = None if self._file_identity() == _NO_FILE else self._connect()
        if db is None or not _read_version(db):
            with self._directory_lock():
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
                db = self._connect()
                if not _read_version(db):  # nobody else has been faster
                    db.execute("PRAGMA journal_mode = WAL")
                    db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT")
        version = _read_version(db)
        if version > _SCHEMA_VERSION:
            raise LedgerError(
                f"{self.path}: has version {version}, this release knows {_SCHEMA_VERSION}",
                hint="run the newer release, or move the file away, which releases every pin",
            )
        return db

    def _connect(self) -> sqlite3.Connection:
        self.close()
        self._identity = self._file_identity()
        self._db = sqlite3.connect(
            self.path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        return self._db

    def _check_directory(self) -> None:
        try:
            status = os.stat(self._directory)  # noqa: PTH116 - every hook pays for pathlib
        except FileNotFoundError:
            from pathlib import Path

            directory = Path(self._directory)
            for parent in reversed(directory.parents):
                parent.mkdir(0o755, exist_ok=True)
            directory.mkdir(0o700, exist_ok=True)
            status = directory.stat()
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise LedgerError(
                f"{self._directory}: belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}",
                hint="others could forge pins there: chown root and chmod 0700",
            )

    @contextlib.contextmanager
    def _directory_lock(self) -> Iterator[None]:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            give_up_at = time.monotonic() + self._busy_timeout_s
            while not _try_lock(fd):
                if time.monotonic() >= give_up_at:
                    raise LedgerError(
                        f"{self._directory}: another process has locked it for {self._busy_timeout_s:g} s"
                    )
                time.sleep(_LOCK_PAUSE_S)
            yield
        finally:
            os.close(fd)

    def _begin_anew(self, fault: _CorruptError) -> None:
        """Move the corrupt file aside, unless another process has done so already."""
        corrupt = self._identity
        self.close()
        try:
            with self._directory_lock():
                if self._file_identity() == corrupt:
                    self.moved_aside = self._move_aside()
        except OSError as exc:
            raise LedgerError(f"{fault.message}; cannot move it aside: {exc.strerror}") from exc
        if self.moved_aside:
            happened = Event(self._now(), "ledger-corrupt", "", "", f"{fault.message}; kept as {self.moved_aside.name}")
            self._attempt(lambda db: _add_event(db, happened))

    def _move_aside(self) -> "Path":
        from pathlib import Path

        number = 1
        while (aside := Path(f"{self.path}.corrupt-{number}")).exists():
            number += 1
        Path(self.path).rename(aside)
        for suffix in ("-wal", "-shm"):  # a new file must not be given the old one's log
            with contextlib.suppress(FileNotFoundError):
                Path(self.path + suffix).rename(f"{aside}{suffix}")
        return aside

    def _ledger_error(self, exc: sqlite3.Error) -> LedgerError:
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the rest is the extended code
        if code in _CORRUPT_CODES:
            return _CorruptError(f"{self.path}: {exc}", hint="it is corrupt again at once: see to its disk")
        if code in _BUSY_CODES:
            return LedgerError(
                f"{self.path}: another process has been writing for {self._busy_timeout_s:g} s",
                hint=f"see who has it open: fuser {self.path}",
            )
        if code == sqlite3.SQLITE_FULL:
            return LedgerError(f"{self.path}: no space left", hint="make room on its file system")
        return LedgerError(f"{self.path}: {exc}", hint="see that its file system is there and can be written")


def _read_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _add_event(db: sqlite3.Connection, event: Event) -> None:
    added = db.execute(
        "INSERT INTO events (at, event, dataset, holder, detail) VALUES (?, ?, ?, ?, ?)",
        (event.at, event.event, event.dataset, event.holder, event.detail),
    )
    db.execute("DELETE FROM events WHERE id <= ?", ((added.lastrowid or 0) - EVENTS_KEPT,))


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
