"""Files of SQLite in the balancer's folder: mode 0600, WAL, a versioned schema, and no links to others."""

import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from .files import give_to_owner

BUSY_SECONDS = 5.0
"""Seconds that a change waits for another one's end."""


class SqliteFileError(Exception):
    """The file cannot be used; the message says why and what to do."""


class DamagedError(SqliteFileError):
    """The file's content is not what was written."""


class SqliteFile:
    """One file, for `what` it is called in messages. `migrations[n]` turns version n of the schema into the next one.

    Its methods may be called from any thread; they read and write the disk and raise SqliteFileError.
    """

    def __init__(self, path: Path, what: str, migrations: Sequence[str]) -> None:
        self.path = path
        self._name = f"the {what} {path}"
        self._migrations = migrations
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of the open file."""

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = self._file = None

    def exists(self) -> bool:
        try:
            if stat.S_ISREG(os.lstat(self.path).st_mode):
                return True
        except FileNotFoundError:
            return False
        except OSError as e:
            raise SqliteFileError(f"{self._name} cannot be read ({e.strerror or e})") from e
        raise SqliteFileError(f"{self._name} is a symbolic link or no file, which is not followed")

    @contextlib.contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """The connection to the file that is there now; the file is made if need be."""
        with self._lock:
            try:
                yield self._open()
            except sqlite3.OperationalError as e:
                # On a full disk what is open can be read on, and what is not may not even open.
                if getattr(e, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
                    self.close()
                raise SqliteFileError(
                    f"{self._name} cannot be read or written ({e}); check its rights and the disk"
                ) from e
            except (sqlite3.DatabaseError, DamagedError) as e:
                self.close()
                raise DamagedError(f"{self._name} is damaged ({e})") from e
            except OSError as e:
                self.close()
                raise SqliteFileError(f"{self._name} cannot be opened ({e.strerror or e})") from e

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A transaction; the file is made if need be."""
        with self.use() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # A full disk has rolled it back already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            # A copy of the file alone then has the change, too. It is made, whatever becomes of this.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def data_version(self) -> int | None:
        """Another number once somebody else has changed the file; None if it is not open, or another file by now."""
        with self._lock:
            if self._connection is None or not self.exists() or self._file != _identity(self.path):
                return None
            with self.use() as connection:
                return int(connection.execute("PRAGMA data_version").fetchone()[0])

    def set_aside(self, begin: Callable[[sqlite3.Connection, str], object] = lambda connection, name: None) -> str:
        """Rename the file, and return its new name. `begin` writes into the file that takes its place, which is whole
        before it does.
        """
        with self._lock:
            self.close()
            target = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
            try:
                fresh = self._new(lambda connection: begin(connection, target.name))
                for suffix in ("-wal", "-shm"):  # they would be read into the new file
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(f"{self.path}{suffix}", f"{target}{suffix}")
                shutil.copyfile(self.path, target)
                os.chmod(target, 0o600)
                os.replace(fresh, self.path)
            except (OSError, sqlite3.Error) as e:
                raise SqliteFileError(f"{self._name} is damaged and cannot be replaced ({e})") from e
            return target.name

    def _new(self, begin: Callable[[sqlite3.Connection], object]) -> str:
        """A new file beside it, whole; its name."""
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)  # mkstemp gives mode 0600
        os.close(handle)
        try:
            give_to_owner(name, self.path.parent)
            with closing(_connect(name)) as connection:
                self._migrate(connection)
                begin(connection)
        except BaseException:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    os.unlink(name + suffix)
            raise
        return name

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.exists()
        if self._connection is not None and self._file == _identity(self.path):
            return self._connection
        self.close()
        if not self.exists():
            # It comes whole, so that an empty one is known to be damaged. Who is first makes it.
            fresh = self._new(lambda connection: None)
            try:
                os.link(fresh, self.path)
            except FileExistsError:
                pass
            except (OSError, NotImplementedError):
                os.rename(fresh, self.path)  # a file system without hard links
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fresh)
        elif os.stat(self.path).st_size == 0:
            raise DamagedError("it is empty")
        # SQLite gives its files beside it the mode of this one.
        os.close(os.open(self.path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)))
        if os.name == "posix" and stat.S_IMODE(os.stat(self.path).st_mode) & 0o077:
            os.chmod(self.path, 0o600)
        connection = _connect(self.path)
        try:
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._file = connection, _identity(self.path)
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        newest = len(self._migrations)
        if version > newest:
            raise SqliteFileError(
                f"{self._name} was written by a newer ollama-balancer (version {version} of the file, this one reads "
                f"up to {newest}): update ollama-balancer"
            )
        for number in range(version, newest):
            script = f"BEGIN IMMEDIATE; {self._migrations[number]} PRAGMA user_version = {number + 1}; COMMIT;"
            try:
                connection.executescript(script)
            except sqlite3.OperationalError:
                # Another process has just done the same.
                with contextlib.suppress(sqlite3.OperationalError):
                    connection.execute("ROLLBACK")
                if connection.execute("PRAGMA user_version").fetchone()[0] <= number:
                    raise
        with closing(connection.execute("PRAGMA quick_check(1)")) as result:
            found = result.fetchone()[0]
        if found != "ok":
            raise DamagedError(str(found))


def _connect(path: str | Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
