"""Setting a service up and taking it away, in a folder that stands in for the system's root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent_reporter.options import Token, parse_options
from agent_reporter.service import setup, systemd
from agent_reporter.service.base import NAME, Call, Service, call, check_words, interpreter

from .stubs import ROOT, TOKEN

GIVEN = Token(TOKEN, "--token-file /some/where")
COMMAND = ["/opt/python", "-m", "agent_reporter", "--name", "host-1"]


class Tools:
    """Stands in for the system's tools: notes what is called, and answers with `problems` by the call's second word."""

    def __init__(self, **problems: str) -> None:
        self.problems = problems
        self.calls: list[str] = []
        self.slept: list[float] = []

    def run(self, words: Sequence[str]) -> str | None:
        self.calls.append(" ".join(words))
        return self.problems.get(words[1])


def install(service: Service, tools: Tools, *, answer: bool | None = True) -> int:
    return setup.install(service, COMMAND, GIVEN, confirm=lambda: answer, run=tools.run, sleep=tools.slept.append)


def uninstall(service: Service, tools: Tools) -> int:
    return setup.uninstall(service, run=tools.run, sleep=tools.slept.append)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def linux(root: Path, *, is_root: bool = True) -> Service:
    (root / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
    return systemd.service(root, is_root=is_root)


def test_an_agreed_service_is_shown_written_and_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service, tools = linux(tmp_path), Tools()
    assert install(service, tools) == 0
    shown = capsys.readouterr().out
    assert service.definition.read_text() in shown
    assert f"copied to {service.token}, which only\nroot can read" in shown
    assert "Installed and started. State and log: journalctl -u ollama-agent-reporter" in shown
    assert tools.calls == [str(each) for each in service.start]
    assert files(tmp_path) == [f"etc/{NAME}/token", f"etc/systemd/system/{NAME}.service"]


def test_the_token_is_in_a_file_that_only_its_user_reads_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service, tools = linux(tmp_path), Tools()
    before = os.umask(0)
    try:
        assert install(service, tools) == 0
    finally:
        os.umask(before)
    assert service.token.read_text() == f"{TOKEN}\n"
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err + service.definition.read_text() + " ".join(tools.calls)
    if os.name == "posix":
        assert service.token.stat().st_mode & 0o777 == 0o600
        assert service.token.parent.stat().st_mode & 0o777 == 0o755
        assert service.definition.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("answer", "said"), [(False, "Nothing was installed."), (None, "there is no terminal to ask on"), (None, "--yes")]
)
def test_without_an_agreement_the_text_is_shown_and_nothing_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bool | None, said: str
) -> None:
    service, tools = linux(tmp_path), Tools()
    assert install(service, tools, answer=answer) == 1
    shown = capsys.readouterr()
    assert "ExecStart=/opt/python -m agent_reporter --name host-1" in shown.out
    assert said in shown.out + shown.err
    assert files(tmp_path) == []
    assert tools.calls == []


def test_another_user_than_root_sees_the_text_and_is_sent_to_sudo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service, tools = linux(tmp_path, is_root=False), Tools()
    assert install(service, tools) == 1
    shown = capsys.readouterr()
    assert "ExecStart=" in shown.out
    assert "this needs root: run it with sudo" in shown.err
    assert files(tmp_path) == []
    service.definition.write_text("of another day")
    assert uninstall(service, tools) == 1
    assert "run it with sudo" in capsys.readouterr().err
    assert service.definition.exists()
    assert tools.calls == []


def test_installing_again_replaces_what_was_there(tmp_path: Path) -> None:
    service, tools = linux(tmp_path), Tools()
    assert install(service, tools) == 0
    first = files(tmp_path)
    service.token.write_text("old")
    service.definition.write_text("old")
    assert install(service, tools) == 0
    assert files(tmp_path) == first
    assert service.token.read_text() == f"{TOKEN}\n"
    assert service.definition.read_text() == service.text(COMMAND)


def test_uninstalling_stops_it_and_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = linux(tmp_path)
    assert install(service, Tools()) == 0
    tools = Tools()
    assert uninstall(service, tools) == 0
    assert files(tmp_path) == []
    assert not service.token.parent.exists()
    assert tools.calls == [
        f"systemctl disable --now {NAME}",
        "systemctl daemon-reload",
        f"systemctl reset-failed {NAME}",
    ]
    capsys.readouterr()
    tools = Tools()
    assert uninstall(service, tools) == 0
    assert capsys.readouterr().out == "Nothing is installed.\n"
    assert tools.calls == []


def test_uninstalling_keeps_a_strangers_file(tmp_path: Path) -> None:
    service = linux(tmp_path)
    assert install(service, Tools()) == 0
    (service.token.parent / "notes").write_text("mine")
    assert uninstall(service, Tools()) == 0
    assert files(tmp_path) == [f"etc/{NAME}/notes"]


def test_half_an_installation_is_taken_away_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = linux(tmp_path)
    assert install(service, Tools()) == 0
    service.definition.unlink()
    assert uninstall(service, Tools(disable="Unit file does not exist")) == 1
    assert "`systemctl disable --now ollama-agent-reporter` failed: Unit file" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_where_the_systems_tool_fails_the_files_stay_and_the_calls_to_make_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service, tools = linux(tmp_path), Tools(enable="there is no systemctl here")
    assert install(service, tools) == 1
    said = capsys.readouterr().err
    assert "`systemctl enable ollama-agent-reporter` failed: there is no systemctl here" in said
    assert f"    systemctl enable {NAME}\n    systemctl restart {NAME}\n" in said
    assert "daemon-reload" not in said
    assert len(files(tmp_path)) == 2


def test_a_service_that_does_not_stay_up_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = Tools(**{"is-active": "activating"})
    assert install(linux(tmp_path), tools) == 1
    assert sum(tools.slept) == 3
    said = capsys.readouterr()
    assert "`systemctl is-active ollama-agent-reporter` failed: activating" in said.err
    assert f"journalctl -u {NAME}" in said.err
    assert "Installed" not in said.out


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service, tools = linux(tmp_path), Tools()
    service.definition.parent.rmdir()
    service.definition.parent.write_text("a file where a folder is to be")
    assert install(service, tools) == 1
    assert f"can't write {service.definition.parent}" in capsys.readouterr().err
    assert tools.calls == []
    assert files(tmp_path) == [f"etc/{NAME}/token", "etc/systemd/system"]


def test_an_optional_call_may_fail_and_a_patient_one_is_tried_again() -> None:
    tools = Tools(a="no")
    assert setup._run(Call(("tool", "a"), pause=0.5, tries=3), tools.run, tools.slept.append) == "no"
    assert tools.calls == ["tool a"] * 3
    assert tools.slept == [0.5] * 3
    tools.problems = {}
    assert setup._run(Call(("tool", "a"), tries=3), tools.run, tools.slept.append) is None
    assert len(tools.calls) == 4


@pytest.mark.e2e
def test_what_a_tool_says_comes_back() -> None:
    assert call([sys.executable, "-c", "pass"]) is None
    assert call([sys.executable, "-c", "raise SystemExit('went wrong')"]) == "went wrong"
    assert call([sys.executable, "-c", "raise SystemExit(3)"]) == "exit code 3"
    assert call(["no-such-tool-at-all"]) == "no-such-tool-at-all is not available here"


def test_the_command_line_names_every_option_and_no_token() -> None:
    arguments = ["--balancer", "http://a:1", "--balancer", "https://[fd00::1]", "--token", TOKEN, "--name", "host[1]"]
    arguments += [
        "--ollama",
        ":11500",
        "--advertise",
        "http://10.0.0.9:11434",
        "--interval",
        "2.5",
        "--install",
        "--discover",
    ]
    options = parse_options(arguments, {})
    words = setup.command_line(options)
    assert words[:3] == [interpreter(), "-m", "agent_reporter"]
    assert Path(words[0]).is_absolute()
    assert TOKEN not in words
    again = parse_options(words[3:], {"OLLAMA_BALANCER_TOKEN": TOKEN})
    for name in ("balancers", "name", "ollama", "advertise", "interval", "discover"):
        assert getattr(again, name) == getattr(options, name)


@pytest.mark.parametrize("word", ["two\nlines", "nul\0", "\x1b[2J", "\u202e", "undecodable\udc80"])
def test_a_word_with_a_line_break_or_the_like_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="contains characters that are not allowed in a service definition"):
        check_words(["fine", word])


def test_yes_goes_with_install_only_and_uninstall_needs_no_token() -> None:
    with pytest.raises(ValueError, match="--yes goes with --install"):
        parse_options(["--uninstall", "--yes"], {})
    assert parse_options(["--install", "--yes"], {}).yes
    assert parse_options(["--uninstall"], {"OLLAMA_BALANCER_TOKEN": "not a token"}).uninstall


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize(
    ("typed", "answer"),
    [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("yellow\n", False), ("\x04", False)],
)
def test_only_y_or_yes_at_a_terminal_is_an_agreement(typed: str, answer: bool) -> None:
    code = "from agent_reporter.service.setup import ask; print('answer:', ask())"
    theirs, ours = os.openpty()
    try:
        os.write(theirs, typed.encode())
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=ours, capture_output=True, text=True, cwd=ROOT, timeout=60
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert "Install this? [y/N]" in done.stdout
    assert f"answer: {answer}\n" in done.stdout


@pytest.mark.e2e
def test_the_program_without_a_terminal_shows_the_service_and_does_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent_reporter", "--install", "--balancer", "http://192.0.2.1:8080"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OLLAMA_BALANCER_TOKEN": TOKEN, "HOME": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 1
    assert "http://192.0.2.1:8080" in done.stdout
    assert "$OLLAMA_BALANCER_TOKEN" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert "add --yes" in done.stderr or "run it " in done.stderr
    assert files(tmp_path) == []


@pytest.mark.e2e
def test_the_program_needs_a_token_to_install(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
    done = subprocess.run(
        [sys.executable, "-m", "agent_reporter", "--install", "--balancer", "http://192.0.2.1:8080"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=clean | {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 2
    assert "no token (" in done.stderr
    assert done.stdout == ""
