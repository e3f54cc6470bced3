"""Answers are passed on as they arrive, and can be read in the flow afterwards."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader

from ollama_balancer.simulator import Timing
from tests.e2e.harness import PATIENCE, QUICK, Hosts, RawHost, running_proxy, wait_until

CHUNKS = [
    b'{"model":"m","created_at":"2026-01-01T00:00:00Z","response":"Hel","done":false}\n',
    b'{"model":"m","created_at":"2026-01-01T00:00:00Z","response":"lo","done":false}\n',
    b'{"model":"m","created_at":"2026-01-01T00:00:00Z","response":"","done":true,"eval_count":20,"eval_duration":10000000}\n',
]


def balanced_flows(file: Path) -> list[http.HTTPFlow]:
    with file.open("rb") as f:
        flows = [flow for flow in FlowReader(f).stream() if isinstance(flow, http.HTTPFlow)]
    return [flow for flow in flows if "balancer" in flow.metadata]


def answering_host(
    hosts: Hosts, gates: list[threading.Event] | None = None, seen: list[bytes] | None = None
) -> RawHost:
    """A host that sends `CHUNKS`, each (but the first) when its gate opens, and keeps the requests it saw."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
            )
            body = await reader.readexactly(length)
            if seen is not None and not head.startswith(b"GET"):
                seen.append(head + body)
            if head.startswith(b"GET"):
                text = b'{"version":"1.0"}' if b"/api/version" in head else b'{"models":[{"name":"m"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
                continue
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nKeep-Alive: timeout=5\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            for i, chunk in enumerate(CHUNKS):
                if gates and i:
                    await asyncio.to_thread(gates[i - 1].wait, PATIENCE)
                writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return RawHost(hosts, serve)


@pytest.mark.usefixtures("either_way")
def test_each_chunk_reaches_the_client_when_the_agent_sends_it_byte_for_byte(tmp_path: Path, hosts: Hosts) -> None:
    gates = [threading.Event(), threading.Event()]
    host = answering_host(hosts, gates)
    with running_proxy(tmp_path, "--set", f"balancer_agents=raw={host.url}") as proxy:
        proxy.wait_online("raw")
        with proxy.http.stream("POST", "/api/generate", json={"model": "m", "prompt": "x"}) as response:
            pieces = response.iter_raw()
            assert next(pieces) == CHUNKS[0]
            assert not gates[0].is_set()
            gates[0].set()
            assert next(pieces) == CHUNKS[1]
            gates[1].set()
            assert next(pieces) == CHUNKS[2]
            assert list(pieces) == []
            assert response.headers["X-Balancer-Agent"] == "raw"
            assert response.headers["X-Balancer-Attempts"] == "1"
            assert "keep-alive" not in response.headers
    host.stop()


@pytest.mark.usefixtures("either_way")
def test_the_streamed_text_and_the_decision_are_in_the_flow(tmp_path: Path, hosts: Hosts) -> None:
    host = answering_host(hosts)
    saved = tmp_path / "flows"
    with running_proxy(tmp_path, "--set", f"balancer_agents=raw={host.url}", "-w", str(saved)) as proxy:
        proxy.wait_online("raw")
        assert proxy.http.post("/api/generate", json={"model": "m", "prompt": "x"}).content == b"".join(CHUNKS)
        wait_until(lambda: proxy.agents()["raw"]["stats"]["succeeded"] == 1, "the request is counted")
        assert proxy.agents()["raw"]["stats"]["tokens_per_second"] == {"m:latest": 2000.0}
    host.stop()
    (flow,) = balanced_flows(saved)
    assert flow.response
    assert flow.response.content == b"".join(CHUNKS)
    assert flow.comment.startswith("→ raw · m · “x” · 127.0.0.1 · 2000 tok/s · TTFT ")
    assert "\n" not in flow.comment
    record = flow.metadata["balancer"]
    json.dumps(record)
    assert record["agent"] == "raw"
    (option,) = record["options"]
    assert option["agent"] == "raw"
    assert option["cost"] == pytest.approx(sum(option[k] for k in ("wait", "load", "prefill", "answer", "harm")))
    assert record["outcome"] == "succeeded"
    assert record["attempts"] == 1


def test_what_the_agent_gets_is_its_own_host_and_no_hop_by_hop_header_and_no_credential(
    tmp_path: Path, hosts: Hosts
) -> None:
    seen: list[bytes] = []
    host = answering_host(hosts, seen=seen)
    with running_proxy(tmp_path, "--set", f"balancer_agents=raw={host.url}") as proxy:
        proxy.wait_online("raw")
        headers = {
            "Origin": "http://localhost:3000",
            "Authorization": "Bearer a-token-for-tests",
            "X-Balancer-Agent": "raw",
            "Connection": "keep-alive, X-Private",
            "X-Private": "hop",
            "TE": "trailers",
            "Upgrade": "websocket",
            "X-Kept": "yes",
        }

        def body() -> object:
            yield b'{"model": "m",'
            yield b'"prompt": "x"}'

        response = proxy.http.post("/api/generate", content=body(), headers=headers)  # type: ignore[arg-type]
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    host.stop()
    (request,) = seen
    head, _, sent = request.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert sent == b'{"model": "m","prompt": "x"}'
    assert b"host: " + host.url.removeprefix("http://").encode() in lines
    assert b"content-length: %d" % len(sent) in lines
    assert b"x-kept: yes" in lines
    names = {line.partition(b":")[0] for line in lines[1:]}
    unwanted = {b"origin", b"authorization", b"x-balancer-agent", b"connection", b"x-private", b"te", b"upgrade"}
    assert names & (unwanted | {b"transfer-encoding"}) == set()


