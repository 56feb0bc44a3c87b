"""The ledger's file: one SQLite database that a daemon and many hooks share. Must not know what is in it.

    <state_dir>/                      0700, root's; its flock guards making the file and moving a corrupt one aside
        ledger.sqlite  -wal  -shm     0600; the daemon and every hook write it, each through its own connection
        ledger.sqlite.corrupt-<n>     what could not be read, kept for a person to look at

Every change is one `BEGIN IMMEDIATE` transaction, so that writers queue for SQLite's one write lock, for
`busy_timeout_s` at most, and none of them ever waits while it holds what another one wants.

Durability: write-ahead log with synchronous=NORMAL: a killed process loses nothing that was committed, a power cut may
lose the newest transactions. Those that must not be lost are synced (`durable`).

A file that is corrupt is moved aside and a new one begun: its pins are lost, but with it no job could pin at all.
A table that somebody dropped is made again, empty.
"""

import contextlib
import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from scratch_slurm.domain.errors import LedgerError
from scratch_slurm.node.owner import others_may_write

# Every hook imports this module, and pathlib takes 8 ms: paths are text here, but where that is rare.
if TYPE_CHECKING:
    from pathlib import Path

_CORRUPT_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# No room for the file itself, or for the log or the index beside it.
_FULL_CODES = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
_LOCK_PAUSE_S = 0.02

_NO_FILE = (0, 0)

T = TypeVar("T")


class _CorruptError(LedgerError):
    """The file is no ledger any more; never leaves this module."""


class LedgerFile:
    """A connection that makes, checks and mends its file. Threads may share one: they take turns, a call at a time.

    Every method raises LedgerError when the file cannot be read or written, or is in use for longer than
    `busy_timeout_s`; what it was to change is then unchanged.

    Args:
        path: the SQLite file; its directory is made if missing.
        schema: the statements that make the tables that are not there.
        added_columns: each table -> columns that files of this version may lack -> their declaration.
        version: of the schema; a file with a greater one is refused.
        on_new: told the new file after a corrupt one was moved aside, and why.
        on_mended: told the file after tables that were lost were made again, and which.
        busy_timeout_s: the longest wait for another process's transaction, and for another thread's call.
    """

    moved_aside: "Path | None" = None
    """Where this object has put a corrupt file."""

    def __init__(
        self,
        path: "str | Path",
        *,
        schema: str,
        added_columns: Mapping[str, Mapping[str, str]],
        version: int,
        on_new: Callable[[sqlite3.Connection, str], None],
        on_mended: Callable[[sqlite3.Connection, list[str]], None],
        busy_timeout_s: float,
    ) -> None:
        self.path = os.fspath(path)
        self._directory = self.path.rpartition("/")[0] or "."
        self._schema = schema
        self._added_columns = added_columns
        self._version = version
        self._on_new = on_new
        self._on_mended = on_mended
        self._busy_timeout_s = busy_timeout_s
        self._turn = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._identity = _NO_FILE

    def close(self) -> None:
        """Close the file; any number of times."""
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):  # everything is committed: there is nothing left to fail
                db.close()

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
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

        return self.run(transact)

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in turn, once more on a new file if this one turns out to be corrupt, or to lack a table."""
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
            db = self._connection()
            try:
                return work(db)
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode != sqlite3.SQLITE_ERROR or not self._mend(db):
                    raise
                return work(db)
        except sqlite3.Error as exc:
            raise self._ledger_error(exc) from exc

    def _mend(self, db: sqlite3.Connection) -> bool:
        """Make the tables and columns that are missing; returns whether there were any."""

        def missing() -> tuple[list[str], list[tuple[str, str]]]:
            columns = {table: _read_columns(db, table) for table in self._added_columns}
            lost = [table for table, there in columns.items() if not there]
            wanted = [(table, column) for table, added in self._added_columns.items() for column in added]
            return lost, [(table, column) for table, column in wanted if column not in columns[table]]

        if missing() == ([], []):
            return False
        with self._locked_directory():
            db.execute("BEGIN IMMEDIATE")
            try:
                lost, lacking = missing()
                for table, column in lacking:
                    if table not in lost:
                        db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {self._added_columns[table][column]}")
                for statement in filter(str.strip, self._schema.split(";")):
                    db.execute(statement)
                if lost:
                    self._on_mended(db, lost)
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
        return True

    def _connection(self) -> sqlite3.Connection:
        """The connection to the file that has the name now: another process may have moved a corrupt one aside."""
        if self._db is not None and self._identity == self._file_identity():
            self._refuse_newer(self._db)
            return self._db
        self.close()
        try:
            self._check_directory()
            return self._open()
        except BaseException as exc:
            self.close()  # it may be half made
            if isinstance(exc, OSError):
                raise self._os_error(exc) from exc
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
                    db.executescript(f"BEGIN IMMEDIATE; {self._schema} PRAGMA user_version = {self._version}; COMMIT")
        self._refuse_newer(db)
        return db

    def _refuse_newer(self, db: sqlite3.Connection) -> None:
        """Raises: LedgerError: a newer release has changed the file, perhaps a moment ago."""
        version = _read_version(db)
        if version > self._version:
            raise LedgerError(
                f"{self.path}: has version {version}, this release knows {self._version}",
                hint="run the newer release, or move the file away, which releases every pin",
            )

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
        if others_may_write(status):
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

    @contextlib.contextmanager
    def _locked_directory(self) -> Iterator[None]:
        """Hold the lock for work that raises no OSError of its own."""
        try:
            with self._directory_lock():
                yield
        except OSError as exc:
            raise self._os_error(exc) from exc

    def _os_error(self, exc: OSError) -> LedgerError:
        # Only when something fails: every hook imports this module.
        from scratch_slurm.node.oswords import word_os_error

        return LedgerError(f"{exc.filename or self.path}: {word_os_error(exc, self._directory)}")

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
            why = f"{fault.message}; kept as {self.moved_aside.name}"
            self._attempt(lambda db: self._on_new(db, why))

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
        hint = "see that its file system is there and can be written"
        if code in _FULL_CODES:
            # Only when something fails: every hook imports this module.
            from scratch_slurm.node.oswords import word_full

            full = word_full(self._directory)
            if full or code == sqlite3.SQLITE_FULL:
                return LedgerError(f"{self.path}: {full or 'no space left'}", hint="make room on its file system")
        return LedgerError(f"{self.path}: {exc}", hint=hint)


def _read_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _read_columns(db: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in db.execute(f"PRAGMA table_info({table})")}


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
