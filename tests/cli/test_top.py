from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent_reporter.http import CallError
from ollama_balancer.cli import top
from ollama_balancer.cli.top import ENTER, LEAVE, fetch, make_request, screen, show


def agent(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "status": "online",
        "reason": None,
        "in_flight": 2,
        "slots": 4,
        "cpu": 12.4,
        "memory": 40.0,
        "gpus": [
            {"name": "RTX", "busy": 30.0, "used": 6 << 30, "total": 25_757_220_864},
            {"name": "RTX", "busy": 90.0, "used": 12 << 30, "total": 25_757_220_864},
        ],
        "speeds": {"llama3.2:latest": 80.4},
        "report_age": 3.2,
        "loaded": ["llama3.2:latest"],
    } | more


def data(*agents: dict[str, Any], **more: Any) -> dict[str, Any]:
    decision = {"age": 1.0, "outcome": "succeeded", "status": 200, "model": "m", "agent": "gpu-1"}
    decision["why"] = "cheapest: 0.5 s"
    return {
        "mode": "adaptive",
        "figures": {"requests_per_second": 1.25, "tokens_per_second": 99.0, "failures": 2.5, "ttft_p95": 0.731},
        "totals": {"requests": 12, "succeeded": 7, "failed": 0, "rejected": 3, "in_flight": 2},
        "in_flight": 2,
        "states": {"online": 1, "offline": 0, "unauthorized": 0, "ejected": 1, "draining": 0},
        "line": {"length": 3, "oldest": 4.4},
        "agents": list(agents),
        "found": len(agents),
        "decisions": [decision] * 9,
    } | more


def test_the_figures_the_fleet_and_the_last_requests_are_shown() -> None:
    lines = screen(data(agent("gpu-1")), 200, 40)
    assert lines[0] == "ollama-balancer, mode adaptive: 1 online, 1 ejected"
    assert lines[1] == (
        "1.2 requests/s, 99 tokens/s, 2 in flight, 3 queued (oldest 4 s), TTFT p95 0.73 s, 2.5 % failed"
    )
    assert lines[2] == "12 requests since start: 7 succeeded, 3 rejected, 2 in flight"
    head, row = lines[4:6]
    assert head.split()[:5] == ["agent", "status", "in", "flight", "cpu"]
    assert row.split() == [
        "gpu-1",
        "online",
        "2/4",
        "12",
        "%",
        "40",
        "%",
        "90",
        "%",
        "38",
        "%",
        "of",
        "48",
        "GiB",
        "80",
        "3",
        "s",
        "llama3.2:latest",
    ]
    assert lines[7] == "last requests"
    assert lines[8:] == ["    1 s ago  succeeded     m → gpu-1  cheapest: 0.5 s"] * 5


def test_what_to_do_about_a_host_that_cannot_be_used_is_shown_in_full() -> None:
    reason = "cannot connect: connection refused at 10.0.0.5:11434; start Ollama there with OLLAMA_HOST=0.0.0.0, " * 2
    lines = screen(data(agent("gpu-1", status="unreachable", reason=reason), agent("b", reason=reason)), 100, 24)
    whole = " ".join(lines)
    assert f"gpu-1: {reason.strip()}" in whole
    assert "b: cannot" not in whole  # it serves
    assert all(len(line) <= 100 for line in lines)
    assert len(lines) <= 23


def test_what_is_not_known_is_a_dash() -> None:
    bare = agent("a", slots=None, cpu=None, memory=None, gpus=[], speeds={}, report_age=None, loaded=[], in_flight=0)
    assert screen(data(bare), 200, 40)[5].split() == ["a", "online", "0", *["-"] * 7]
    empty = screen(data(states={}, line={"length": 0, "oldest": None}, decisions=[]), 200, 40)
    assert empty[0].endswith("no agents")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 50), (20, 4)])
def test_nothing_is_wider_or_higher_than_the_terminal(width: int, height: int) -> None:
    agents = [agent(f"gpu-{number}", reason="x" * 300, loaded=["m" * 500]) for number in range(100)]
    lines = screen(data(*agents, found=1000), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 7)
    if height >= 10:
        assert any("more (--sort" in line or "more (" in line for line in lines)


def test_hostile_names_do_not_reach_the_terminal() -> None:
    hostile = agent("a", loaded=["\x1b[2J\x07"], reason="\r\n\x9b31m")
    decision = {"age": 1.0, "outcome": "rejected", "status": 400, "model": "\x1b]0;x\x07", "agent": None}
    decision["why"] = "\x1b[31m\n"
    text = "\n".join(screen(data(hostile, decisions=[decision]), 500, 40))
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((404, b"no"), "status 404: is it a balancer"),
        ((200, b"<html>"), "not JSON: is it a balancer"),
        ((200, b"[1]"), "no fleet: is it a balancer"),
        (CallError("connection refused"), r"does not answer \(connection refused\)"),
    ],
)
def test_what_is_no_balancer_is_told_in_a_line(answer: tuple[int, bytes] | CallError, why: str) -> None:
    def ask() -> tuple[int, bytes]:
        if isinstance(answer, CallError):
            raise answer
        return answer

    with pytest.raises(ValueError, match=why):
        fetch(ask)


@pytest.mark.parametrize(
    "url",
    ["ftp://b", "http://", "http://b:x", "http://b:99999", "http://b:0", "http://[b", "http://u:p@b", "http://b#x"],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        make_request(url, {})


def test_the_screen_is_drawn_again_and_a_balancer_that_is_away_is_waited_for() -> None:
    answers = iter([(200, json.dumps(data(agent("gpu-1"))).encode()), (500, b""), None])
    written: list[str] = []

    def ask() -> tuple[int, bytes]:
        answer = next(answers)
        if answer is None:
            raise KeyboardInterrupt
        return answer

    with pytest.raises(KeyboardInterrupt):
        show("http://b", ask, 2.0, written.append, sleep=lambda seconds: None)
    assert written[0] == ENTER
    assert "gpu-1" in written[1]
    assert "status 500: is it a balancer?; trying again" in written[2]
    assert written[-1] == LEAVE


@pytest.mark.parametrize(
    ("url", "presented"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080", True),
        ("http://[::1]:1", True),
        ("http://b:80", False),
    ],
)
def test_this_machines_token_is_presented_to_this_machine_alone(
    url: str, presented: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OLLAMA_BALANCER_KEY", "OLLAMA_BALANCER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mitmproxy").mkdir()
    (tmp_path / ".mitmproxy" / "ollama-balancer-token").write_text("planted-token\n")
    assert top.find_key(None, url) == ("planted-token" if presented else "")
    monkeypatch.setenv("OLLAMA_BALANCER_KEY", "given")
    assert top.find_key(None, url) == "given"
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff")
    with pytest.raises(OSError, match="no text"):
        top.find_key(binary, url)
