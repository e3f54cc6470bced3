"""The access log and the ids of requests, through a real mitmdump."""

from __future__ import annotations

import json
import socket
import ssl
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_balancer.core.access import Key, Right
from ollama_balancer.simulator.answers import Answer
from ollama_balancer.simulator.timing import Timing
from ollama_balancer.storage.keys import FILE_NAME, KeyStore

from .harness import TOKEN, Hosts, Proxy, refused_start, running_proxy, wait_until
from .web import running_mitmweb

pytestmark = pytest.mark.e2e

SLOW = Timing(load=0, prefill_rate=1e6, decode_rate=20, output_tokens=1_000_000)
PROMPT = "nobody is to read this"


class OnlyHttp2(ssl.SSLContext):
    """For httpx, which offers HTTP/1.1 first."""

    def __new__(cls) -> OnlyHttp2:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self) -> None:
        self.check_hostname = False
        self.verify_mode = ssl.CERT_NONE

    def set_alpn_protocols(self, alpn_protocols: object) -> None:
        super().set_alpn_protocols(["h2"])


def logged(path: Path) -> list[dict[str, Any]]:
    """All lines that are whole."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def entry(path: Path, request_id: str) -> dict[str, Any]:
    """The line of that request, of which there is one."""

    def found() -> list[dict[str, Any]]:
        return [line for line in logged(path) if line["request_id"] == request_id]

    [line] = wait_until(found, f"the log has {request_id}")
    return line


def generate(proxy: Proxy, request_id: str, secret: str | None = TOKEN, **fields: Any) -> httpx.Response:
    headers = {"X-Request-Id": request_id} | ({"Authorization": f"Bearer {secret}"} if secret else {})
    body = {"model": "Llama3.2", "prompt": PROMPT, "stream": False} | fields
    return proxy.http.post("/api/generate?api_key=planted", json=body, headers=headers)


def test_each_request_has_its_line(tmp_path: Path, hosts: Hosts) -> None:
    log = tmp_path / "access.jsonl"
    a, b = hosts.start("a"), hosts.start("b")
    secret = KeyStore(tmp_path / FILE_NAME).add(Key("alice"))
    arguments = (f"balancer_agents=a={a.url},b={b.url}", f"balancer_access_log={log}", "balancer_mode=roundrobin")
    with running_proxy(tmp_path, *(word for each in arguments for word in ("--set", each))) as proxy:
        wait_until(lambda: proxy.control("GET", "/api/balancer").json()["agents"].get("online") == 2, "both are online")
        answer = generate(proxy, "served", secret)
        assert answer.headers["X-Request-Id"] == "served"
        line = entry(log, "served")
        assert (
            line.items()
            >= {
                "key": "alice",
                "client": "127.0.0.1",
                "method": "POST",
                "path": "/api/generate",
                "model": "Llama3.2",
                "served_model": "llama3.2:latest",
                "attempts": 1,
                "prompt_tokens": answer.json()["prompt_eval_count"],
                "output_tokens": answer.json()["eval_count"],
                "status": 200,
                "outcome": "succeeded",
                "bytes_out": len(answer.content),
            }.items()
        )
        assert line["agent"] == answer.headers["X-Balancer-Agent"]
        assert line["bytes_in"] > len(PROMPT)
        assert 0 < line["ttft_seconds"] <= line["total_seconds"] < 60
        assert line["time"].endswith("Z")

        assert generate(proxy, "no-key", None).status_code == 401
        assert generate(proxy, "wrong-key", "ob_" + "A" * 43).status_code == 401
        assert generate(proxy, "unknown-model", secret, model="no-such").status_code == 404
        for name, status in (("no-key", 401), ("wrong-key", 401), ("unknown-model", 404)):
            assert (entry(log, name)["status"], entry(log, name)["agent"]) == (status, None)
            assert entry(log, name)["bytes_out"] > 10
        assert entry(log, "wrong-key")["key"] is None
    text = log.read_text()
    assert all(each not in text for each in (PROMPT, secret, TOKEN, "planted", "?"))
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert [line for line in logged(log) if not line["path"].startswith("/api/generate")] == []


def test_a_failed_over_and_an_aborted_request_have_their_lines(tmp_path: Path, hosts: Hosts) -> None:
    log = tmp_path / "access.jsonl"
    a, b = hosts.start("a", timing=SLOW), hosts.start("b", timing=SLOW)
    arguments = (f"balancer_agents=a={a.url},b={b.url}", f"balancer_access_log={log}", "balancer_mode=roundrobin")
    with running_proxy(tmp_path, *(word for each in arguments for word in ("--set", each))) as proxy:
        proxy.wait_online("a", "b")
        a.faults.reset_before_head = True
        body = {"model": "llama3.2", "prompt": PROMPT}
        headers = {"X-Request-Id": "aborted", "X-Balancer-Agent": "b"}
        with httpx.stream("POST", f"{proxy.url}/api/generate", json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            next(lines)
            next(lines)
        line = entry(log, "aborted")
        assert (line["outcome"], line["agent"], line["status"]) == ("cancelled", "b", None)
        assert line["output_tokens"] >= 1
        assert line["bytes_out"] > 0

        def failed_over() -> bool:
            answer = generate(proxy, "failed-over", options={"num_predict": 1})
            return answer.headers["X-Balancer-Attempts"] == "2"

        wait_until(failed_over, "a request goes to the broken host first")
        wait_until(lambda: [each for each in logged(log) if each["attempts"] == 2], "the line")
        [line] = [each for each in logged(log) if each["attempts"] == 2]
        assert (line["agent"], line["status"], line["outcome"]) == ("b", 200, "succeeded")


def test_the_log_is_rotated_and_changed_live(tmp_path: Path, hosts: Hosts) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    host = hosts.start("a")
    arguments = ("--set", f"balancer_agents=a={host.url}", "--set", f"balancer_access_log={first}")
    with running_mitmweb(tmp_path, *arguments) as (proxy, web):
        proxy.wait_online("a")
        generate(proxy, "one")
        entry(first, "one")
        with first.open("a") as file:
            file.truncate(64 * 1024 * 1024)  # a hole, which takes no disk
        generate(proxy, "two")
        wait_until(first.with_name("first.jsonl.1").exists, "the full file is put away")
        entry(first, "two")
        assert first.with_name("first.jsonl.1").stat().st_size == 64 * 1024 * 1024
        wrong = web.http.put("/options", json={"balancer_access_log": str(tmp_path / "no-such" / "file")})
        assert wrong.status_code == 400
        assert "balancer_access_log" in wrong.text
        generate(proxy, "three")
        entry(first, "three")
        assert web.http.put("/options", json={"balancer_access_log": str(second)}).status_code == 200
        generate(proxy, "four")
        entry(second, "four")
        assert web.http.put("/options", json={"balancer_access_log": ""}).status_code == 200
        assert generate(proxy, "five").status_code == 200
    assert [line["request_id"] for line in logged(first) + logged(second)] == ["two", "three", "four"]


def test_a_path_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path, tmp_path / "no-such" / "file", tmp_path / "link"):
        status, said = refused_start(tmp_path, "--set", f"balancer_access_log={path}")
        assert status != 0
        assert f"balancer_access_log: {path} cannot be written" in said
        assert "Traceback" not in said
    assert not (tmp_path / "elsewhere").exists()


def test_standard_output_gets_the_lines(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("a")
    arguments = ("--set", f"balancer_agents=a={host.url}", "--set", "balancer_access_log=-")
    with running_proxy(tmp_path, *arguments) as proxy:
        proxy.wait_online("a")
        generate(proxy, "shown")
        wait_until(lambda: '"request_id":"shown"' in proxy.log, "the line is shown")


def test_an_id_goes_to_the_host_and_back(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("a")
    secret = KeyStore(tmp_path / FILE_NAME).add(Key("alice", frozenset((Right.INFER, Right.MANAGE))))
    with running_mitmweb(tmp_path, "--set", f"balancer_agents=a={host.url}") as (proxy, web):
        wait_until(lambda: proxy.control("GET", "/api/balancer").json()["agents"].get("online") == 1, "it is online")

        def received(request_id: str) -> list[str]:
            ids = [[value for name, value in each.headers if name.lower() == "x-request-id"] for each in host.requests]
            return [each[0] for each in ids if each == [request_id]]

        for secure in (False, True):
            url = proxy.url.replace("http:", "https:") if secure else proxy.url
            verify = OnlyHttp2() if secure else False
            with httpx.Client(base_url=url, verify=verify, http2=secure, timeout=30, trust_env=False) as client:
                key = {"x-api-key": secret}
                body = {"model": "llama3.2", "prompt": "hi", "stream": not secure}
                given = f"client-{secure}"
                answer = client.post("/api/generate", json=body, headers=key | {"X-Request-Id": given})
                assert answer.http_version == ("HTTP/2" if secure else "HTTP/1.1")
                assert answer.headers.get_list("X-Request-Id") == [given]
                assert received(given) == [given]
                [flow] = [
                    each for each in web.flows("/api/generate") if given in json.dumps(each["request"]["headers"])
                ]
                assert flow["response"]["headers"]

                made = client.post("/api/generate", json=body, headers=key | {"X-Request-Id": "not one"})
                [made_id] = made.headers.get_list("X-Request-Id")
                assert len(made_id) == 24
                assert received(made_id) == [made_id]
                calls = [
                    ("POST", "/api/show", {"model": "llama3.2"}, key),
                    ("POST", "/api/copy", {"source": "llama3.2", "destination": f"copy-{secure}"}, key),
                    ("GET", "/api/tags", None, key),
                    ("GET", "/no-such", None, key),
                    ("GET", "/health", None, {}),
                    ("GET", "/api/agents", None, {}),
                    ("GET", "/api/agents", None, {"Authorization": f"Bearer {TOKEN}"}),
                    ("GET", "/api/tags", None, {}),
                    ("GET", "/api/tags", None, {"Origin": "http://evil.example"} | key),
                ]
                for number, (method, path, body_of_call, headers) in enumerate(calls):
                    given = f"call-{secure}-{number}"
                    answer = client.request(method, path, json=body_of_call, headers=headers | {"X-Request-Id": given})
                    assert answer.headers.get_list("X-Request-Id") == [given], (method, path, answer.status_code)
                assert received(f"call-{secure}-1")
        for status in (200, 400):  # the host's own id does not count
            host.faults.answer = Answer(status, "application/json", b'{"error":"no"}', (("x-request-id", "theirs"),))
            answer = generate(proxy, "ours", secret)
            assert (answer.status_code, answer.headers.get_list("X-Request-Id")) == (status, ["ours"])


@pytest.mark.parametrize("request_", [b"GET /api/tags HTTP/3.0\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"])
def test_what_is_refused_before_it_is_read_has_an_id(tmp_path: Path, request_: bytes) -> None:
    with running_proxy(tmp_path) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        client.sendall(request_)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += client.recv(65536)
        assert answer.lower().count(b"x-request-id: ") == 1, answer
