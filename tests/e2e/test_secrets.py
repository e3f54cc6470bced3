"""Credentials pass through to where they are meant for, and are found nowhere else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from mitmproxy.io import FlowReader

from tests.e2e.harness import Hosts, RawHost, wait_until
from tests.e2e.web import running_mitmweb

TOKEN = "s3same-balancer-token"
FOR_AGENTS = {
    "Authorization": "Bearer s3same-authorization",
    "X-Api-Key": "s3same-x-api-key",
    "Api-Key": "s3same-api-key",
    "X-Auth-Token": "s3same-x-auth-token",
}
FOR_NOBODY = {"Cookie": "session=s3same-cookie", "Proxy-Authorization": "Basic s3same-proxy-authorization"}


def found(folder: Path) -> list[str]:
    """The files in which a credential is."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and b"s3same" in path.read_bytes()]


def test_planted_credentials_are_in_no_flow_no_log_no_file_and_no_answer(tmp_path: Path, hosts: Hosts) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(lines[0][15:]) if lines else 0)
            heads.append(head)
            answers = {b"/api/version": b'{"version":"0.33.0"}', b"/api/tags": b'{"models":[{"name":"m:latest"}]}'}
            path = head.split(b" ")[1]
            body = answers.get(path, b'{"models":[]}' if path == b"/api/ps" else b'{"response":"hi","done":true}')
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: id=s3same-set-cookie\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )

    raw = RawHost(hosts, serve)
    confdir, saved = tmp_path / "conf", tmp_path / "saved"
    confdir.mkdir()
    arguments = ("--set", f"balancer_agents=one={raw.url}", "--set", "balancer_show_control=true", "-w", str(saved))
    # As an option it would be where all options are, for whoever knows mitmweb's password.
    with running_mitmweb(confdir, *arguments, token=None, env={"OLLAMA_BALANCER_TOKEN": TOKEN}) as (proxy, web):
        proxy.wait_online("one")
        body = {"model": "m", "prompt": "x", "stream": False}
        for path in ("/api/generate", "/v1/chat/completions", "/api/nothing"):
            answer = proxy.http.post(path, json=body, headers=FOR_AGENTS | FOR_NOBODY)
            assert "s3same" not in answer.text + str(answer.headers)
        assert proxy.control("POST", "/api/agents/one/drain", token=TOKEN).status_code == 200
        assert proxy.control("POST", "/api/agents/one/resume", token="s3same-wrong-token").status_code == 401
        assert proxy.control("POST", "/api/agents/one/resume", token=TOKEN).status_code == 200
        web.command("balancer.replay", "~u generate", "one")
        wait_until(lambda: len([f for f in web.flows("generate") if f["comment"].startswith("→ one")]) == 2, "again")

        received = b"".join(head for head in heads if b"POST /api/generate" in head)
        for name, value in FOR_AGENTS.items():
            assert f"{name}: {value}".lower().encode() in received.lower()
        for value in (*FOR_NOBODY.values(), TOKEN):
            assert value.encode() not in received
        shown = [json.dumps(web.flows()), web.events(), proxy.log, json.dumps(web.http.get("/options").json())]
        shown += [proxy.http.get(path).text for path in ("/api/agents", "/api/agents/one", "/api/balancer")]
        for flow in web.flows("/api"):
            shown += [json.dumps(web.view(flow["id"], message)) for message in ("request", "response")]
        assert [line for text in shown for line in text.splitlines() if "s3same" in line] == []
        proxy.stop()
    assert "s3same" not in proxy.log
    with saved.open("rb") as file:
        assert len(list(FlowReader(file).stream())) >= 6
    assert found(tmp_path) == []
    raw.stop()