def test_pages_of_foreign_origins_are_refused_as_ollama_refuses_them(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        body = {"model": "llama3.2", "prompt": "x"}
        refused = proxy.http.post("/api/generate", json=body, headers={"Origin": "https://evil.example.com"})
        assert (refused.status_code, refused.content) == (403, b"")
        preflight = proxy.http.options(
            "/api/chat",
            headers={"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"},
        )
        assert preflight.status_code == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert preflight.headers["Allow"] == "POST"
        assert sum(host.counts.values()) == 0


@pytest.mark.usefixtures("either_way")
def test_a_client_that_leaves_cancels_its_request_on_the_agent(tmp_path: Path, hosts: Hosts) -> None:
    slow = Timing(load=0.0, prefill_rate=1e6, decode_rate=20, output_tokens=100_000, num_parallel=4)
    host = hosts.start("slow", timing=slow)
    with running_proxy(tmp_path, "--set", f"balancer_agents=slow={host.url}") as proxy:
        proxy.wait_online("slow")
        for leave_before_first_byte in (False, True):
            host.faults.hang = leave_before_first_byte
            with httpx.Client(trust_env=False, verify=False) as client:
                request = client.build_request(
                    "POST", proxy.url + "/api/generate", json={"model": "llama3.2", "prompt": "x"}, timeout=0.5
                )
                if leave_before_first_byte:
                    try:
                        client.send(request)
                    except httpx.ReadTimeout:
                        pass
                    else:
                        raise AssertionError("the host was to hang")
                else:
                    response = client.send(request, stream=True)
                    next(response.iter_lines())
                    response.close()
            wait_until(lambda: proxy.agents()["slow"]["in_flight"] == 0, "the lease is given back")
            wait_until(lambda: host.in_flight == 0, "the agent's request is cancelled")
        wait_until(lambda: proxy.agents()["slow"]["stats"]["cancelled"] == 2, "both count as cancelled")
        assert proxy.agents()["slow"]["status"] == "online"


def test_a_client_that_goes_on_asking_keeps_few_connections_to_agents(tmp_path: Path, hosts: Hosts) -> None:
    agents = ",".join(f"a{i}={hosts.start(f'a{i}').url}" for i in range(12))
    with running_proxy(tmp_path, "--set", f"balancer_agents={agents}", "--set", "balancer_mode=roundrobin") as proxy:
        proxy.wait_online(*(f"a{i}" for i in range(12)))
        for _ in range(36):
            assert proxy.generate().headers["X-Balancer-Attempts"] == "1"
        assert 1 <= proxy.introspect()["servers"] <= 9
        assert {agent["stats"]["succeeded"] for agent in proxy.agents().values()} == {3}


def test_answers_of_few_tokens_are_left_out_of_the_speeds_that_are_shown(tmp_path: Path, hosts: Hosts) -> None:
    """One token takes a microsecond, by the server's figures, which was a million tokens per second."""
    host = hosts.start(timing=replace(QUICK, output_tokens=40))
    saved = tmp_path / "flows"
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}", "-w", str(saved)) as proxy:
        proxy.wait_online("one")
        for path in ("/api/generate", "/v1/completions"):
            for stream in (False, True):
                body = {"model": "llama3.2", "prompt": "x", "stream": stream, "max_tokens": 1}
                assert proxy.http.post(path, json=body | {"options": {"num_predict": 1}}).status_code == 200
        for count in (1, 9):
            proxy.generate(options={"num_predict": count})
        wait_until(lambda: proxy.agents()["one"]["stats"]["succeeded"] == 6, "they are counted")
        assert proxy.agents()["one"]["stats"]["tokens_per_second"] == {}
        assert proxy.http.get("/api/agents/one").json()["learned"].get("llama3.2:latest", {}).get("decode") in (
            None,
            {"value": 20.0, "observations": 0},
        )
        proxy.generate(options={"num_predict": 30})
        wait_until(lambda: proxy.agents()["one"]["stats"]["tokens_per_second"], "it is shown")
        speed = proxy.agents()["one"]["stats"]["tokens_per_second"]["llama3.2:latest"]
        assert 0 < speed <= 1000
    comments = [flow.comment for flow in balanced_flows(saved)]
    assert ["tok/s" in comment for comment in comments] == [False] * 6 + [True]
