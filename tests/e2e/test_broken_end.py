"""An answer that breaks off after its terminal event is whole: the client gets a proper end, and the agent no blame."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Hosts, running_proxy, wait_until
from tests.e2e.scripted import DONE, JSON, NDJSON, OPENAI_DONE, OPENAI_TEXT, SSE, TEXT, ScriptedHost, chunked

WHOLE = b'{"model":"m","message":{"role":"assistant","content":"Hello"},"done":true}'
EMBEDDED = b'{"model":"m","embeddings":[[0.1,0.2]]}'


async def close() -> bool:
    return True


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("path", "head", "pieces"),
    [
        ("/api/generate", NDJSON, [TEXT, DONE]),
        ("/v1/chat/completions", SSE, [OPENAI_TEXT, OPENAI_DONE]),
        ("/api/chat", JSON, [WHOLE]),
        ("/api/embed", JSON, [EMBEDDED]),
        ("/api/pull", NDJSON, [b'{"status":"success"}\n']),
    ],
)
def test_what_has_its_terminal_event_is_whole(
    tmp_path: Path, hosts: Hosts, path: str, head: bytes, pieces: list[bytes]
) -> None:
    host = ScriptedHost(hosts, {path: head + chunked(*pieces)}, close)
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
