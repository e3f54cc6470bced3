"""The file with the keys: what is kept, who may read it, and what happens when it is damaged."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from ollama_balancer.core.access import Key, Limits, Right, hash_of
from ollama_balancer.core.priority import Priority
from ollama_balancer.storage import keys
from ollama_balancer.storage.keys import KeyFileError, KeyStore, UnknownKeyError
from ollama_balancer.storage.sqlite_file import DamagedError

ALICE = Key(
    "alice",
    frozenset((Right.INFER, Right.READ)),
    ("qwen3*", "nomic-embed-text"),
    Limits(60, 10_000, 1_000_000, 4),
    Priority.BATCH,
    created=100.0,
    expires=1e10,
    note="for the team",
)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "conf" / keys.FILE_NAME)


def test_a_key_comes_back_as_it_was_and_its_secret_is_nowhere(store: KeyStore) -> None:
    secret = store.add(ALICE)
    again = KeyStore(store.path)
    assert (again.get("alice"), again.list_keys()) == (ALICE, [ALICE])
    assert again.load().find(secret.encode(), 0.0) == ALICE
    for file in store.path.parent.iterdir():
        assert secret.encode() not in file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_file_there_are_no_keys_and_none_is_made(store: KeyStore) -> None:
    assert (store.load().names, store.list_keys(), store.load_changed()) == (set(), [], None)
    with pytest.raises(UnknownKeyError):
        store.get("alice")
    assert not store.path.parent.exists()


def test_changes_of_another_process_are_seen_and_own_ones_are_loaded(store: KeyStore) -> None:
    reader = KeyStore(store.path)
    assert reader.load_changed() is None
    store.add(ALICE)
    found = reader.load_changed()
    assert found is not None
    assert found.names == {"alice"}
    assert reader.load_changed() is None
    store.set("alice", disabled=True)
    assert reader.load_changed() is not None
    store.close()
    for file in list(store.path.parent.iterdir()):
        file.unlink()
    gone = reader.load_changed()
    assert gone is not None
    assert gone.names == set()


def test_a_rotated_key_has_two_secrets_for_a_while(store: KeyStore) -> None:
    old = store.add(ALICE)
    new = store.rotate("alice", 3600.0)
    keyring = store.load()
    assert keyring.find(new.encode(), 0.0) == keyring.find(old.encode(), 0.0) == ALICE
    assert keyring.find(old.encode(), 1e12) is None
    newest = store.rotate("alice", 0.0)
    assert store.load().find(old.encode(), 0.0) is None
    assert store.load().find(newest.encode(), 0.0) == ALICE


def test_keys_of_hosts_that_have_joined_close_no_door_until_they_can_do_more(store: KeyStore) -> None:
    first = store.admit_host("gpu-1", 100.0, again=False)
    keyring = store.load()
    key = keyring.find(first.encode(), 0.0)
    assert key is not None
    assert (key.name, key.agent, set(key.rights)) == ("host@gpu-1", "gpu-1", {Right.REPORT})
    assert (keyring.names, keyring.had_keys) == ({"host@gpu-1"}, False)
    with pytest.raises(ValueError, match="already"):
        store.admit_host("gpu-1", 100.0, again=False)
    store.set("host@gpu-1", disabled=True, expires=150.0)
    second = store.admit_host("gpu-1", 200.0, again=True)
    assert store.load().find(first.encode(), 1e12) is None
    assert store.load().find(second.encode(), 0.0) == key
    store.remove("host@gpu-1")
    assert not store.load().had_keys
    store.admit_host("gpu-1", 100.0, again=False)
    store.set("host@gpu-1", rights=frozenset((Right.REPORT, Right.INFER)))
    store.remove("host@gpu-1")
    assert store.load().had_keys


def test_a_key_that_happens_to_have_a_hosts_name_is_not_taken_over(store: KeyStore) -> None:
    store.add(Key("host@gpu-1"))
    with pytest.raises(ValueError, match="already"):
        store.admit_host("gpu-1", 100.0, again=True)


def test_a_file_from_before_hosts_joined_is_read(store: KeyStore) -> None:
    store.path.parent.mkdir()
    connection = sqlite3.connect(store.path)
    connection.executescript(f"{keys._MIGRATIONS[0]} PRAGMA user_version = 1;")
    row = keys._row(ALICE) | {"hash": hash_of(b"secret")}
    del row["agent"]
    connection.execute(f"INSERT INTO keys ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
    connection.commit()
    connection.close()
    assert store.load().find(b"secret", 0.0) == ALICE


def test_a_name_is_taken_once_and_a_removed_key_is_gone(store: KeyStore) -> None:
    secret = store.add(ALICE)
    with pytest.raises(ValueError, match="already"):
        store.add(ALICE)
    store.remove("alice")
    assert store.load().find(secret.encode(), 0.0) is None
    assert store.load().had_keys
    for call in (lambda: store.remove("alice"), lambda: store.rotate("alice", 0), lambda: store.set("alice")):
        with pytest.raises(UnknownKeyError):
            call()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "x" * 65},
        {"name": "-x"},
        {"rights": frozenset()},
        {"models": ("a b",)},
        {"models": ("",)},
        {"models": ("a,b",)},
        {"models": ("m",) * 101},
        {"limits": Limits(requests_per_minute=0)},
        {"limits": Limits(parallel=10**13)},
        {"expires": 1e15},
        {"note": "two\nlines"},
    ],
)
def test_what_is_out_of_range_is_refused_and_not_stored(store: KeyStore, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=":"):
        store.add(Key(**({"name": "k"} | fields)))  # type: ignore[arg-type]
    assert store.list_keys() == []


def damage_text(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def damage_row(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE keys SET rights = 'everything'")
    connection.close()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_text, damage_row, empty])
def test_a_damaged_file_is_said_and_set_aside_and_closes_the_door(store: KeyStore, damage: object) -> None:
    store.add(ALICE)
    store.close()
    assert callable(damage)
    damage(store.path)
    with pytest.raises(DamagedError, match="is damaged"):
        store.load()
    store.set_aside("it is damaged")
    assert len(list(store.path.parent.glob("*.damaged-*"))) >= 1
    keyring = KeyStore(store.path).load()
    assert (keyring.names, keyring.had_keys) == (set(), True)
    assert "it is damaged" in (keyring.problem or "")
    store.add(ALICE)
    assert store.load().problem is None


def test_a_file_of_a_newer_version_is_left_alone(store: KeyStore) -> None:
    store.add(ALICE)
    store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = store.path.read_bytes()
    with pytest.raises(KeyFileError, match="newer ollama-balancer") as raised:
        store.load()
    assert not isinstance(raised.value, DamagedError)
    assert store.path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
def test_a_link_is_not_followed_and_a_file_that_others_can_read_is_closed(store: KeyStore, tmp_path: Path) -> None:
    store.add(ALICE)
    store.close()
    store.path.chmod(0o644)
    KeyStore(store.path).load()
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    link = tmp_path / "link.db"
    link.symlink_to(store.path)
    with pytest.raises(KeyFileError, match="symbolic link"):
        KeyStore(link).load()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match=r"cannot be opened|cannot be read"):
        KeyStore(tmp_path / "file" / "keys.db").add(ALICE)


def test_only_hashes_are_kept(store: KeyStore) -> None:
    secret = store.add(ALICE)
    with sqlite3.connect(store.path) as connection:
        row = connection.execute("SELECT hash, replaced FROM keys").fetchone()
    connection.close()
    assert row == (hash_of(secret.encode()), None)


def test_a_change_that_was_made_is_one_also_where_the_log_cannot_be_taken_in(store: KeyStore) -> None:
    """A reader that holds an old state keeps SQLite from taking its log into the file."""
    store.add(ALICE)
    with sqlite3.connect(store.path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM keys").fetchall()
        store.set("alice", disabled=True)
        assert store.get("alice").disabled
    reader.close()
