"""Keeps client keys in SQLite: of secrets only hashes.

The command line and the balancer share the file. A change is one transaction, and a balancer sees those of others by
SQLite's `data_version`, which reads no table.
"""

import contextlib
import json
import os
import re
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ..core.access import Key, Keyring, Limits, Right, Secret, hash_of, new_secret
from ..core.priority import Priority

FILE_NAME = "ollama-balancer-keys.db"

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")

MAX_KEYS = 100_000
NOTE = re.compile(r"[^\x00-\x1f\x7f-\x9f]{0,1000}")

MODELS = re.compile(r"[A-Za-z0-9._:/@*?-]{1,512}")
"""A pattern of models' names."""

MAX_PATTERNS = 100

MAX_LIMIT = 10**12

DEFAULT_OVERLAP = 86_400.0
"""Seconds for which the old secret of a rotated key stays valid."""

MAX_OVERLAP = 366 * 86_400.0

BUSY_SECONDS = 5.0
"""Seconds that a change waits for another one's end."""

SCHEMA = 1
"""The version in `user_version`. `_MIGRATIONS[n]` turns version n into the next one."""

_MIGRATIONS = (
    """
    CREATE TABLE keys (
        name TEXT PRIMARY KEY NOT NULL,
        hash BLOB NOT NULL UNIQUE,
        replaced BLOB UNIQUE,
        replaced_until REAL,
        rights TEXT NOT NULL,
        models TEXT NOT NULL,
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        tokens_per_day INTEGER,
        parallel INTEGER,
        priority TEXT NOT NULL,
        created REAL NOT NULL,
        expires REAL,
        disabled INTEGER NOT NULL,
        note TEXT NOT NULL
    );
    CREATE TABLE state (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL);
    """,
)

_COLUMNS = (
    "name",
    "rights",
    "models",
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_day",
    "parallel",
    "priority",
    "created",
    "expires",
    "disabled",
    "note",
)

HAD_KEYS = "had_keys"
"""A state: there was a key once, so that removing the last one opens nothing."""

DAMAGED = "damaged"
"""A state: the file before this one could not be read; its value says why."""


class KeyFileError(Exception):
    """The file cannot be used; the message says why and what to do."""


class UnknownKeyError(Exception):
    """No key has that name."""


