from __future__ import annotations

from collections.abc import Mapping

import pytest

from ollama_balancer.core.access import Key, Right
from ollama_balancer.gateway.audit import MAX_A_MINUTE, MINUTE, AuditTrail
from ollama_balancer.gateway.callers import Caller
from tests.core.fakes import Clock

WRONG = Caller("c", address="10.0.0.7", presented=True)


class Trail(AuditTrail):
    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock, lambda: 1_700_000_000.0)
        self.entries: list[Mapping[str, object]] = []
        self.write = self.entries.append


@pytest.fixture
def trail() -> Trail:
    return Trail()


def test_an_entry_says_when_who_from_where_what_and_of_which(trail: Trail) -> None:
    operator = Caller("c", address="10.0.0.7", key=Key("olga", frozenset((Right.OPERATE,))))
    trail.changed(operator, "agent.drain", "gpu-1", more=1)
    trail.changed(Caller("c", address="10.0.0.8", authorized=True), "agent.delete", "gpu-1")
    assert trail.entries == [
        {
            "time": "2023-11-14T22:13:20.000Z",
            "who": "key olga",
            "from": "10.0.0.7",
            "what": "agent.drain",
            "object": "gpu-1",
            "more": 1,
        },
        {
            "time": "2023-11-14T22:13:20.000Z",
            "who": "token",
            "from": "10.0.0.8",
            "what": "agent.delete",
            "object": "gpu-1",
        },
    ]


def test_refused_credentials_are_limited_and_the_others_are_counted(trail: Trail) -> None:
    for _ in range(MAX_A_MINUTE + 30):
        trail.refused(WRONG, "/api/chat", 401, "this key is not known")
    assert len(trail.entries) == MAX_A_MINUTE
    assert {entry["who"] for entry in trail.entries} == {"unknown"}
    trail.tick()
    assert len(trail.entries) == MAX_A_MINUTE
    trail.clock.now += MINUTE
    trail.tick()
    trail.tick()
    assert [(entry["what"], entry["count"]) for entry in trail.entries[MAX_A_MINUTE:]] == [("entries.left_out", 30)]
    trail.refused(WRONG, "/api/chat", 401, "this key is not known")
    assert len(trail.entries) == MAX_A_MINUTE + 2


def test_wrong_keys_hide_no_change(trail: Trail) -> None:
    for _ in range(MAX_A_MINUTE + 30):
        trail.refused(WRONG, "/api/chat", 401, "this key is not known")
    trail.changed(Caller("c", key=Key("host", frozenset((Right.REPORT,))), presented=True), "agent.drain", "gpu-1")
    assert trail.entries[-1]["what"] == "agent.drain"


def test_operators_are_not_limited_and_reporters_keys_are(trail: Trail) -> None:
    reporter = Caller("c", key=Key("host", frozenset((Right.REPORT,))), presented=True)
    operator = Caller("c", key=Key("olga", frozenset((Right.OPERATE,))), presented=True)
    for _ in range(2 * MAX_A_MINUTE):
        trail.changed(reporter, "agent.resume", "gpu-1")
        trail.changed(operator, "agent.resume", "gpu-1")
    assert [entry["who"] for entry in trail.entries].count("key host") == MAX_A_MINUTE
    assert [entry["who"] for entry in trail.entries].count("key olga") == 2 * MAX_A_MINUTE


def test_what_is_no_refused_credential_is_left_out(trail: Trail) -> None:
    trail.refused(Caller("c"), "/api/chat", 401, "this call needs a key")
    trail.refused(WRONG, "/api/chat", 503, "no key can be checked now")
    assert trail.entries == []


def test_texts_from_outside_are_bounded(trail: Trail) -> None:
    trail.refused(WRONG, "/" + "x\n" * 5000, 401, "y" * 5000)
    [entry] = trail.entries
    assert len(str(entry)) < 1000
    assert "\n" not in str(entry["object"])
