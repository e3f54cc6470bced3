from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from agent_reporter.options import Token
from agent_reporter.service import setup
from agent_reporter.service.windows import NAMESPACE, service, task_text

from .stubs import TOKEN

PYTHON = r"C:\Program Files\venv\Scripts\python.exe"
TOKEN_FILE = Path("token file")


def task(*command: str, user: str = r"HOST\me") -> ElementTree.Element:
    return ElementTree.fromstring(task_text(command, token=TOKEN_FILE, user=user).encode("utf-16"))


def text_at(element: ElementTree.Element, *names: str) -> str | None:
    return element.findtext("/".join(f"{{{NAMESPACE}}}{name}" for name in names))


def test_the_task_runs_the_command_from_boot_on_as_the_user_without_their_rights() -> None:
    read = task(PYTHON, "-m", "agent_reporter", "--name", "host-1", user=r"HOST\R&D <me>")
    assert text_at(read, "Actions", "Exec", "Command") == PYTHON
    assert text_at(read, "Actions", "Exec", "Arguments") == '-m agent_reporter --name host-1 --token-file "token file"'
    assert text_at(read, "Triggers", "BootTrigger", "Enabled") == "true"
    assert text_at(read, "Principals", "Principal", "UserId") == r"HOST\R&D <me>"
    assert text_at(read, "Principals", "Principal", "LogonType") == "S4U"
    assert text_at(read, "Principals", "Principal", "RunLevel") == "LeastPrivilege"
    assert text_at(read, "Settings", "ExecutionTimeLimit") == "PT0S"


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("two words", '"two words"'),
        ('say "hi"', r'"say \"hi\""'),
        ("C:\\a b\\", '"C:\\a b\\\\"'),
        ("a&b<c>|d", "a&b<c>|d"),
        ("", '""'),
        ("$HOME", "$HOME"),
    ],
)
def test_an_argument_is_quoted_as_windows_programs_read_it(word: str, quoted: str) -> None:
    assert text_at(task(PYTHON, word), "Actions", "Exec", "Arguments") == f'{quoted} --token-file "token file"'


@pytest.mark.parametrize("word", ["two\nlines", "nul\0", "%TEMP%", "100%", "$(Arg0)"])
def test_a_line_break_or_what_a_task_takes_for_a_variable_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"not allowed in|task would expand"):
        task(PYTHON, word)


def test_a_task_comes_and_goes(tmp_path: Path) -> None:
    environ = {"LOCALAPPDATA": str(tmp_path), "USERDOMAIN": "HOST", "USERNAME": "me"}
    this = service(environ, is_admin=True)
    calls: list[str] = []

    def run(words: object) -> None:
        calls.append(str(words))

    given = Token(TOKEN, "--token")
    assert setup.install(this, [PYTHON], given, confirm=None, run=run, sleep=lambda _: None) == 0
    assert this.definition.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff")
    assert this.definition.read_text("utf-16") == this.text([PYTHON])
    assert TOKEN not in this.text([PYTHON]) + " ".join(calls)
    assert this.token.read_text() == f"{TOKEN}\n"
    assert setup.uninstall(this, run=run, sleep=lambda _: None) == 0
    assert list(tmp_path.iterdir()) == []
    assert [each.split("'")[3] for each in calls] == ["/End", "/Create", "/Run", "/End", "/Delete"]


def test_without_an_administrators_rights_it_says_how_to_get_them() -> None:
    environ = {"LOCALAPPDATA": "x", "USERDOMAIN": "HOST", "USERNAME": "me"}
    assert "Run as administrator" in service(environ, is_admin=False).lacks
    with pytest.raises(ValueError, match="LOCALAPPDATA is not set"):
        service({})
