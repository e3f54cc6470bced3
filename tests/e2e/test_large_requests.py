"""A large request goes to its host piece by piece, whatever becomes of either side meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.clients import Http1Client
from tests.e2e.harness import PATIENCE, Hosts, listing_host, report, running_proxy, wait_until
from tests.e2e.scripted import DONE, NDJSON, chunked

SIZE = 20 * 1024 * 1024
BODY = {"model": "m", "prompt": "x" * SIZE}


def test_it_arrives_as_it_was_sent(tmp_path: Path, hosts: Hosts) -> None:
    digests: list[str] = []

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        digests.append(hashlib.sha256(await reader.readexactly(length)).hexdigest())
        writer.write(NDJSON + chunked(DONE) + b"0\r\n\r\n")

    host = listing_host(hosts, receive)
    content = json.dumps(BODY).encode()
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        for _ in range(2):
            assert proxy.http.post("/api/generate", content=content).content == DONE
    host.stop()
    assert digests == [hashlib.sha256(content).hexdigest()] * 2


def test_a_host_that_answers_before_it_has_read_all_is_heard(tmp_path: Path, hosts: Hosts) -> None:
    refusal = b'{"error":"the prompt is too long"}'

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await reader.readexactly(1000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(refusal), refusal))
        await reader.readexactly(length - 1000)

    host = listing_host(hosts, receive)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        for _ in range(2):
            answer = proxy.http.post("/api/generate", json=BODY)
            assert (answer.status_code, answer.content) == (400, refusal)
    host.stop()


def test_a_host_that_goes_away_in_the_middle_is_replaced(tmp_path: Path, hosts: Hosts) -> None:
    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await reader.readexactly(1000)
        writer.transport.abort()

    async def receive_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await reader.readexactly(length)
        writer.write(NDJSON + chunked(DONE) + b"0\r\n\r\n")

    bad, good = listing_host(hosts, receive), listing_host(hosts, receive_all)
    agents = f"balancer_agents=bad={bad.url},good={good.url}"
    with running_proxy(tmp_path, "--set", agents, "--set", "balancer_mode=roundrobin") as proxy:
        proxy.wait_online("bad", "good")
        for _ in range(2):
            answer = proxy.http.post("/api/generate", json=BODY)
            assert (answer.status_code, answer.headers["X-Balancer-Agent"]) == (200, "good")
    bad.stop()
    good.stop()


def test_a_host_that_takes_no_more_of_it_is_replaced_and_nothing_is_left(tmp_path: Path, hosts: Hosts) -> None:
    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await asyncio.Event().wait()  # no more is read than fits into buffers

    async def receive_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await reader.readexactly(length)
        writer.write(NDJSON + chunked(DONE) + b"0\r\n\r\n")

    bad, good = listing_host(hosts, receive), listing_host(hosts, receive_all)
    agents = f"balancer_agents=bad={bad.url},good={good.url}"
    options = ("--set", "balancer_mode=roundrobin", "--set", "balancer_response_timeout=600")
    with running_proxy(tmp_path, "--set", agents, *options) as proxy:
        proxy.wait_online("bad", "good")
        proxy.report("bad", models=["m"])
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(proxy.http.post, "/api/generate", json=BODY) for _ in range(2)]
            wait_until(lambda: proxy.agents()["bad"]["in_flight"] == 1, "the host has a part of it")
            wait_until(lambda: any(each.done() for each in asked), "the other is served")
            proxy.control("POST", "/api/agents/bad/metrics", report(ollama_ok=False))
            for each in asked:
                assert each.result().headers["X-Balancer-Agent"] == "good"
        assert proxy.agents()["bad"]["in_flight"] == 0
        wait_until(lambda: proxy.introspect()["kept_contexts"] == 0, "nothing is left")
    bad.stop()
    good.stop()


def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(tmp_path: Path, hosts: Hosts) -> None:
    begun, go_on, cut = threading.Event(), threading.Event(), threading.Event()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        begun.set()
        await asyncio.to_thread(go_on.wait, PATIENCE)  # meanwhile no more is read than fits into buffers
        try:
            await reader.readexactly(length)
        except asyncio.IncompleteReadError:
            cut.set()

    host = listing_host(hosts, receive)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        client = Http1Client(proxy)
        client.send("/api/generate", BODY)
        wait_until(begun.is_set, "the host has a part of it")
        client.leave()
        wait_until(lambda: proxy.introspect()["contexts"] == 0, "it is over")
        assert proxy.introspect()["in_flight"] == {"one": 0}
        go_on.set()
        wait_until(cut.is_set, "the host sees that the rest does not come")
    host.stop()
