"""What was learned outlives the process, and a file that is something else does not keep it from starting."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ollama_balancer.core.agent import Source, agent_id
from ollama_balancer.core.events import Events
from ollama_balancer.core.history import History
from ollama_balancer.core.knowledge import AgentRecord, Known, ModelRecord, OutputRecord
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.storage import learned as module
from ollama_balancer.storage.learned import FILE_NAME, MAX_BYTES, LearnedFile, Record
from ollama_balancer.storage.persistence import Persistence
from tests.core.fakes import address
from tests.core.room import MODEL
from tests.core.test_knowledge import experienced, learned
from tests.jumping_loop import run

NOW = 1_800_000_000.0

HEAD = {"version": 1}
MODEL_LINE: dict[str, Any] = {"model": MODEL, "at": NOW, "decode": [40.0, 3]}
AGENT_LINE: dict[str, Any] = {"agent": "0123456789ab", "models": [MODEL_LINE]}
OUTPUT_LINE: dict[str, Any] = {"model": MODEL, "at": NOW, "output": [180.0, 3]}


def fleet(agents: int, models: int) -> list[AgentRecord]:
    return [
        AgentRecord(
            agent_id(f"gpu-{number}"),
            "NVIDIA GeForce RTX 4090 + NVIDIA GeForce RTX 4090, 48 GiB",
            "0.33.0",
            4,
            tuple(
                ModelRecord(
                    f"a-model-with-a-usual-name-{model}:30b-instruct-q4_K_M",
                    "0123456789ab",
                    NOW,
                    Known(42.123456789012345, 1000),
                    Known(1642.123456789012345, 1000),
                    Known(12.123456789012345, 12),
                    4,
                    9,
                    38.123456789012345,
                )
                for model in range(models)
            ),
        )
        for number in range(agents)
    ]


def lines(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def test_what_is_saved_is_read_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    file = LearnedFile(tmp_path / "folder" / FILE_NAME)
    assert file.read() == []
    assert file.save([])
    assert not file.path.exists()
    records: list[Record] = [
        OutputRecord(MODEL, NOW, Known(180.0, 3)),
        *fleet(2, 2),
        fleet(1, 1)[0]._replace(hardware=None),
    ]
    assert file.save(records)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert LearnedFile(file.path).read() == records
    before = file.path.stat().st_ino
    assert file.save(records)
    assert file.path.stat().st_ino == before  # nothing new, nothing written


def test_a_large_fleet_fits(tmp_path: Path) -> None:
    """`pytest benches/test_learned.py` has 1,000 agents with 50 models, and the time."""
    file = LearnedFile(tmp_path / FILE_NAME)
    records = fleet(20, 50)
    assert file.save(records)
    assert file.path.stat().st_size < MAX_BYTES / 3 / 50
    assert file.read() == records


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"SQLite format 3\x00",
        lines({"version": 2}),
        lines(HEAD, [1]),
        lines(HEAD, AGENT_LINE | {"agent": "../../etc"}),
        lines(HEAD, AGENT_LINE | {"models": [MODEL_LINE] * 1001}),
        lines(HEAD, AGENT_LINE | {"hardware": "x" * 1000}),
        lines(HEAD, AGENT_LINE | {"models": [MODEL_LINE | {"decode": [0, 1]}]}),
        lines(HEAD, AGENT_LINE | {"models": [MODEL_LINE | {"decode": [1, -1]}]}),
        lines(HEAD, AGENT_LINE | {"models": [MODEL_LINE | {"load": [float("nan"), 1]}]}),
        lines(HEAD, AGENT_LINE | {"models": [MODEL_LINE | {"slots": 10**9}]}),
        lines(HEAD, AGENT_LINE | {"models": [MODEL_LINE | {"at": -1}]}),
        lines(HEAD, AGENT_LINE | {"models": [MODEL_LINE | {"model": "a\x1b[2J"}]}),
        lines(HEAD, OUTPUT_LINE | {"output": [float("inf"), 1]}),
        lines(HEAD, OUTPUT_LINE)[:-5],
        lines(HEAD) + b"\n" * 300_000,
    ],
    ids=range(19),
)
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    file = LearnedFile(tmp_path / FILE_NAME)
    file.path.write_bytes(content)
    assert file.read() == []
    [record] = caplog.records
    assert "is not what the balancer has written there" in record.getMessage()
    assert (tmp_path / f"{FILE_NAME}.damaged").read_bytes() == content
    assert file.save(fleet(1, 1))
    assert file.read() == fleet(1, 1)


def test_a_file_that_is_too_long_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    test_a_damaged_file_is_set_aside(tmp_path, lines(HEAD, OUTPUT_LINE) + b" " * 10_000, caplog)


def test_a_file_that_cannot_be_opened_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("somebody else's")
    file = LearnedFile(tmp_path / FILE_NAME)
    os.symlink(elsewhere, file.path)
    assert file.read() == []
    assert "symbolic link" in caplog.text
    assert file.save(fleet(1, 1))
    assert (elsewhere.read_text(), file.path.is_symlink()) == ("somebody else's", True)


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    file = LearnedFile(tmp_path / "folder" / FILE_NAME)
    (tmp_path / "folder").write_text("no folder")
    assert not file.save(fleet(1, 1))
    assert not file.save(fleet(1, 1))
    (tmp_path / "folder").unlink()
    assert file.save(fleet(1, 1))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_what_a_host_says_cannot_spoil_the_file(tmp_path: Path) -> None:
    good, bad = fleet(2, 1)
    file = LearnedFile(tmp_path / FILE_NAME)
    for change in ({"hardware": "x" * 1000}, {"version": "\ud800"}, {"models": (bad.models[0]._replace(model="\n"),)}):
        assert file.save([good, bad._replace(**change)])
        assert file.read() == [good]


def persistence(folder: Path, registry: AgentRegistry) -> Persistence:
    return Persistence(folder, registry, History(), Events(lambda: NOW), lambda: NOW)


def test_it_is_written_from_time_to_time_and_at_the_end(tmp_path: Path) -> None:
    room = experienced()

    async def serve() -> bytes:
        files = persistence(tmp_path, room.registry)
        await files.restore_learned()
        task = asyncio.create_task(files.persist_learned())
        await asyncio.sleep(400)
        task.cancel()
        before = (tmp_path / FILE_NAME).read_bytes()
        (tmp_path / FILE_NAME).unlink()
        room.serve(room.agents[0], output_tokens=100, output_seconds=1.0)
        files.save()
        return before

    before = run(serve())
    assert b"gpu" not in before  # names are not in the file
    assert (tmp_path / FILE_NAME).read_bytes() != before
    registry = AgentRegistry(room.clock)
    run(persistence(tmp_path, registry).restore_learned())
    registry.register("gpu-1", address(1))
    known = registry.learner.estimates.describe(agent_id("gpu-1"))
    assert known[MODEL]["decode"] == {
        "value": pytest.approx(learned(room)[MODEL]["decode"]["value"]),
        "observations": 11,
    }


def test_an_end_before_the_file_was_read_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(lines(HEAD, OUTPUT_LINE))
    persistence(tmp_path, AgentRegistry(lambda: 0.0)).save()
    assert (tmp_path / FILE_NAME).read_bytes() == lines(HEAD, OUTPUT_LINE)


def test_simulated_hosts_are_not_kept(tmp_path: Path) -> None:
    room = experienced()
    room.registry.register("demo-1", address(9), Source.DEMO)
    demo = room.registry.get("demo-1")
    assert demo is not None
    room.registry.liveness.reached(demo)
    room.serve(demo, output_tokens=100, output_seconds=1.0)
    files = persistence(tmp_path, room.registry)
    run(files.restore_learned())
    files.save()
    [record] = LearnedFile(tmp_path / FILE_NAME).read()
    assert isinstance(record, AgentRecord)
    assert record.id == agent_id("gpu-1")
