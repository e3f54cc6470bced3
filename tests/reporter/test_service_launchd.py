from __future__ import annotations

import os
import plistlib
import sys
from pathlib import Path

import pytest

from agent_reporter.options import Token
from agent_reporter.service import setup
from agent_reporter.service.launchd import plist_text, service

from .stubs import TOKEN

HOSTILE = ["two words", "a&b<c>", "$HOME", "100%", 'say "hi"', "it's", "back\\slash", "]]>", "d\u00e9j\u00e0"]


def test_the_property_list_gives_every_word_as_it_was() -> None:
    token, log = Path("/a b/token"), Path("/a b/log")
    read = plistlib.loads(plist_text(["/opt/python", *HOSTILE], token=token, log=log).encode())
    assert read["ProgramArguments"] == ["/opt/python", *HOSTILE, "--token-file", str(token)]
    assert read["StandardErrorPath"] == str(log)
    assert read["RunAtLoad"] is True
    assert read["KeepAlive"] is True
    assert "UserName" not in read


@pytest.mark.parametrize("word", ["two\nlines", "nul\0"])
def test_a_line_break_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="not allowed in"):
        plist_text(["/opt/python", word], token=Path("/token"), log=Path("/log"))


def test_a_users_agent_is_in_their_library(tmp_path: Path) -> None:
    agent = service(uid=501, home=tmp_path / "me", environ={})
    library = tmp_path / "me" / "Library"
    assert agent.definition == library / "LaunchAgents" / "ollama-agent-reporter.plist"
    assert agent.token == library / "Application Support" / "ollama-agent-reporter" / "token"
    assert agent.owner is None
    words = [each.words for each in agent.start]
    assert words[0] == ("launchctl", "bootout", "gui/501/ollama-agent-reporter")
    assert words[-1] == ("launchctl", "bootstrap", "gui/501", str(agent.definition))


@pytest.mark.parametrize(
    ("environ", "owner"),
    [({"SUDO_USER": "groot"}, "groot"), ({"SUDO_USER": "root"}, "nobody"), ({}, "nobody")],
)
def test_a_daemon_runs_as_the_caller_of_sudo_and_never_as_root(
    tmp_path: Path, environ: dict[str, str], owner: str
) -> None:
    daemon = service(tmp_path, uid=0, home=tmp_path / "me", environ=environ)
    assert daemon.definition == tmp_path / "Library/LaunchDaemons/ollama-agent-reporter.plist"
    assert daemon.owner == daemon.reader == owner
    assert plistlib.loads(daemon.text(["/opt/python"]).encode())["UserName"] == owner
    assert daemon.start[-1].words[2] == "system"


@pytest.mark.skipif(sys.platform == "win32", reason="it has no users by number")
def test_an_agent_comes_and_goes_and_its_log_too(tmp_path: Path) -> None:
    agent = service(uid=os.getuid() or 501, home=tmp_path, environ={})
    calls: list[str] = []

    def run(words: object) -> None:
        calls.append(str(words))

    given = Token(TOKEN, "--token")
    assert setup.install(agent, ["/opt/python"], given, confirm=None, run=run, sleep=lambda _: None) == 0
    assert agent.token.read_text() == f"{TOKEN}\n"
    assert TOKEN not in agent.definition.read_text()
    agent.leftovers[0].parent.mkdir()
    agent.leftovers[0].write_text("reporting")
    assert setup.uninstall(agent, run=run, sleep=lambda _: None) == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not agent.token.parent.exists()
    assert len(calls) == 4
