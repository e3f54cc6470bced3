"""Whoever is to blame for an answer, the client gets the best that the fleet has, and no host suffers for a caller."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from ollama_balancer.simulator import SimulatedOllama
from ollama_balancer.simulator.answers import Answer, api_error, v1_error
from tests.e2e.harness import Hosts, Proxy, RawHost, listing_host, running_proxy, wait_until

HTML = "text/html; charset=utf-8"
CRASHED = "an error was encountered while running the model: unexpected EOF"
TERMINATED = "llama-server process has terminated: exit status 1: error loading model: tensor data is cut"

SHORTER_AVOIDANCE = """
from ollama_balancer.core import liveness

liveness.REFUSED_SECONDS = 1.0
"""


def page(status: int, *headers: tuple[str, str]) -> Answer:
    return Answer(status, HTML, b"<html><body><h1>%d from a proxy</h1></body></html>" % status, headers)


def page_not_found() -> Answer:
    return Answer(404, "text/plain", b"404 page not found")


@contextmanager
def fleet_of(
    tmp_path: Path, hosts: Hosts, *names: str, script: str = ""
) -> Iterator[tuple[Proxy, list[SimulatedOllama]]]:
    """The first is preferred: its score is the lowest."""
    started = [hosts.start(name) for name in names]
    file = tmp_path / "script.py"
    file.write_text(script)
    agents = ",".join(f"{host.name}={host.url}" for host in started)
    options = ("--set", f"balancer_agents={agents}", "--set", "balancer_mode=metrics", "-s", str(file))
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online(*names)
        for number, name in enumerate(names):
            proxy.report(name, cpu=1 + 20 * number)
        assert proxy.generate().headers["X-Balancer-Agent"] == names[0]
        yield proxy, started


def went(response: httpx.Response) -> tuple[str, str]:
    assert response.status_code == 200, response.text
    return response.headers["X-Balancer-Agent"], response.headers["X-Balancer-Attempts"]


@pytest.mark.parametrize(
    "answer",
    [
        page(502),
        page(503),
        page(500),
        page(302, ("Location", "https://login.example/")),
        Answer(500, "", b""),
        api_error(500, CRASHED),
        v1_error(500, "model runner has unexpectedly stopped, this may be due to resource limitations"),
        Answer(400, "text/plain; charset=utf-8", b"Client sent an HTTP request to an HTTPS server.\n"),
    ],
    ids=lambda answer: f"{answer.status}-{answer.body[:20].decode()}",
)
def test_a_host_that_cannot_is_replaced_and_gets_a_strike(tmp_path: Path, hosts: Hosts, answer: Answer) -> None:
    with fleet_of(tmp_path, hosts, "bad", "good") as (proxy, [bad, _]):
        bad.faults.answer = answer
        assert went(proxy.generate()) == ("good", "2")
        assert proxy.agents()["bad"]["strikes"] == 1
        for _ in range(2):
            assert went(proxy.generate()) == ("good", "2")
        assert proxy.agents()["bad"]["status"] == "ejected"
        assert went(proxy.generate()) == ("good", "1")


@pytest.mark.parametrize("status", [429, 503, 409])
def test_a_busy_host_is_left_alone_until_it_says_and_gets_no_strike(tmp_path: Path, hosts: Hosts, status: int) -> None:
    with fleet_of(tmp_path, hosts, "bad", "good") as (proxy, [bad, _]):
        bad.faults.answer = Answer(status, "application/json", b'{"error":"later"}', (("Retry-After", "2"),))
        assert went(proxy.generate()) == ("good", "2")
        bad.faults.answer = None
        for _ in range(4):
            assert went(proxy.generate()) == ("good", "1")
        shown = proxy.agents()["bad"]
        assert (shown["strikes"], shown["status"]) == (0, "online")
        wait_until(lambda: went(proxy.generate()) == ("bad", "1"), "it gets requests again")
        assert '{agent="bad",reason="busy"} 1' in proxy.http.get("/metrics").text


def test_when_all_are_busy_the_caller_gets_the_shortest_wait(tmp_path: Path, hosts: Hosts) -> None:
    with fleet_of(tmp_path, hosts, "one", "two", "three") as (proxy, started):
        for host, seconds in zip(started, ("7", "3", "50"), strict=True):
            host.faults.answer = page(503, ("Retry-After", seconds))
        response = proxy.generate()
        assert (response.status_code, response.headers["Retry-After"]) == (503, "3")
        assert response.headers["X-Balancer-Agent"] == "two"
        assert response.headers["Content-Type"].startswith("application/json")
        assert "two: is busy (status 503)" in response.json()["error"]


def test_a_host_that_does_not_let_the_balancer_in_is_shown_and_avoided(tmp_path: Path, hosts: Hosts) -> None:
    with fleet_of(tmp_path, hosts, "bad", "good", script=SHORTER_AVOIDANCE) as (proxy, [bad, _]):
        bad.faults.answer = page(401, ("WWW-Authenticate", "Basic"))
        assert went(proxy.generate()) == ("good", "2")
        shown = proxy.agents()["bad"]
        assert (shown["status"], shown["strikes"]) == ("unauthorized", 0)
        assert "status 401" in shown["reason"]
        assert proxy.http.get("/api/balancer").json()["agents"]["unauthorized"] == 1
        assert "bad" in proxy.log and "refuses the balancer" in proxy.log
        bad.faults.answer = None
        wait_until(lambda: went(proxy.generate()) == ("bad", "1"), "it is tried again")
        assert proxy.agents()["bad"]["status"] == "online"


def test_a_caller_with_a_wrong_key_takes_the_host_from_nobody_else(tmp_path: Path, hosts: Hosts) -> None:
    with fleet_of(tmp_path, hosts, "only") as (proxy, [only]):
        only.faults.answer = v1_error(401, "Invalid API Key")
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="Invalid API Key"):
            client.chat.completions.create(model="llama3.2", messages=[{"role": "user", "content": "hi"}])
        only.faults.answer = None
        assert went(proxy.generate()) == ("only", "1")
        assert proxy.agents()["only"]["status"] == "online"


def test_a_route_that_an_older_host_lacks_is_remembered_and_its_models_stay(tmp_path: Path, hosts: Hosts) -> None:
    with fleet_of(tmp_path, hosts, "old", "new") as (proxy, [old, new]):
        old.faults.answer = page_not_found()
        for attempts in ("2", "1"):
            response = proxy.http.post("/v1/responses", json={"model": "llama3.2", "input": "hi"})
            assert went(response) == ("new", attempts)
        old.faults.answer = None
        assert went(proxy.generate()) == ("old", "1")  # it has the others
        shown = proxy.agents()["old"]
        assert (shown["models"], shown["strikes"], shown["stats"]["failed"]) == (["llama3.2:latest"], 0, 0)
        old.faults.answer = new.faults.answer = Answer(405, "text/plain", b"405 method not allowed")
        messages = [{"role": "user", "content": "hi"}]
        response = proxy.http.post("/v1/messages", json={"model": "llama3.2", "max_tokens": 9, "messages": messages})
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "not_found_error"
        assert proxy.agents()["old"]["models"] == ["llama3.2:latest"]


def old_server(model: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    """One that has no route for a single model of /v1/models, as servers before 0.3."""
    known = {
        "/api/version": b'{"version":"0.2.8"}',
        "/api/tags": json.dumps({"models": [{"name": model}]}).encode(),
        "/api/ps": b'{"models":[]}',
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = known.get(head.split()[1].decode())
            status, kind = (b"200 OK", b"application/json") if body else (b"404 Not Found", b"text/plain")
            body = body or b"404 page not found"
            fields = b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
            writer.write(b"HTTP/1.1 %s\r\n%s%s" % (status, fields, body))

    return serve


def test_looking_a_model_up_on_an_old_host_does_not_delete_it(tmp_path: Path, hosts: Hosts) -> None:
    old = RawHost(hosts, old_server("llama3.2:latest"))
    try:
        with running_proxy(tmp_path, "--set", f"balancer_agents=old={old.url}") as proxy:
            proxy.wait_online("old")
            response = proxy.http.get("/v1/models/llama3.2")
            assert response.status_code == 404
            assert "does not have /v1/models/llama3.2 (status 404)" in response.json()["error"]["message"]
            assert proxy.agents()["old"]["models"] == ["llama3.2:latest"]
            assert [model["name"] for model in proxy.http.get("/api/tags").json()["models"]] == ["llama3.2:latest"]
    finally:
        old.stop()


BAD_IMAGE = "Failed to create new sequence: failed to process inputs: image: unknown format"


@pytest.mark.parametrize(
    "answer",
    [
        api_error(400, "Failed to load image or audio file"),
        api_error(500, BAD_IMAGE),
        api_error(500, 'template: :1:2: executing "" at <.Nope>: can\'t evaluate field Nope'),
        api_error(501, "this model does not support embeddings"),
    ],
    ids=lambda answer: str(json.loads(answer.body)["error"])[:20],
)
def test_sixteen_prompts_that_are_their_callers_fault_hurt_no_host(
    tmp_path: Path, hosts: Hosts, answer: Answer
) -> None:
    with fleet_of(tmp_path, hosts, "one", "two") as (proxy, started):
        for host in started:
            host.faults.answer = answer
        image = base64.b64encode(b"no image").decode()
        for _ in range(16):
            response = proxy.generate(images=[image])
            assert (response.status_code, response.content) == (answer.status, answer.body)
            assert response.headers["X-Balancer-Attempts"] == "1"
        agents = proxy.agents().values()
        assert [(agent["status"], agent["strikes"]) for agent in agents] == [("online", 0)] * 2


def answering(status: bytes, kind: bytes, body: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    """Answers inference so, and serves its lists."""
    lists = {b"/api/version": b'{"version":"0.33.0"}', b"/api/tags": b'{"models":[{"name":"m"}]}'}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, *_ = head.split()
            if method == b"POST":
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)
                answer = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body))
                writer.write(answer + body)
                continue
            told = lists.get(path, b"{}")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(told))
            writer.write(told)

    return serve


@pytest.mark.parametrize(("message", "strikes"), [(BAD_IMAGE, 0), (CRASHED, 1)])
def test_an_error_line_in_a_stream_is_blamed_on_whom_it_concerns(
    tmp_path: Path, hosts: Hosts, message: str, strikes: int
) -> None:
    lines = json.dumps({"model": "m", "response": "a", "done": False}) + "\n" + json.dumps({"error": message}) + "\n"
    raw = RawHost(hosts, answering(b"200 OK", b"application/x-ndjson", lines.encode()))
    try:
        with running_proxy(tmp_path, "--set", f"balancer_agents=raw={raw.url}") as proxy:
            proxy.wait_online("raw")
            response = proxy.http.post("/api/generate", json={"model": "m", "prompt": "hi"})
            assert json.loads(response.text.splitlines()[-1]) == {"error": message}
            wait_until(lambda: proxy.agents()["raw"]["strikes"] == strikes, "it is judged")
            assert proxy.agents()["raw"]["stats"]["failed"] == 1
    finally:
        raw.stop()


def test_a_page_of_a_proxy_reaches_no_client(tmp_path: Path, hosts: Hosts) -> None:
    with fleet_of(tmp_path, hosts, "one", "two") as (proxy, started):
        for host in started:
            host.faults.answer = page(413)
        response = proxy.generate()
        assert response.status_code == 413
        assert response.json()["error"].startswith("413 ")
        for host in started:
            host.faults.answer = page(502)
        with pytest.raises(openai.InternalServerError, match="one: status 502; two: status 502"):
            openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0).completions.create(
                model="llama3.2", prompt="hi"
            )
        claude = anthropic.Anthropic(base_url=proxy.url, api_key="x", max_retries=0)
        with pytest.raises(anthropic.InternalServerError) as caught:
            claude.messages.create(model="llama3.2", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["error"]["type"] == "api_error"


def test_a_page_that_a_host_answers_to_a_call_about_models_reaches_no_client(tmp_path: Path, hosts: Hosts) -> None:
    with fleet_of(tmp_path, hosts, "one", "two") as (proxy, started):
        for status, body in ((502, {"model": "new"}), (413, {"source": "llama3.2", "destination": "new"})):
            for host in started:
                host.faults.answer = page(status)
            path = "/api/pull" if status == 502 else "/api/copy"
            for headers in ({}, {"X-Balancer-Agent": "two"}):
                response = proxy.http.post(path, json=body, headers=headers)
                assert response.status_code == status
                assert f"status {status}" in response.json()["error"]


LONG = 300_000


@pytest.mark.parametrize("slow", [False, True])
def test_a_long_or_slow_answer_that_is_the_callers_fault_comes_whole(tmp_path: Path, hosts: Hosts, slow: bool) -> None:
    body = json.dumps({"error": "the prompt is not good: " + "x" * LONG}).encode()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await reader.readexactly(length)
        kind = b"Content-Type: application/json"
        writer.write(b"HTTP/1.1 400 Bad Request\r\n%s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)))
        writer.write(body[:1000])
        await writer.drain()
        if slow:
            await asyncio.sleep(0.5)  # longer than the proxy waits for the whole of it
        writer.write(body[1000:])

    script = tmp_path / "hasty.py"
    script.write_text("from ollama_balancer.mitm import stream\nstream.REFUSAL_SECONDS = 0.1\n")
    raw = listing_host(hosts, receive)
    try:
        with running_proxy(tmp_path, "--set", f"balancer_agents=raw={raw.url}", "-s", str(script)) as proxy:
            proxy.wait_online("raw")
            for _ in range(2):
                response = proxy.generate("m")
                assert (response.status_code, response.content) == (400, body)
            assert proxy.agents()["raw"]["strikes"] == 0
            wait_until(lambda: proxy.agents()["raw"]["in_flight"] == 0, "nothing is left")
    finally:
        raw.stop()


def test_a_host_whose_refusal_does_not_end_is_replaced(tmp_path: Path, hosts: Hosts) -> None:
    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 1000\r\n\r\nto be continued")

    good = hosts.start("good")
    script = tmp_path / "hasty.py"
    script.write_text("from ollama_balancer.mitm import stream\nstream.REFUSAL_SECONDS = 0.1\n")
    raw = listing_host(hosts, receive, "llama3.2")
    agents = f"balancer_agents=raw={raw.url},good={good.url}"
    try:
        with running_proxy(tmp_path, "--set", agents, "--set", "balancer_mode=metrics", "-s", str(script)) as proxy:
            proxy.wait_online("raw", "good")
            proxy.report("raw", cpu=1)
            proxy.report("good", cpu=60)
            assert went(proxy.generate()) == ("good", "2")
            alone = proxy.generate(headers={"X-Balancer-Agent": "raw"})
            assert (alone.status_code, alone.json()["error"]) == (502, "no agent could answer (raw: status 502)")
    finally:
        raw.stop()


# Models that cannot be loaded


def test_a_model_that_cannot_be_loaded_is_tried_on_one_other_host_and_hurts_none(tmp_path: Path, hosts: Hosts) -> None:
    names = ("a", "b", "c", "d")
    with fleet_of(tmp_path, hosts, *names) as (proxy, started):
        for host in started:
            host.faults.answer = api_error(500, TERMINATED)
        tried_before = [len([r for r in host.requests if r.inference]) for host in started]

        def tried() -> list[int]:
            pairs = zip(started, tried_before, strict=True)
            return [len([r for r in host.requests if r.inference]) - before for host, before in pairs]

        response = proxy.generate()
        assert (response.status_code, response.json()) == (500, {"error": TERMINATED})
        assert response.headers["X-Balancer-Attempts"] == "2"
        assert tried() == [1, 1, 0, 0]
        assert proxy.generate().status_code == 500
        assert tried() == [1, 1, 1, 1]  # the others, of which it is not known yet
        assert (
            proxy.generate().headers["X-Balancer-Attempts"] == "1"
        )  # all are known by now: one is asked for the words
        assert sum(tried()) == 5
        assert {(agent["status"], agent["strikes"]) for agent in proxy.agents().values()} == {("online", 0)}


def test_who_could_not_load_it_is_avoided_for_that_model_with_those_options_alone(tmp_path: Path, hosts: Hosts) -> None:
    with fleet_of(tmp_path, hosts, "small", "large") as (proxy, [small, _]):
        small.faults.answer = api_error(500, "model requires more system memory (40.1 GiB) than is available (8.0 GiB)")
        assert went(proxy.generate(options={"num_ctx": 131072})) == ("large", "2")
        small.faults.answer = None
        for _ in range(3):
            assert went(proxy.generate(options={"num_ctx": 131072})) == ("large", "1")
        assert went(proxy.generate(options={"num_ctx": 2048})) == ("small", "1")
        assert went(proxy.generate()) == ("small", "1")
        proxy.control("POST", "/api/agents/large/drain")
        assert went(proxy.generate(options={"num_ctx": 131072})) == ("small", "1")  # there is no other
        proxy.control("POST", "/api/agents/large/resume")
        assert went(proxy.generate(options={"num_ctx": 131072})) == ("small", "1")  # it has loaded it after all


# Interim answers


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.usefixtures("either_way")
def test_interim_answers_are_skipped_and_the_request_runs_once(tmp_path: Path, hosts: Hosts, stream: bool) -> None:
    with fleet_of(tmp_path, hosts, "one", "two") as (proxy, [one, two]):
        one.faults.interim = (100, 102, 103, 103)
        for _ in range(3):  # over one connection
            response = proxy.generate(stream=stream)
            assert went(response) == ("one", "1")
            assert json.loads(response.text.splitlines()[-1])["done"] is True
            assert "X-Interim" not in response.headers
        assert (one.counts["succeeded"], two.counts["succeeded"]) == (4, 0)
        one.faults.answer = api_error(400, "no")
        assert proxy.generate(stream=stream).json() == {"error": "no"}


def test_interim_answers_come_in_any_pieces(tmp_path: Path, hosts: Hosts) -> None:
    body = b'{"model":"m","response":"a","done":true}'
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    whole = interim * 2 + b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    sizes = iter((1, 7, 13, len(interim) - 1, len(interim), len(interim) + 5, len(whole)))

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await reader.readexactly(length)
        size = next(sizes)
        for start in range(0, len(whole), size):
            writer.write(whole[start : start + size])
            await writer.drain()
            await asyncio.sleep(0.002)  # else several pieces come as one
        writer.write(body)

    raw = listing_host(hosts, receive)
    try:
        with running_proxy(tmp_path, "--set", f"balancer_agents=raw={raw.url}") as proxy:
            proxy.wait_online("raw")
            for _ in range(7):
                assert proxy.generate("m").content == body
            assert proxy.agents()["raw"]["stats"]["failed"] == 0
    finally:
        raw.stop()


@pytest.mark.parametrize("interim", [(101,), (102,) * 101])
def test_a_host_that_changes_the_protocol_or_never_comes_to_the_point_is_replaced(
    tmp_path: Path, hosts: Hosts, interim: tuple[int, ...]
) -> None:
    with fleet_of(tmp_path, hosts, "one", "two") as (proxy, [one, _]):
        one.faults.interim = interim
        assert went(proxy.generate()) == ("two", "2")
        assert proxy.agents()["one"]["strikes"] == 1
