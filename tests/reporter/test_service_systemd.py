from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent_reporter.service.base import NAME
from agent_reporter.service.systemd import in_homes, links, quoted, service, unit_text

TOKEN_FILE = Path("/etc/ollama-agent-reporter/token")
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd is not here")


def verified(text: str, folder: Path) -> str:
    """What systemd says of a unit; nothing where all is well. It takes some mistakes for warnings, and exits with 0."""
    assert ANALYZE is not None
    path = folder / f"{NAME}.service"
    path.write_text(text)
    done = subprocess.run([ANALYZE, "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agent_reporter", *arguments]


def test_the_unit_runs_the_command_with_the_token_as_a_credential() -> None:
    lines = unit_text(["/opt/python", "-m", "agent_reporter"], token=TOKEN_FILE).splitlines()
    assert "ExecStart=/opt/python -m agent_reporter --token-file ${CREDENTIALS_DIRECTORY}/token" in lines
    assert f"LoadCredential=token:{TOKEN_FILE}" in lines
    assert "ProtectHome=yes" in lines
    for line in ("DynamicUser=yes", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict"):
        assert line in lines


@pytest.mark.e2e
@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    assert verified(unit_text(command("--name", "host-1"), token=TOKEN_FILE), tmp_path) == ""
    of_homes = unit_text(command(), token=TOKEN_FILE, folders=[Path("/root/a b"), Path("/home/c")])
    assert verified(of_homes, tmp_path) == ""


@pytest.mark.e2e
@needs_systemd
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Restart=always", "Restart=alwayss"),
        ("MemoryMax=256M", "MemoryMaximum=256M"),
        ("SystemCallFilter=@system-service", "SystemCallFilter=@no-such-group"),
        (f"ExecStart={sys.executable}", "ExecStart=/no/such/program"),
        ("[Install]", "[Instal]"),
    ],
)
def test_systemd_refuses_a_broken_unit(tmp_path: Path, right: str, wrong: str) -> None:
    text = unit_text(command(), token=TOKEN_FILE)
    assert right in text
    assert verified(text.replace(right, wrong), tmp_path) != ""


@pytest.mark.e2e
@needs_systemd
def test_systemd_rates_the_sandbox_as_safe(tmp_path: Path) -> None:
    assert ANALYZE is not None
    path = tmp_path / f"{NAME}.service"
    path.write_text(unit_text(command(), token=TOKEN_FILE))
    words = [ANALYZE, "security", "--offline=true", "--no-pager", "--threshold=25", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd rates running units only")
    assert done.returncode == 0, done.stdout
    path.write_text("[Service]\nExecStart=/bin/true\n")
    assert subprocess.run(words, capture_output=True, timeout=60).returncode != 0


@pytest.mark.e2e
@needs_systemd
@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "100%h",
        "$HOME",
        "${HOME}",
        "a;b",
        "d\u00e9j\u00e0",
        "#c",
        "-@!",
    ],
)
def test_systemd_finds_a_program_whatever_its_path_holds(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert verified(unit_text([str(program)], token=TOKEN_FILE), tmp_path) == ""
    program.unlink()
    assert "is not executable" in verified(unit_text([str(program)], token=TOKEN_FILE), tmp_path)


@pytest.mark.parametrize("character", ['"', "'", "\\"])
def test_a_program_that_systemd_would_not_run_is_refused(character: str) -> None:
    with pytest.raises(ValueError, match="systemd runs no program whose path has a quote or a backslash"):
        unit_text([f"/opt/a{character}b"], token=TOKEN_FILE)


@pytest.mark.parametrize(
    ("word", "unit"),
    [
        ("http://[fd00::1]:8080", "http://[fd00::1]:8080"),
        ("two words", '"two words"'),
        ("", '""'),
        ('say "hi"', r'"say \"hi\""'),
        ("back\\slash", r'"back\\slash"'),
        ("100%h", "100%%h"),
        (";", '";"'),
    ],
)
def test_a_word_is_quoted_as_units_have_it(word: str, unit: str) -> None:
    assert quoted(word) == unit


def test_an_argument_puts_in_no_variable() -> None:
    text = unit_text(["/opt/$x", "$HOME", "${HOME} %h"], token=TOKEN_FILE)
    assert 'ExecStart="/opt/$x" "$$HOME" "$${HOME} %%h" --token-file ${CREDENTIALS_DIRECTORY}/token' in text


@pytest.mark.parametrize("word", ["x\nUser=root", "x\rUser=root", "x\0"])
def test_a_line_break_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="not allowed in"):
        unit_text(["/opt/python", word], token=TOKEN_FILE)
    with pytest.raises(ValueError, match="not allowed in"):
        unit_text(["/opt/python"], token=TOKEN_FILE, folders=[Path("/home") / word])


def test_of_the_homes_the_unit_shows_only_the_folders_that_it_needs() -> None:
    text = unit_text(["/opt/python"], token=TOKEN_FILE, folders=[Path("/home/a/my venv"), Path("/root/py%")])
    assert 'ProtectHome=tmpfs\nBindReadOnlyPaths="/home/a/my venv" /root/py%%\n' in text


def test_folders_in_homes_are_found_by_name_and_by_link(tmp_path: Path) -> None:
    home = tmp_path / "home"
    venv = home / "a" / "venv"
    (venv / "lib").mkdir(parents=True)
    (tmp_path / "link").symlink_to(venv)
    (home / "python").symlink_to("/usr")
    homes = [str(home)]
    assert in_homes(["/usr", tmp_path], homes) == []
    assert in_homes([venv, venv / "lib"], homes) == [venv]
    assert in_homes([tmp_path / "link"], homes) == [venv]
    assert in_homes([home / "python"], homes) == [home / "python"]


def test_a_link_is_followed_link_by_link(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "first").symlink_to("bin/second")
    (tmp_path / "bin" / "second").symlink_to("../program")
    assert links(tmp_path / "first") == [tmp_path / "first", tmp_path / "bin" / "second", tmp_path / "program"]
    (tmp_path / "loop").symlink_to("loop")
    assert len(links(tmp_path / "loop")) == 40


def test_the_service_of_this_host_has_the_usual_paths() -> None:
    this = service(is_root=True)
    assert this.definition == Path("/etc/systemd/system/ollama-agent-reporter.service")
    assert this.token == TOKEN_FILE
    assert re.search(r"^ProtectHome=(yes|tmpfs)$", this.text(command()), re.MULTILINE)
    assert this.lacks == ""
    assert "sudo" in service(is_root=False).lacks
