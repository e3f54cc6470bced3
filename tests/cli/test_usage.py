"""`ollama-balancer usage`: what it prints, and what it refuses."""

import csv
import io
import time
from pathlib import Path

import pytest

from ollama_balancer.cli.main import main
from ollama_balancer.core.ledger import HOUR, Entry, Ledger
from ollama_balancer.storage.usage import FILE_NAME, UsageFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ledger = Ledger(time.time)
    for _ in range(3):
        ledger.add(Entry("alice", "qwen3:8b", "a", "succeeded", 30, 12, 2.5, 0.5))
    ledger.add(Entry("(none)", "=cmd|x", "a", "cancelled", 0, 0, 0.0, 0.0))
    UsageFile(tmp_path / FILE_NAME).add(ledger.take())
    return tmp_path


def test_the_table_has_a_row_for_each_key_and_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["usage", "--confdir", str(folder)])
    head, *rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    words = [[word.strip() for word in line if word.strip()] for line in (head, *rows)]
    assert words[0] == ["key", "model", "requests", "succeeded", "cancelled", "prompt", "output", "busy s", "queued s"]
    assert words[1:] == [
        ["(none)", "=cmd|x", "1", "0", "1", "0", "0", "0.0", "0.0"],
        ["alice", "qwen3:8b", "3", "3", "0", "90", "36", "7.5", "1.5"],
    ]


def test_csv_is_for_spreadsheets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["usage", "--csv", "--by", "model,day", "--confdir", str(folder)])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["model"], row["requests"], row["prompt_tokens"]) for row in rows] == [
        ("'=cmd|x", "1", "0"),
        ("qwen3:8b", "3", "90"),
    ]
    assert {row["day"] for row in rows} <= {
        time.strftime("%Y-%m-%d", time.gmtime(time.time() - n * HOUR)) for n in (0, 1)
    }


@pytest.mark.parametrize("words", [("--by", "prompt"), ("--from", "yesterday"), ("--to", "2027-02-30")])
def test_what_cannot_be_read_is_refused(folder: Path, words: tuple[str, str]) -> None:
    with pytest.raises(SystemExit, match=f"ollama-balancer: {words[0][2:]}: .*is not accepted"):
        main(["usage", *words, "--confdir", str(folder)])


def test_without_a_file_none_is_made_and_a_damaged_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["usage", "--confdir", str(tmp_path / "none")])
    assert "No usage in that time" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    path = tmp_path / FILE_NAME
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(SystemExit, match="is damaged"):
        main(["usage", "--confdir", str(tmp_path)])
    assert path.read_bytes() == b"no database" * 1000
