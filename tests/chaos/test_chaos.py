"""The short form of the chaos, and whether its checks can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.clients import BrokenAnswerError, ParsedRequest, judge
from tests.chaos.fleet import KINDS
from tests.chaos.run import run


def test_nothing_is_lost_whatever_happens_to_the_hosts(tmp_path: Path) -> None:
    report = run(tmp_path, seed=4, requests=360, seconds=12, hosts=12)
    print(report)
    assert not report.broken, str(report)
    assert report.outcomes["whole"] > 250
    assert sum(report.faults.values()) >= len(KINDS)


GENERATE = ParsedRequest("generate", "POST", "/api/generate", {}, stream=True, text="ab")
MESSAGES = ParsedRequest("v1 messages", "POST", "/v1/messages", {}, stream=False, text="ab")
UNKNOWN = ParsedRequest("unknown", "POST", "/api/chat", {}, stream=False, text=None, status=404)


def lines(*events: object) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


@pytest.mark.parametrize(
    ("asked", "status", "content", "verdict"),
    [
        (GENERATE, 200, lines({"response": "a"}, {"response": "b", "done": True}), "whole"),
        (GENERATE, 200, lines({"response": "a"}, {"error": "it died"}), "error event"),
        (GENERATE, 503, b'{"error": "busy"}', "error 503"),
        (MESSAGES, 200, b'{"content": [{"text": "ab"}]}', "whole"),
        (MESSAGES, 502, b'{"type": "error", "error": {"message": "x"}}', "error 502"),
        (UNKNOWN, 404, b'{"error": "not found"}', "whole"),
    ],
)
def test_an_answer_or_an_error_is_known_as_one(asked: ParsedRequest, status: int, content: bytes, verdict: str) -> None:
    assert judge(asked, status, content) == verdict


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        (GENERATE, 200, lines({"response": "a"}, {"response": "b", "done": False})),
        (GENERATE, 200, lines({"response": "ab"}, {"done": True})[:-1]),
        (GENERATE, 200, lines({"response": "a"}, {"response": "a", "done": True})),
        (GENERATE, 200, lines({"response": "ab"})[:-8]),
        (GENERATE, 200, b""),
        (GENERATE, 503, b"<html>"),
        (MESSAGES, 502, b'{"error": "in the words of another protocol"}'),
        (MESSAGES, 200, b'{"content": []}'),
        (UNKNOWN, 200, b"{}"),
    ],
)
def test_what_is_neither_is_found_out(asked: ParsedRequest, status: int, content: bytes) -> None:
    with pytest.raises(BrokenAnswerError):
        judge(asked, status, content)
