"""Priorities with a real proxy: who is served first, who makes room, and what a request may ask for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.harness import Hosts
from tests.e2e.test_line import Sent, busy, in_line, prompts, state


def asking(priority: str) -> dict[str, str]:
    return {"X-Balancer-Priority": priority}


def test_a_batch_request_is_served_after_normal_ones_and_nobody_gets_more_than_normal_by_asking(
    tmp_path: Path, hosts: Hosts
) -> None:
    with busy(tmp_path, hosts) as (proxy, host, first):
        sent = []
        for number, (prompt, headers) in enumerate(
            (("batch", asking("batch")), ("normal", {}), ("raised", asking("interactive")), ("last", asking("normal"))),
            1,
        ):
            sent.append(Sent(proxy, prompt, **headers))
            in_line(proxy, number)
        assert state(proxy)["line"]["priorities"] == {"interactive": 0, "normal": 3, "batch": 1}
        host.faults.hang = False
        assert {request.answer.status_code for request in (first, *sent)} == {200}
        assert prompts(host) == ["first", "normal", "raised", "last", "batch"]
        headers_seen = {name.lower() for request in host.requests for name, _ in request.headers}
        assert "host" in headers_seen
        assert not [name for name in headers_seen if name.startswith("x-balancer")], "hosts do not see it"


def test_a_full_queue_sheds_its_newest_batch_request_for_a_normal_one(tmp_path: Path, hosts: Hosts) -> None:
    with busy(tmp_path, hosts, "--set", "balancer_queue_size=2") as (proxy, host, first):
        kept = Sent(proxy, "kept", **asking("batch"))
        in_line(proxy, 1)
        shed = Sent(proxy, "shed", **asking("batch"))
        in_line(proxy, 2)
        refused = Sent(proxy, "refused", **asking("batch")).answer
        assert refused.status_code == 503
        assert "which is full" in refused.json()["error"]
        normal = Sent(proxy, "normal")
        assert shed.answer.status_code == 503
        assert int(shed.answer.headers["Retry-After"]) >= 1
        assert "had to make room for one of a higher priority" in shed.answer.json()["error"]
        in_line(proxy, 2)
        assert state(proxy)["line"]["priorities"] == {"interactive": 0, "normal": 1, "batch": 1}
        host.faults.hang = False
        assert {request.answer.status_code for request in (first, normal, kept)} == {200}
        assert prompts(host) == ["first", "normal", "kept"]
        assert (state(proxy)["waiting"], state(proxy)["totals"]["in_flight"]) == (0, 0)


@pytest.mark.parametrize(
    ("path", "place"), [("/api/generate", ["error"]), ("/v1/chat/completions", ["error", "message"])]
)
def test_an_unknown_priority_is_a_400_that_says_which_there_are(
    tmp_path: Path, hosts: Hosts, path: str, place: list[str]
) -> None:
    with busy(tmp_path, hosts) as (proxy, host, _):
        body = {"model": "llama3.2", "prompt": "x", "messages": []}
        refused = proxy.http.post(path, json=body, headers=asking("urgent"))
        assert refused.status_code == 400
        message = json.loads(refused.text)
        for key in place:
            message = message[key]
        assert "interactive, normal, batch" in message
        assert prompts(host) == ["first"]
