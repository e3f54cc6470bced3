"""Credentials pass through to where they are meant for, and are found nowhere else."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from pathlib import Path

import pytest
from mitmproxy.io import FlowReader

from tests.e2e.harness import PATIENCE, Hosts, RawHost, refused_start, running_proxy, wait_until
from tests.e2e.web import running_mitmweb

TOKEN = "s3same-balancer-token"
FOR_AGENTS = {
    "Authorization": "Bearer s3same-authorization",
    "X-Api-Key": "s3same-x-api-key",
    "Api-Key": "s3same-api-key",
    "X-Auth-Token": "s3same-x-auth-token",
    "X-Auth": "s3same-x-auth",
    "X-Access-Key": "s3same-x-access-key",
    "Ocp-Apim-Subscription-Key": "s3same-subscription-key",
}
MISPLACED = {"User-Agent": f'curl "{TOKEN}"', "X-Note": f"x{TOKEN}x", "Referer": f"http://balancer/?t={TOKEN}"}
QUERY = "?api_key=s3same-query&stream=1&access%5Ftoken=s3same-second"
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
            path = head.split(b" ")[1].partition(b"?")[0]
            body = answers.get(path, b'{"models":[]}' if path == b"/api/ps" else b'{"response":"hi","done":true}')
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: id=s3same-set-cookie\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )

    raw = RawHost(hosts, serve)
    confdir, saved = tmp_path / "conf", tmp_path / "saved"
    confdir.mkdir()
    sets = (f"balancer_agents=one={raw.url}", "balancer_show_control=true", f"balancer_store={tmp_path / 'stored'}")
    arguments = [*(word for each in sets for word in ("--set", each)), "-w", str(saved)]
    # As an option it would be where all options are, for whoever knows mitmweb's password.
    with running_mitmweb(confdir, *arguments, token=None, env={"OLLAMA_BALANCER_TOKEN": TOKEN}) as (proxy, web):
        proxy.wait_online("one")
        body = {"model": "m", "prompt": "x", "stream": False}
        for path in ("/api/generate", "/v1/chat/completions", "/api/nothing"):
            answer = proxy.http.post(
                f"{path}{QUERY}&mine={TOKEN}", json=body, headers=FOR_AGENTS | FOR_NOBODY | MISPLACED
            )
            assert "s3same" not in answer.text + str(answer.headers)
        assert proxy.control("POST", "/api/agents/one/drain", token=TOKEN).status_code == 200
        assert proxy.control("POST", "/api/agents/one/resume", token="s3same-wrong-token").status_code == 401
        assert proxy.control("POST", "/api/agents/one/resume", token=TOKEN).status_code == 200
        code = proxy.control("POST", "/api/join-codes", token=TOKEN).json()["code"]
        joined = proxy.http.post("/api/join", json={"name": "two"}, headers={"Authorization": f"Bearer {code}"}).json()
        web.command("balancer.replay", "~u generate", "one")
        wait_until(lambda: len([f for f in web.flows("generate") if f["comment"].startswith("→ one")]) == 2, "again")

        received = b"".join(head for head in heads if b"POST /api/generate" in head)
        for name, value in FOR_AGENTS.items():
            assert f"{name}: {value}".lower().encode() in received.lower()
        assert f"POST /api/generate{QUERY}&mine=*** HTTP/1.1\r\n".encode() in received
        for value in (*FOR_NOBODY.values(), TOKEN):
            assert value.encode() not in received
        for head in (
            b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization s3same-no-colon\r\n\r\n",
            b"GET /s3same-line\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nm4rked name: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: m4rked-length\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: m4rked-coding\r\n\r\n",
            b"GET / s3same/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/s3same\r\nHost: x\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as client:
                client.sendall(head)
                assert client.recv(65536).startswith(b"HTTP/1.1 "), head
        errors = [json.dumps(flow.get("error")) for flow in web.flows()]
        assert "content-length" in str(errors)
        assert "m4rked" not in str(errors) + web.events() + proxy.log
        shown = [json.dumps(web.flows()), web.events(), proxy.log, json.dumps(web.http.get("/options").json())]
        shown += [proxy.http.get(path).text for path in ("/api/agents", "/api/agents/one", "/api/balancer")]
        for flow in web.flows("/api"):
            shown += [json.dumps(web.view(flow["id"], message)) for message in ("request", "response")]
        assert [line for text in shown for line in text.splitlines() if "s3same" in line] == []
        proxy.stop()
    assert "s3same" not in proxy.log
    for given in (code, joined["secret"]):
        assert given not in "".join(shown) + proxy.log
        assert given.encode() not in saved.read_bytes()
    with saved.open("rb") as file:
        assert len(list(FlowReader(file).stream())) >= 6
    assert len(list((tmp_path / "stored").iterdir())) == 1
    assert found(tmp_path) == []
    raw.stop()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, 0o644])
def test_a_file_of_flows_is_for_its_owner_alone(tmp_path: Path, hosts: Hosts, before: int | None) -> None:
    saved = tmp_path / "saved"
    if before is not None:
        saved.write_bytes(b"")
        saved.chmod(before)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={hosts.start('one').url}", "-w", f"+{saved}") as proxy:
        proxy.wait_online("one")
        assert mode(saved) == 0o600
        assert proxy.generate().status_code == 200


def test_a_token_that_others_could_read_is_theirs_no_more(tmp_path: Path) -> None:
    path = tmp_path / "ollama-balancer-token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    with running_proxy(tmp_path, token=None) as proxy:
        assert proxy.control("POST", "/api/agents", {"name": "a"}, token=TOKEN).status_code == 201
        assert f"{path} could be read by other users (mode 0644)" in proxy.log
        assert TOKEN not in proxy.log
    assert mode(path) == 0o600


def test_a_link_in_the_place_of_a_file_of_the_balancers_is_not_followed(tmp_path: Path) -> None:
    confdir, aim = tmp_path / "conf", tmp_path / "aim"
    confdir.mkdir()
    aim.write_text(TOKEN)
    for name in ("ollama-balancer-token", "ollama-balancer-agents.json", "ollama-balancer-history.jsonl"):
        (confdir / name).symlink_to(aim)
    with running_proxy(confdir) as proxy:
        proxy.register("a", "http://127.0.0.1:1")
        wait_until(lambda: "it is a symbolic link, which is not followed" in proxy.log, "said")
    assert aim.read_text() == TOKEN
    status, said = refused_start(confdir)
    assert status != 0
    assert "it is a symbolic link, which is not followed" in said
    assert aim.read_text() == TOKEN


@pytest.mark.parametrize(
    "entry", ["http://user:s3same@10.0.0.1", "gpu=http://user:s3same@h:1", "user:s3same@h", "http://h?key=s3same"]
)
def test_a_password_in_a_url_is_not_printed(tmp_path: Path, entry: str) -> None:
    status, said = refused_start(tmp_path, "--set", f"balancer_agents={entry}")
    assert status != 0
    assert "balancer_agents: " in said
    assert "s3same" not in said


def test_wrong_tokens_are_slowed_and_the_right_one_is_not(tmp_path: Path) -> None:
    with running_proxy(tmp_path) as proxy:
        drain = ("POST", "/api/agents/nobody/drain")
        origin = {"Origin": "http://evil.example"}
        codes = [proxy.control(*drain, token="a-wrong-token").status_code for _ in range(10)]
        assert codes == [401] * 10
        for _ in range(3):
            slowed = proxy.control(*drain, token="another-wrong-token")
            assert slowed.status_code == 429
            assert 0 < int(slowed.headers["Retry-After"]) <= 60
            assert f"try again in {slowed.headers['Retry-After']} s" in slowed.text
        wrong = origin | {"Authorization": "Bearer a-wrong-token"}
        assert proxy.http.get("/api/tags", headers=wrong).status_code == 429
        assert proxy.http.get("/api/tags", headers=origin).status_code == 403
        assert proxy.control(*drain, token=None).status_code == 401
        assert proxy.control(*drain).status_code == 404
        assert proxy.http.get("/api/agents", headers={"Authorization": "Bearer a-wrong-token"}).status_code == 200