class KeyStore:
    """The file with the keys. Its methods may be called from any thread, and raise KeyFileError; they read and write
    the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of the open file."""
        self._version: int | None = None
        """The `data_version` that was read last."""

    def close(self) -> None:
        with self._lock:
            self._close()

    def load(self) -> Keyring:
        """All keys. Without a file there are none, and none is made."""
        with self._lock:
            if not self._exists():
                self._close()
                return Keyring()
            with self._errors():
                connection = self._open()
                self._version = self._data_version(connection)
                return _read(connection)

    def load_changed(self) -> Keyring | None:
        """All keys if they may have changed since they were loaded; else None."""
        with self._lock:
            exists = self._exists()
            if self._connection is None and not exists:
                return None
            unchanged = False
            if exists and self._connection is not None and self._file == _identity(self.path):
                with self._errors():
                    unchanged = self._data_version(self._connection) == self._version
        return None if unchanged else self.load()

    def add(self, key: Key) -> str:
        """Store a new key and return its secret. ValueError: the name is taken or a value is out of range."""
        check(key)
        secret = new_secret()
        row = {**_row(key), "hash": hash_of(secret.encode())}
        with self._change() as connection:
            (count,) = connection.execute("SELECT count(*) FROM keys").fetchone()
            if count >= MAX_KEYS:
                raise ValueError(f"there are {count} keys already, which is the most: remove some")
            names = ", ".join(row)
            try:
                connection.execute(f"INSERT INTO keys ({names}) VALUES ({', '.join(f':{each}' for each in row)})", row)  # noqa: S608 - our own names
            except sqlite3.IntegrityError:
                raise ValueError(f"there is a key called {key.name!r} already") from None
            connection.execute("INSERT OR REPLACE INTO state VALUES (?, '1')", (HAD_KEYS,))
            connection.execute("DELETE FROM state WHERE name = ?", (DAMAGED,))
        return secret

    def get(self, name: str) -> Key:
        """UnknownKeyError: there is no such key."""
        if not self._exists():
            raise UnknownKeyError(name)
        with self._lock, self._errors():
            return _find(self._open(), name)

    def keys(self) -> list[Key]:
        """All keys by name."""
        if not self._exists():
            return []
        with self._lock, self._errors():
            rows = self._open().execute(f"SELECT {', '.join(_COLUMNS)} FROM keys ORDER BY name")  # noqa: S608
            return [_key(row) for row in rows]

    def set(self, name: str, **changes: object) -> Key:
        """Change fields of a key. UnknownKeyError; ValueError: a value is out of range."""
        self.get(name)
        with self._change() as connection:
            key = replace(_find(connection, name), **changes)  # type: ignore[arg-type]
            check(key)
            row = _row(key)
            columns = ", ".join(f"{each} = :{each}" for each in row)
            connection.execute(f"UPDATE keys SET {columns} WHERE name = :name", row)  # noqa: S608
        return key

    def rotate(self, name: str, overlap: float) -> str:
        """Give the key a new secret and return it; the old one is valid for `overlap` more seconds."""
        self.get(name)
        secret = new_secret()
        with self._change() as connection:
            _find(connection, name)
            connection.execute(
                "UPDATE keys SET replaced = hash, replaced_until = ?, hash = ? WHERE name = ?",
                (time.time() + overlap, hash_of(secret.encode()), name),
            )
        return secret

    def remove(self, name: str) -> None:
        self.get(name)
        with self._change() as connection:
            _find(connection, name)
            connection.execute("DELETE FROM keys WHERE name = ?", (name,))

    def set_aside(self, reason: str) -> None:
        """Rename the file and begin a new one that says so: until a key is added, nobody gets in."""
        with self._lock:
            self._close()
            target = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
            try:
                for suffix in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(f"{self.path}{suffix}", f"{target}{suffix}")
            except OSError as e:
                raise KeyFileError(f"the damaged key file {self.path} cannot be renamed ({e.strerror or e})") from e
        with self._change() as connection:
            advice = f"{reason}; it was renamed to {target.name}; add keys anew with 'ollama-balancer keys add'"
            connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (DAMAGED, advice))
            connection.execute("INSERT OR REPLACE INTO state VALUES (?, '1')", (HAD_KEYS,))

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A transaction; the file is made if need be."""
        with self._lock, self._errors():
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _exists(self) -> bool:
        try:
            return stat.S_ISREG(os.lstat(self.path).st_mode) or self._refuse()
        except FileNotFoundError:
            return False
        except OSError as e:
            raise KeyFileError(f"the key file {self.path} cannot be read ({e.strerror or e})") from e

    def _refuse(self) -> bool:
        raise KeyFileError(f"the key file {self.path} is a symbolic link or no file, which is not followed")

    def _open(self) -> sqlite3.Connection:
        """The connection to the file that is there now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._exists()
        if self._connection is not None and self._file == _identity(self.path):
            return self._connection
        self._close()
        # SQLite gives its files beside it the mode of this one.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600))
        if os.name == "posix" and stat.S_IMODE(os.stat(self.path).st_mode) & 0o077:
            os.chmod(self.path, 0o600)
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA trusted_schema = OFF")
            _migrate(connection, self.path)
        except BaseException:
            connection.close()
            raise
        self._connection, self._file = connection, _identity(self.path)
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._file = self._version = None

    def _data_version(self, connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA data_version").fetchone()[0])

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as e:
            self._close()
            raise KeyFileError(
                f"the key file {self.path} cannot be read or written ({e}); check its rights and the disk"
            ) from e
        except (sqlite3.DatabaseError, DamagedError) as e:
            self._close()
            raise DamagedError(f"the key file {self.path} is damaged ({e})") from e
        except OSError as e:
            self._close()
            raise KeyFileError(f"the key file {self.path} cannot be opened ({e.strerror or e})") from e


class DamagedError(KeyFileError):
    """The file's content is not what was written."""


def check(key: Key) -> None:
    """ValueError: a value is out of range; it says which and what is accepted."""
    if not NAME.fullmatch(key.name):
        raise ValueError("name: 1 to 64 letters, digits and . _ @ -, beginning and ending with a letter or digit")
    if not key.rights:
        raise ValueError(f"rights: at least one of {', '.join(Right)}")
    if len(key.models) > MAX_PATTERNS or not all(MODELS.fullmatch(each) for each in key.models):
        raise ValueError(f"models: at most {MAX_PATTERNS} patterns of letters, digits and . _ : / @ - with * and ?")
    for name in Limits.__slots__:
        value = getattr(key.limits, name)
        if value is not None and not 1 <= value <= MAX_LIMIT:
            raise ValueError(f"{name}: a whole number from 1 to {MAX_LIMIT}")
    if not NOTE.fullmatch(key.note):
        raise ValueError("note: one line of at most 1000 characters")


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise KeyFileError(
            f"the key file {path} was written by a newer ollama-balancer (version {version} of the file, this one "
            f"reads up to {SCHEMA}): update ollama-balancer"
        )
    for number in range(version, SCHEMA):
        script = f"BEGIN IMMEDIATE; {_MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
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


def _read(connection: sqlite3.Connection) -> Keyring:
    columns = ", ".join(_COLUMNS)
    rows = connection.execute(f"SELECT {columns}, hash, replaced, replaced_until FROM keys")  # noqa: S608
    secrets = []
    for row in rows:
        key = _key(row[: len(_COLUMNS)])
        current, replaced, until = row[len(_COLUMNS) :]
        secrets.append(Secret(current, key))
        if replaced is not None:
            secrets.append(Secret(replaced, key, until))
    state = dict(connection.execute("SELECT name, value FROM state").fetchall())
    return Keyring(secrets, problem=state.get(DAMAGED), had_keys=HAD_KEYS in state)


def _find(connection: sqlite3.Connection, name: str) -> Key:
    row = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM keys WHERE name = ?", (name,)).fetchone()  # noqa: S608
    if row is None:
        raise UnknownKeyError(name)
    return _key(row)


def _row(key: Key) -> dict[str, object]:
    return {
        "name": key.name,
        "rights": ",".join(sorted(key.rights)),
        "models": json.dumps(key.models),
        **{name: getattr(key.limits, name) for name in Limits.__slots__},
        "priority": key.priority.label,
        "created": key.created,
        "expires": key.expires,
        "disabled": int(key.disabled),
        "note": key.note,
    }


def _key(row: tuple[object, ...]) -> Key:
    """DamagedError: a value is not one that is written."""
    fields = dict(zip(_COLUMNS, row, strict=True))
    try:
        key = Key(
            name=str(fields["name"]),
            rights=frozenset(map(Right, str(fields["rights"]).split(","))),
            models=tuple(map(str, json.loads(str(fields["models"])))),
            limits=Limits(**{name: fields[name] for name in Limits.__slots__}),  # type: ignore[arg-type]
            priority=Priority.parse(str(fields["priority"])),
            created=float(fields["created"]),  # type: ignore[arg-type]
            expires=None if fields["expires"] is None else float(fields["expires"]),  # type: ignore[arg-type]
            disabled=bool(fields["disabled"]),
            note=str(fields["note"]),
        )
        check(key)
    except (TypeError, ValueError) as e:
        raise DamagedError(f"key {fields['name']!r}: {e}") from e
    return key
