"""`ollama-balancer keys`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ollama_balancer.cli.main import main
from ollama_balancer.core.access import SECRET, Right
from ollama_balancer.core.priority import Priority
from ollama_balancer.storage.keys import FILE_NAME, KeyStore


class Command:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.store = KeyStore(folder / FILE_NAME)

    def __call__(self, *words: str) -> tuple[str, str]:
        self.capsys.readouterr()
        main(["keys", *words, "--confdir", str(self.folder)])
        return self.capsys.readouterr()

    def refused(self, *words: str) -> str:
        with pytest.raises(SystemExit) as raised:
            self(*words)
        code = raised.value.code
        return f"{code} {self.capsys.readouterr().err}"


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def test_a_key_is_printed_alone_so_that_it_can_be_piped(command: Command) -> None:
    printed, said = command("add", "alice")
    assert SECRET.fullmatch(printed.strip().encode())
    assert "cannot be seen again" in said
    assert "first one" in said
    assert "first one" not in command("add", "bob")[1]


def test_all_settings_can_be_given_changed_and_taken_away(command: Command) -> None:
    command(
        "add", "alice", "--rights", "infer,manage", "--models", "qwen3*, nomic-*", "--rpm", "60", "--tpm", "1000",
        "--tokens-per-day", "5000", "--parallel", "2", "--priority", "batch", "--expires", "90d", "--note", "x",
    )  # fmt: skip
    key = command.store.get("alice")
    assert (set(key.rights), key.models) == ({Right.INFER, Right.MANAGE}, ("qwen3*", "nomic-*"))
    limits = key.limits
    assert (limits.requests_per_minute, limits.tokens_per_minute, limits.tokens_per_day) == (60, 1000, 5000)
    assert (limits.parallel, key.priority, key.note) == (2, Priority.BATCH, "x")
    assert key.expires == pytest.approx(key.created + 90 * 86_400, abs=60)
    command("set", "alice", "--rpm", "", "--expires", "never", "--models", "")
    changed = command.store.get("alice")
    assert (changed.limits.requests_per_minute, changed.expires, changed.models) == (None, None, ())
    assert (changed.limits.tokens_per_minute, changed.rights) == (1000, key.rights)
    command("set", "alice", "--expires", "2030-01-31")
    assert "2030-01-31 00:00 UTC" in command("show", "alice")[0]


def test_no_secret_is_shown_twice(command: Command) -> None:
    secret = command("add", "alice")[0].strip()
    for words in (("list",), ("list", "--json"), ("show", "alice"), ("show", "alice", "--json")):
        printed, _ = command(*words)
        assert "alice" in printed
        assert secret not in printed
    rotated = command("rotate", "alice", "--overlap", "12h")[0].strip()
    assert rotated != secret
    assert {key["name"]: key["state"] for key in json.loads(command("list", "--json")[0])} == {"alice": "valid"}


def test_keys_are_disabled_enabled_and_removed(command: Command) -> None:
    command("add", "alice")
    command("disable", "alice")
    assert "disabled" in command("list")[0]
    command("enable", "alice")
    assert "disabled" not in command("list")[0]
    assert "no key left" in command("remove", "alice")[1]
    assert "no keys" in command("list")[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "nobody"), "no key is called 'nobody'"),
        (("add", "a b"), "name:"),
        (("add", "a", "--rights", "all"), "infer"),
        (("add", "a", "--rpm", "0"), "whole number"),
        (("add", "a", "--rpm", "²"), "whole number"),
        (("add", "a", "--expires", "soon"), "90d"),
        (("add", "a", "--priority", "first"), "interactive"),
        (("rotate", "a", "--overlap", "1"), "no key is called"),
    ],
)
def test_what_is_wrong_is_said(command: Command, words: tuple[str, ...], says: str) -> None:
    assert says in command.refused(*words)


def test_a_damaged_file_is_said_in_a_line(command: Command) -> None:
    (command.folder / FILE_NAME).write_bytes(b"no database" * 1000)
    assert "is damaged" in command.refused("list")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_what_root_adds_belongs_to_the_balancers_user(command: Command) -> None:
    os.chown(command.folder, 12345, 12345)
    command("add", "alice")
    command("add", "bob")
    files = list(command.folder.iterdir())
    assert command.folder / FILE_NAME in files
    assert {(path.stat().st_uid, path.stat().st_gid) for path in files} == {(12345, 12345)}


def test_only_the_help_of_add_speaks_of_defaults(command: Command) -> None:
    def told(action: str) -> str:
        with pytest.raises(SystemExit):
            command(action, "--help")
        return " ".join(command.capsys.readouterr().out.split())

    assert "requests a minute (no limit)" in told("add")
    assert "requests a minute --tpm" in told("set")
