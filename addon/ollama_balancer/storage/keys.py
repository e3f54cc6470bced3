"""Keeps client keys in SQLite: of secrets only hashes.

The command line and the balancer share the file. A change is one transaction, and a balancer sees those of others by
SQLite's `data_version`, which reads no table.
"""

import json
import re
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

from ..core.access import HOSTS_RIGHTS, Key, Keyring, Limits, Right, Secret, hash_of, new_secret
from ..core.priority import Priority
from .sqlite_file import DamagedError, SqliteFile, SqliteFileError

FILE_NAME = "ollama-balancer-keys.db"

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")

HOST_KEY = "host@"
"""How the names of joined hosts' keys begin; the agent's name follows."""

HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,57}[A-Za-z0-9])?")
"""The name of a host that joins: with HOST_KEY before it, one of a key."""

MAX_KEYS = 100_000
NOTE = re.compile(r"[^\x00-\x1f\x7f-\x9f]{0,1000}")

MODELS = re.compile(r"[A-Za-z0-9._:/@*?-]{1,512}")
"""A pattern of models' names."""

MAX_PATTERNS = 100

MAX_TIME = 253_370_764_800.0
"""Seconds since 1970: the beginning of the year 9999."""

MAX_LIMIT = 10**12

DEFAULT_OVERLAP = 86_400.0
"""Seconds for which the old secret of a rotated key stays valid."""

MAX_OVERLAP = 366 * 86_400.0

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
    "ALTER TABLE keys ADD COLUMN agent TEXT;",
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
    "agent",
)

HAD_KEYS = "had_keys"
"""A state: there was a key once, other than those of joined hosts, so that removing the last one opens nothing."""

DAMAGED = "damaged"
"""A state: the file before this one could not be read; its value says why."""

KeyFileError = SqliteFileError
"""The file cannot be used; the message says why and what to do."""


class UnknownKeyError(Exception):
    """No key has that name."""


class KeyExistsError(ValueError):
    """A key of that name exists."""


class KeyStore:
    """The file with the keys. Its methods may be called from any thread, and raise KeyFileError; they read and write
    the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SqliteFile(path, "key file", _MIGRATIONS)
        self._version: int | None = None
        """The `data_version` that was read last."""

    def close(self) -> None:
        self._file.close()

    def load(self) -> Keyring:
        """All keys. Without a file there are none, and none is made."""
        if not self._file.exists():
            self.close()
            self._version = None
            return Keyring()
        with self._file.use() as connection:
            self._version = self._file.data_version()
            return _read(connection)

    def load_changed(self) -> Keyring | None:
        """All keys if they may have changed since they were loaded; else None."""
        version = self._file.data_version()
        if version is None and self._version is None and not self._file.exists():
            return None
        return None if version is not None and version == self._version else self.load()

    def add(self, key: Key) -> str:
        """Store a new key and return its secret. ValueError: the name is taken or a value is out of range."""
        check(key)
        secret = new_secret()
        row = {**_row(key), "hash": hash_of(secret.encode())}
        with self._file.change() as connection:
            (count,) = connection.execute("SELECT count(*) FROM keys").fetchone()
            if count >= MAX_KEYS:
                raise ValueError(f"there are {count} keys already, which is the most: remove some")
            names = ", ".join(row)
            try:
                connection.execute(f"INSERT INTO keys ({names}) VALUES ({', '.join(f':{each}' for each in row)})", row)  # noqa: S608 - our own names
            except sqlite3.IntegrityError:
                raise KeyExistsError(f"there is a key called {key.name!r} already") from None
            _close_door(connection, key)
            connection.execute("DELETE FROM state WHERE name = ?", (DAMAGED,))
        return secret

    def get(self, name: str) -> Key:
        """UnknownKeyError: there is no such key."""
        if not self._file.exists():
            raise UnknownKeyError(name)
        with self._file.use() as connection:
            return _find(connection, name)

    def list_keys(self) -> list[Key]:
        """All keys by name."""
        if not self._file.exists():
            return []
        with self._file.use() as connection:
            rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM keys ORDER BY name")  # noqa: S608
            return [_key(row) for row in rows]

    def set(self, name: str, **changes: object) -> Key:
        """Change fields of a key. UnknownKeyError; ValueError: a value is out of range."""
        self.get(name)
        with self._file.change() as connection:
            key = replace(_find(connection, name), **changes)  # type: ignore[arg-type]
            check(key)
            row = _row(key)
            columns = ", ".join(f"{each} = :{each}" for each in row)
            connection.execute(f"UPDATE keys SET {columns} WHERE name = :name", row)  # noqa: S608
            _close_door(connection, key)
        return key

    def admit_host(self, agent: str, created: float, *, again: bool) -> str:
        """The secret of a key by which a host reports as that agent, and does nothing else. `again`: also if it has
        one, whose secret is then replaced at once. KeyExistsError; ValueError: the name does not fit.
        """
        key = Key(f"{HOST_KEY}{agent}", HOSTS_RIGHTS, created=created, agent=agent)
        try:
            return self.add(key)
        except KeyExistsError:
            known = self.get(key.name)
            if not again or known.agent != agent:
                raise
        expired = known.expires is not None and known.expires <= created
        self.set(key.name, disabled=False, expires=None if expired else known.expires)
        return self.rotate(key.name, 0.0)

    def rotate(self, name: str, overlap: float) -> str:
        """Give the key a new secret and return it; the old one is valid for `overlap` more seconds."""
        self.get(name)
        secret = new_secret()
        with self._file.change() as connection:
            _find(connection, name)
            connection.execute(
                "UPDATE keys SET replaced = hash, replaced_until = ?, hash = ? WHERE name = ?",
                (time.time() + overlap, hash_of(secret.encode()), name),
            )
        return secret

    def remove(self, name: str) -> None:
        self.get(name)
        with self._file.change() as connection:
            _find(connection, name)
            connection.execute("DELETE FROM keys WHERE name = ?", (name,))

    def set_aside(self, reason: str) -> None:
        """Rename the file and begin a new one that says so: until a key is added, nobody gets in."""

        def begin(connection: sqlite3.Connection, name: str) -> None:
            advice = f"{reason}; it was renamed to {name}; add keys anew with 'ollama-balancer keys add'"
            connection.execute("INSERT INTO state VALUES (?, ?)", (DAMAGED, advice))
            connection.execute("INSERT INTO state VALUES (?, '1')", (HAD_KEYS,))

        self._file.set_aside(begin)


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
    if key.expires is not None and not 0 <= key.expires <= MAX_TIME:
        raise ValueError("expires: a time before the year 9999")
    if key.agent is not None and not HOST_NAME.fullmatch(key.agent):
        raise ValueError("agent: 1 to 59 letters, digits and . _ -, beginning and ending with a letter or digit")
    if not NOTE.fullmatch(key.note):
        raise ValueError("note: one line of at most 1000 characters")


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


def _close_door(connection: sqlite3.Connection, key: Key) -> None:
    if not key.is_hosts_own:
        connection.execute("INSERT OR REPLACE INTO state VALUES (?, '1')", (HAD_KEYS,))


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
        "agent": key.agent,
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
            agent=None if fields["agent"] is None else str(fields["agent"]),
        )
        check(key)
    except (TypeError, ValueError) as e:
        raise DamagedError(f"key {fields['name']!r}: {e}") from e
    return key
