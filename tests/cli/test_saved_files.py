import socket
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ollama_balancer.cli import view
from ollama_balancer.cli.main import main
from ollama_balancer.cli.saved_files import NoFilesError, find_files
from ollama_balancer.saved_flows import VIEWER_FOLDER
from tests.lab.flowfiles import flow, write

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
NAMES = ["ollama-2026-11-28.flow", "ollama-2026-11-29.flow", "ollama-2026-11-29.2.flow", "ollama-2026-11-29.10.flow"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of flows that config.yaml names; `tmp_path` is mitmproxy's."""
    stored = tmp_path / "flows"
    stored.mkdir()
    for name in NAMES:
        (stored / name).touch()
    (stored / "notes.txt").touch()
    (tmp_path / "config.yaml").write_text(f"balancer_store: {stored}\n")
    return stored


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ([], NAMES[1:]),
        (["yesterday"], NAMES[1:]),
        (["2026-11-28"], NAMES[:1]),
        (["2026-11-29", "2026-11-28", "yesterday"], [*NAMES[1:], NAMES[0]]),
        (["FOLDER"], NAMES),
        (["FOLDER/notes.txt"], ["notes.txt"]),
    ],
)
def test_files_are_found_by_day_and_in_folders(folder: Path, named: list[str], found: list[str]) -> None:
    names = [name.replace("FOLDER", str(folder)) for name in named]
    assert [path.name for path in find_files(names, folder.parent, NOON)] == found


def test_the_fleet_file_may_name_the_folder(folder: Path) -> None:
    fleet = folder.parent / "fleet.yaml"
    fleet.write_text(f"options: {{store: {folder}}}\n")
    (folder.parent / "config.yaml").write_text(f"balancer_config: {fleet}\n")
    assert [path.name for path in find_files([], folder.parent)] == NAMES[1:]


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        (["today"], "has nothing of 2026-11-30; it has 2026-11-28 to 2026-11-29"),
        (["2026-02-31"], "there is no file '2026-02-31', and it is no day such as 2026-11-30"),
        (["nowhere"], "there is no file 'nowhere'"),
        (["CONFDIR"], "has no files named ollama-DAY.flow"),
    ],
)
def test_what_there_is_not_is_said(folder: Path, named: list[str], problem: str) -> None:
    names = [name.replace("CONFDIR", str(folder.parent)) for name in named]
    with pytest.raises(NoFilesError, match=problem):
        find_files(names, folder.parent, NOON)


def test_without_a_folder_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoFilesError, match="do not set balancer_store: name files, or their folder"):
        find_files([], tmp_path)
    (tmp_path / "config.yaml").write_text(f"balancer_store: {tmp_path}/none\n")
    with pytest.raises(NoFilesError, match="none cannot be read: No such file or directory"):
        find_files([], tmp_path)


def test_the_viewer_has_a_folder_and_a_port_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = folder / NAMES[0]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(view, "FIRST_PORT", port)
        command = view.command_line([str(file), "--no-browser", "--", "--set", "web_host=0.0.0.0"])
    [own] = tmp_path.glob(f"{VIEWER_FOLDER}*")
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert command[:5] == ["--no-server", "-s", str(view.SCRIPT), "--set", f"confdir={own}"]
    [given] = [word for word in command if word.startswith("web_port=")]
    assert int(given.partition("=")[2]) > port
    assert command[7:] == ["--set", f"viewed_files={file}", "--no-web-open-browser", "--set", "web_host=0.0.0.0"]
    assert "web_port=9000" in view.command_line([str(file), "--port", "9000"])


def test_an_export_does_not_overwrite_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "saved", [flow(), flow(metadata="nobody's")])
    before = path.read_bytes()
    (tmp_path / "same").symlink_to(path)
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(path), "--jsonl", "-o", str(tmp_path / "same")])
    assert "is read: give another file to -o" in capsys.readouterr().err
    assert path.read_bytes() == before
    (tmp_path / "out").touch(0o644)
    main(["export", str(path), "--jsonl", "-o", str(tmp_path / "out")])
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    assert len((tmp_path / "out").read_text().splitlines()) == 1
    assert capsys.readouterr().err == "1 flow is left out: the balancer has no record of it\n"
    with pytest.raises(SystemExit, match="nowhere/out cannot be written: No such file or directory"):
        main(["export", str(path), "--jsonl", "-o", str(tmp_path / "nowhere" / "out")])
    (tmp_path / "empty").touch()
    with pytest.raises(SystemExit, match="1"):
        main(["export", str(tmp_path / "empty"), "--jsonl"])
