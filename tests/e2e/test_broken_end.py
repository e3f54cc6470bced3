"""An answer that breaks off after its terminal event is whole: the client gets a proper end, and the agent no blame."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Hosts, running_proxy, wait_until
from tests.e2e.scripted import (
    ANTHROPIC_DONE,
    ANTHROPIC_TEXT,
    DONE,
    JSON,
    NDJSON,
    OPENAI_DONE,
    OPENAI_TEXT,
    RESPONSES_DONE,
    RESPONSES_TEXT,
    SSE,
    TEXT,
    ScriptedHost,
    chunked,
)

WHOLE = b'{"model":"m","message":{"role":"assistant","content":"Hello"},"done":true}'
EMBEDDED = b'{"model":"m","embeddings":[[0.1,0.2]]}'


async def close() -> bool:
    return True


async def stay() -> bool:
    return False


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    ("path", "head", "pieces"),
    [
        ("/api/generate", NDJSON, [TEXT, DONE]),
        ("/v1/chat/completions", SSE, [OPENAI_TEXT, OPENAI_DONE]),
        ("/v1/messages", SSE, [ANTHROPIC_TEXT, ANTHROPIC_DONE]),
        ("/v1/responses", SSE, [RESPONSES_TEXT, RESPONSES_DONE]),
        ("/api/chat", JSON, [WHOLE]),
        ("/api/embed", JSON, [EMBEDDED]),
        ("/api/pull", NDJSON, [b'{"status":"success"}\n']),
    ],
)
def test_what_has_its_terminal_event_is_whole(
    tmp_path: Path, hosts: Hosts, path: str, head: bytes, pieces: list[bytes], reset: bool
) -> None:
    host = ScriptedHost(hosts, {path: head + chunked(*pieces)}, close, reset=reset)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        answer = proxy.http.post(path, json={"model": "m", "stream": b"json" not in head or b"ndjson" in head})
        assert answer.status_code == 200
        assert answer.content == b"".join(pieces)
        wait_until(lambda: proxy.agents()["one"]["stats"]["succeeded"] == 1, "it is a success")
        assert proxy.agents()["one"]["stats"]["failed"] == 0
    host.stop()


@pytest.mark.usefixtures("either_way")
def test_what_is_shorter_than_its_content_length_is_not(tmp_path: Path, hosts: Hosts) -> None:
    head = NDJSON.replace(b"Transfer-Encoding: chunked", b"Content-Length: 1000")
    host = ScriptedHost(hosts, {"/api/generate": head + TEXT + DONE}, close)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        with pytest.raises(httpx.RemoteProtocolError):
            proxy.http.post("/api/generate", json={"model": "m"})
        wait_until(lambda: proxy.introspect()["contexts"] == 0, "nothing is left")
    host.stop()


@pytest.mark.parametrize(
    ("piece", "reset"),
    [(b'{"status":"pulling"}\n', False), (b'{"status":"pulling"}\n', True), (b'{"status":"pull', False)],
    ids=["between two lines", "reset", "in a line"],
)
def test_a_pull_on_a_named_host_that_dies_says_which_host_and_why(
    tmp_path: Path, hosts: Hosts, piece: bytes, reset: bool
) -> None:
    host = ScriptedHost(hosts, {"/api/pull": NDJSON + chunked(piece)}, close, reset=reset)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        answer = proxy.http.post("/api/pull", json={"model": "m"}, headers={"X-Balancer-Agent": "one"})
        assert answer.status_code == 200
        *passed_on, last = answer.content.splitlines()
        assert passed_on == [piece.rstrip(b"\n")]
        error = json.loads(last)
        assert error.keys() == {"error"}
        assert error["error"].startswith("one: failed in the middle of its answer: ")
        assert answer.content.endswith(b"\n")
        wait_until(lambda: proxy.agents()["one"]["stats"]["failed"] == 1, "it is a failure")
        wait_until(lambda: proxy.introspect()["contexts"] == 0, "nothing is left")
    host.stop()


@pytest.mark.parametrize(
    "message",
    [
        "server busy, please try again.  maximum pending requests exceeded",
        "model 'm' not found",
        "model requires more system memory (9.9 GiB) than is available (1.0 GiB)",
    ],
    ids=["busy", "lacks the model", "cannot load"],
)
def test_an_error_in_a_begun_answer_sends_the_next_request_elsewhere(
    tmp_path: Path, hosts: Hosts, message: str
) -> None:
    """The first is its client's, as nothing is retried once an answer has begun; it is no failure of the host's."""
    line = json.dumps({"error": message}).encode() + b"\n"
    bad = ScriptedHost(hosts, {"/api/generate": NDJSON + chunked(line) + b"0\r\n\r\n"}, stay)
    good = ScriptedHost(hosts, {"/api/generate": NDJSON + chunked(TEXT, DONE) + b"0\r\n\r\n"}, stay)
    options = ("--set", f"balancer_agents=bad={bad.url},good={good.url}", "--set", "balancer_mode=metrics")
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("bad", "good")
        proxy.report("bad", cpu=1)
        proxy.report("good", cpu=60)
        first = proxy.http.post("/api/generate", json={"model": "m"})
        assert (first.headers["X-Balancer-Agent"], first.content) == ("bad", line)
        second = proxy.http.post("/api/generate", json={"model": "m"})
        assert (second.headers["X-Balancer-Agent"], second.content) == ("good", TEXT + DONE)
        assert proxy.agents()["bad"]["strikes"] == 0
        assert bad.asked == ["/api/generate"]
    bad.stop()
    good.stop()
