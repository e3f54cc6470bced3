"""Models pulled, made, copied and deleted on all hosts at once, and files uploaded to all of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import ollama
import psutil
import pytest

from ollama_balancer.simulator import SimulatedOllama
from tests.e2e.harness import QUICK, Hosts, Proxy, RawHost, running_proxy, stream_lines, wait_until

NAMES = ("one", "two", "three")


class Fleet:
    """Three hosts behind one proxy for all tests here. Each test uses model names of its own."""

    def __init__(self, proxy: Proxy, hosts: Hosts) -> None:
        self.proxy = proxy
        self.hosts = hosts
        self.client = ollama.Client(proxy.url, trust_env=False)

    def __iter__(self) -> Iterator[SimulatedOllama]:
        return iter(self.hosts.all[:3])

    def __getitem__(self, name: str) -> SimulatedOllama:
        return self.hosts.all[NAMES.index(name)]

    def having(self, model: str) -> list[str]:
        return [host.name for host in self if f"{model}:latest" in [entry["name"] for entry in host.tag_entries()]]

    def listed(self) -> list[str | None]:
        return [model.model for model in self.client.list().models]

    def post(self, path: str, body: object, *, agent: str | None = None, method: str = "POST") -> httpx.Response:
        headers = {"X-Balancer-Agent": agent} if agent else {}
        return self.proxy.http.request(method, path, json=body, headers=headers)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    hosts = Hosts()
    try:
        agents = ",".join(f"{name}={hosts.start(name, 'base', f'only-{name}').url}" for name in NAMES)
        with running_proxy(tmp_path_factory.mktemp("conf"), "--set", f"balancer_agents={agents}") as proxy:
            proxy.wait_online(*NAMES)
            yield Fleet(proxy, hosts)
    finally:
        hosts.stop()


@pytest.fixture(autouse=True)
def _repaired(fleet: Fleet) -> Iterator[None]:
    yield
    for host in fleet:
        host.timing = QUICK
        host.registry.unpullable.clear()
        for fault in ("status", "cut_after_chunks", "end_without_done_after_chunks"):
            setattr(host.faults, fault, None)
    assert fleet.proxy.http.get("/health").status_code == 200
    wait_until(lambda: not any(agent["in_flight"] for agent in fleet.proxy.agents().values()), "all leases are back")


def test_a_pull_goes_to_all_hosts_and_is_one_stream_that_says_which(fleet: Fleet) -> None:
    lines = stream_lines(fleet.proxy, "/api/pull", {"model": "pulled"})
    assert fleet.having("pulled") == list(NAMES)
    assert lines[-1] == {"status": "success"}
    assert {line["agent"] for line in lines[:-1]} == set(NAMES)
    of_two = [line["status"] for line in lines if line.get("agent") == "two"]
    assert (of_two[0], of_two[-1]) == ("pulling manifest", "done")
    assert not any(line["status"] == "success" or "error" in line for line in lines[:-1])


def test_the_ollama_client_pulls_copies_creates_and_deletes_and_sees_it_at_once(fleet: Fleet) -> None:
    client = fleet.client
    progress = list(client.pull("p", stream=True))
    assert progress[-1].status == "success"
    assert any(step.total for step in progress)
    assert "p:latest" in fleet.listed()
    assert client.pull("q").status == "success"
    assert "q:latest" in fleet.listed()
    assert client.copy("q", "copied").status == "success"
    assert "copied:latest" in fleet.listed()
    assert client.create("made", from_="base", system="be brief").status == "success"
    assert [step.status for step in client.create("made2", from_="base", stream=True)][-1] == "success"
    assert {"made:latest", "made2:latest"} <= set(fleet.listed())
    assert client.show("made").details is not None
    assert client.generate("made", "hello").response
    for model in ("p", "q", "copied", "made", "made2"):
        assert fleet.having(model) == list(NAMES)
        assert client.delete(model).status == "success"
        assert f"{model}:latest" not in fleet.listed()
        assert fleet.having(model) == []
    with pytest.raises(ollama.ResponseError, match="model 'made' not found") as caught:
        client.generate("made", "hello")
    assert caught.value.status_code == 404


def test_a_host_that_cannot_pull_is_named_and_the_others_go_on(fleet: Fleet) -> None:
    fleet["two"].registry.unpullable.add("some")
    lines = stream_lines(fleet.proxy, "/api/pull", {"model": "some"})
    assert fleet.having("some") == ["one", "three"]
    assert list(lines[-1]) == ["error"]
    assert lines[-1]["error"].startswith("two: ")
    assert "2 other agents" in lines[-1]["error"]
    assert all("error" not in line for line in lines[:-1])
    with pytest.raises(ollama.ResponseError, match="two: "):
        fleet.client.pull("some")
    with pytest.raises(ollama.ResponseError, match="two: "):
        list(fleet.client.pull("some", stream=True))


def test_a_host_that_dies_while_it_pulls_is_named(fleet: Fleet) -> None:
    fleet["three"].faults.cut_after_chunks = 1
    lines = stream_lines(fleet.proxy, "/api/pull", {"model": "cut"})
    assert fleet.having("cut") == ["one", "two"]
    assert lines[-1]["error"].startswith("three: failed in the middle of its answer")
    fleet["three"].faults.cut_after_chunks = None
    fleet["three"].faults.end_without_done_after_chunks = 1
    lines = stream_lines(fleet.proxy, "/api/pull", {"model": "cut2"})
    assert lines[-1]["error"].startswith("three: the stream ended without its terminal event")


def test_a_host_that_refuses_is_an_error_for_what_comes_whole(fleet: Fleet) -> None:
    fleet["one"].faults.status = 500
    answer = fleet.post("/api/copy", {"source": "base", "destination": "half"})
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("one: ")
    assert fleet.having("half") == ["two", "three"]
    assert answer.headers["X-Balancer-Agent"] == "one, two, three"
    assert answer.headers["X-Balancer-Attempts"] == "3"


def test_hosts_that_do_not_have_the_model_are_no_failure_unless_none_has_it(fleet: Fleet) -> None:
    assert fleet.post("/api/copy", {"source": "only-one", "destination": "spread"}).status_code == 200
    assert fleet.having("spread") == ["one"]
    assert fleet.post("/api/delete", {"model": "spread"}, method="DELETE").status_code == 200
    gone = fleet.post("/api/delete", {"model": "spread"}, method="DELETE")
    assert (gone.status_code, gone.json()) == (404, {"error": "model 'spread' not found"})
    line = r"3 agents +spread +404  DELETE /api/delete\n {10}model 'spread' not found\n"
    wait_until(lambda: re.search(line, fleet.proxy.log), "its line says it once")
    alike = fleet.post("/api/create", {"model": "x"})
    assert (alike.status_code, alike.json()) == (400, {"error": "neither 'from' or 'files' was specified"})


def test_the_named_host_alone_is_managed_and_its_answer_is_untouched(fleet: Fleet) -> None:
    with fleet.proxy.http.stream(
        "POST", "/api/pull", json={"model": "mine"}, headers={"X-Balancer-Agent": "two"}
    ) as response:
        lines = [json.loads(line) for line in response.iter_lines()]
        assert response.headers["X-Balancer-Agent"] == "two"
    assert fleet.having("mine") == ["two"]
    assert lines[-1] == {"status": "success"}
    assert not any("agent" in line for line in lines)
    assert "mine:latest" in fleet.listed()
    assert (
        fleet.post("/api/generate", {"model": "mine", "prompt": "x", "stream": False}).headers["X-Balancer-Agent"]
        == "two"
    )


def test_each_host_sees_its_own_address_as_host(fleet: Fleet) -> None:
    assert fleet.post("/api/copy", {"source": "base", "destination": "hosted"}).status_code == 200
    assert fleet.proxy.http.head(f"/api/blobs/{digest_of(b'hosted')}").status_code == 404
    assert fleet.proxy.http.post(f"/api/blobs/{digest_of(b'hosted')}", content=b"hosted").status_code == 201
    gone = fleet.proxy.http.request("DELETE", "/api/delete", json={"model": "hosted"}, headers={"Host": "x"})
    assert gone.status_code == 200
    managed = ("/api/copy", "/api/blobs", "/api/delete")
    for host in fleet:
        seen = {r.path: dict(r.headers)["Host"] for r in host.requests if r.path.startswith(managed)}
        assert "/api/delete" in seen
        assert set(seen.values()) == {host.url.removeprefix("http://")}


def test_an_unload_goes_to_every_host_that_has_the_model(fleet: Fleet) -> None:
    for name in NAMES:
        assert fleet.post("/api/generate", {"model": "base", "prompt": "x", "stream": False}, agent=name).is_success
    assert all("base:latest" in host.loaded for host in fleet)
    answer = fleet.post("/api/generate", {"model": "base", "keep_alive": 0})
    assert answer.json()["done_reason"] == "unload"
    assert not any("base:latest" in host.loaded for host in fleet)
    assert [entry.name for entry in fleet.client.ps().models if entry.model == "base:latest"] == []


def test_what_is_loaded_and_unloaded_through_the_balancer_shows_at_once(fleet: Fleet) -> None:
    """With the real client, and with nobody else to tell: no probe and no report comes between."""
    client = fleet.client

    def loaded() -> list[str | None]:
        return [entry.model for entry in client.ps().models if entry.model == "only-two:latest"]

    for _ in range(3):
        assert client.generate("only-two", "").done_reason == "load"
        assert loaded() == ["only-two:latest"]
        assert client.generate("only-two", "", keep_alive=0).done_reason == "unload"
        assert loaded() == []
        assert [chunk.done for chunk in client.chat("only-two", [{"role": "user", "content": "x"}], stream=True)][-1]
        assert loaded() == ["only-two:latest"]
        assert client.chat("only-two", [{"role": "user", "content": "x"}], keep_alive="0s").done
        assert loaded() == []
        assert fleet.post("/api/generate", {"model": "only-two", "stream": False}, agent="two").is_success
        assert loaded() == ["only-two:latest"]
        assert fleet.post("/api/generate", {"model": "only-two", "keep_alive": 0}, agent="two").is_success
        assert loaded() == []
    assert "only-two:latest" not in fleet["two"].loaded


def test_a_model_loaded_on_two_hosts_is_one_entry_and_is_stopped_by_its_name_on_both(fleet: Fleet) -> None:
    for name in ("one", "two"):
        assert fleet.post("/api/generate", {"model": "base", "stream": False}, agent=name).is_success
    [entry] = [entry for entry in fleet.client.ps().models if entry.model == "base:latest"]
    assert entry.name == entry.model == "base:latest"
    [raw] = [each for each in fleet.proxy.http.get("/api/ps").json()["models"] if each["name"] == entry.name]
    assert sorted(raw["agent"].split(", ")) == ["one", "two"]
    assert raw["size"] == sum(each["size"] for each in raw["balancer"]["agents"])
    assert fleet.client.generate(entry.name, "", keep_alive=0).done_reason == "unload"
    assert not any("base:latest" in host.loaded for host in fleet)
    assert "base:latest" not in [each.model for each in fleet.client.ps().models]


def test_a_client_that_leaves_cancels_the_pull_on_all_hosts(fleet: Fleet) -> None:
    for host in fleet:
        host.timing = replace(QUICK, progress_pause=3600.0)
    body = b'{"model": "left"}'
    with socket.create_connection(("127.0.0.1", fleet.proxy.port)) as s:
        s.sendall(b"POST /api/pull HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert s.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert all(agent["in_flight"] == 1 for agent in fleet.proxy.agents().values())
    pulls = [[request for request in host.requests if request.path == "/api/pull"][-1] for host in fleet]
    wait_until(lambda: all(pull.outcome == "cancelled" for pull in pulls), "the hosts hear of it")
    wait_until(lambda: "fan-out" not in fleet.proxy.introspect()["tasks"], "nothing is left")
    assert fleet.having("left") == []


def test_what_is_managed_on_a_host_that_is_away_names_that_host(tmp_path: Path, hosts: Hosts) -> None:
    here, away = hosts.start("here", "base", "both"), hosts.start("away", "both", "far")
    agents = f"here={here.url},away={away.url}"
    with running_proxy(tmp_path, "--set", f"balancer_agents={agents}") as proxy:
        proxy.wait_online("here", "away")
        client = ollama.Client(proxy.url, trust_env=False)
        hosts.kill(away)
        proxy.generate("far", headers={"X-Balancer-Agent": "away"})
        wait_until(lambda: proxy.agents()["away"]["status"] == "offline", "it is offline")

        def refusal(call: Callable[[], object]) -> str:
            with pytest.raises(ollama.ResponseError) as caught:
                call()
            assert caught.value.status_code in (-1, 404 if "not found" in caught.value.error else 503)
            return re.sub(r"\(cannot connect: .*\)(?= and)|(?<=here: )[^;]*", "...", caught.value.error)

        offline, again = "away: it is offline ... and", "delete it again when it is back"
        here.registry.unpullable.add("far")
        assert refusal(lambda: client.delete("far")) == f"{offline} still has model 'far': {again}"
        both = f"{offline} still has model 'both': {again} (succeeded on 1 other agent)"
        assert refusal(lambda: client.delete("both")) == both
        assert [entry["name"] for entry in here.tag_entries()] == ["base:latest"]
        assert refusal(lambda: client.copy("far", "near")) == f"{offline} has model 'far'"
        made = f"here: ...; {offline} has model 'far'"
        assert refusal(lambda: list(client.create("near", from_="far", stream=True))) == made
        assert refusal(lambda: client.delete("nowhere")) == "model 'nowhere' not found"
        assert client.copy("base", "both").status == "success"
        assert client.copy("both", "third").status == "success"
        hosts.kill(here)
        proxy.generate("base", headers={"X-Balancer-Agent": "here"})
        wait_until(lambda: proxy.agents()["here"]["status"] == "offline", "it is offline")
        assert refusal(lambda: client.delete("far")) == f"{offline} still has model 'far': {again}"
        hosts.restart(away)
        proxy.wait_online("away")
        proxy.control("POST", "/api/agents/away/drain")
        assert refusal(lambda: client.delete("far")) == f"away: it is draining and still has model 'far': {again}"
        proxy.control("POST", "/api/agents/away/resume")
        assert client.delete("far").status == "success"
        assert [entry["name"] for entry in away.tag_entries()] == ["both:latest"]


# Files


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_file_is_there_only_when_all_hosts_have_it(fleet: Fleet) -> None:
    data = b"x" * 1_000_000
    path = f"/api/blobs/{digest_of(data)}"
    http = fleet.proxy.http
    assert http.head(path).status_code == 404
    assert http.post(path, content=data, headers={"X-Balancer-Agent": "one"}).status_code == 201
    assert http.head(path, headers={"X-Balancer-Agent": "one"}).status_code == 200
    assert http.head(path).status_code == 404
    assert http.post(path, content=data).status_code == 201
    assert http.head(path).status_code == 200
    assert http.post(path, content=data).status_code == 200
    assert [host.blobs[digest_of(data)] for host in fleet] == [len(data)] * 3
    wrong = http.post(f"/api/blobs/{digest_of(b'other')}", content=data)
    assert wrong.status_code == 400
    assert "digest mismatch" in wrong.json()["error"]
    assert http.head("/api/blobs/nonsense").status_code == 400


def test_the_client_creates_a_model_from_a_file(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"GGUF" * 10_000)
    digest = fleet.client.create_blob(file)
    assert all(digest in host.blobs for host in fleet)
    lines = stream_lines(fleet.proxy, "/api/create", {"model": "filed", "files": {"weights.gguf": digest}})
    assert lines[-1] == {"status": "success"}
    assert fleet.having("filed") == list(NAMES)


def test_a_file_of_50_mb_is_made_once_and_known_again(fleet: Fleet, tmp_path: Path) -> None:
    """As curl, ollama-python and the real client send it: without asking first whether it is there."""
    file = tmp_path / "weights.gguf"
    file.write_bytes(random.Random(50).randbytes(50_000_000))
    digest = digest_of(file.read_bytes())
    with file.open("rb") as data:
        first = fleet.proxy.http.post(f"/api/blobs/{digest}", content=data)
    assert (first.status_code, first.content) == (201, b"")
    for _ in range(2):
        with file.open("rb") as data:
            again = fleet.proxy.http.post(f"/api/blobs/{digest}", content=data)
        assert (again.status_code, again.content) == (200, b"")
        assert again.headers["X-Balancer-Agent"] == "one, two, three"
        assert fleet.client.create_blob(file) == digest
        created = fleet.client.create("again", files={"weights.gguf": digest})
        assert created.status == "success"
    asked = [[r.method for r in host.requests if r.path == f"/api/blobs/{digest}"] for host in fleet]
    assert asked == [["HEAD", "POST", "HEAD", "HEAD", "HEAD", "HEAD"]] * 3
    assert not [agent for agent in fleet.proxy.agents().values() if agent["in_flight"]]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_sends_a_file_twice(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(random.Random(51).randbytes(50_000_000))
    path = f"127.0.0.1:{fleet.proxy.port}/api/blobs/{digest_of(file.read_bytes())}"
    said = []
    for options in ([], [], ["-H", "Expect:"], ["-H", "Transfer-Encoding: chunked"], ["-k", "--http2"]):
        url = f"{'https' if '-k' in options else 'http'}://{path}"
        answer = subprocess.run(
            ["curl", "-s", "--noproxy", "*", "-w", "%{http_code}", *options, "-X", "POST", "-T", str(file), url],
            capture_output=True,
            check=True,
            timeout=60,
        )
        said.append(answer.stdout)
    assert said == [b"201", b"200", b"200", b"200", b"200"]
    wait_until(lambda: "fan-out" not in fleet.proxy.introspect()["tasks"], "nothing is left")


def test_only_hosts_that_lack_a_file_get_it(fleet: Fleet) -> None:
    data = random.Random(3).randbytes(3_000_000)
    path = f"/api/blobs/{digest_of(data)}"
    for name in ("one", "three"):
        assert fleet.proxy.http.post(path, content=data, headers={"X-Balancer-Agent": name}).status_code == 201
    assert fleet.proxy.http.post(path, content=data).status_code == 201
    sent = {host.name: [r.method for r in host.requests if r.path == path].count("POST") for host in fleet}
    assert sent == {"one": 1, "two": 1, "three": 1}


def test_a_client_that_waits_with_its_file_is_answered_where_all_have_it(fleet: Fleet) -> None:
    data = b"waits" * 100_000
    path = f"/api/blobs/{digest_of(data)}"
    assert fleet.proxy.http.post(path, content=data).status_code == 201
    for expect in ("", "Expect: 100-continue\r\n"):
        with socket.create_connection(("127.0.0.1", fleet.proxy.port), timeout=30) as s:
            s.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{expect}Content-Length: {len(data)}\r\n\r\n".encode())
            answer = HTTPResponse(s, method="POST")
            answer.begin()
            assert (answer.status, answer.headers["Connection"]) == (200, "close")
    wait_until(lambda: "fan-out" not in fleet.proxy.introspect()["tasks"], "nothing is left")


def test_a_client_that_waits_for_100_continue_gets_it_when_a_host_wants_its_file(fleet: Fleet) -> None:
    data = b"continue" * 100_000
    path = f"/api/blobs/{digest_of(data)}"
    with socket.create_connection(("127.0.0.1", fleet.proxy.port), timeout=30) as s:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(data)}\r\n\r\n"
        s.sendall(head.encode())
        assert s.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        s.sendall(data)
        answer = HTTPResponse(s, method="POST")
        answer.begin()
        assert answer.status == 201
    assert [host.blobs[digest_of(data)] for host in fleet] == [len(data)] * 3


@pytest.mark.parametrize("status", ["200 OK", "413 Request Entity Too Large"])
def test_a_host_that_answers_while_the_file_is_still_coming_has_answered(
    tmp_path: Path, hosts: Hosts, status: str
) -> None:
    """It closes at once: what is sent after that resets the connection."""

    async def answers_early(reader: Any, writer: Any) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = b'{"version":"1"}' if b"version" in head else b'{"models":[]}'
        if head.startswith(b"HEAD /api/blobs/"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n")
            return
        if b"/api/blobs/" in head:
            hosts_heard.append(head)
            body = b'{"error":"too large for the proxy"}' if status.startswith("413") else b""
            await reader.readexactly(100_000)
            answer = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            writer.write(answer % (status.encode(), len(body), body))
            return
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    hosts_heard: list[bytes] = []
    raw = RawHost(hosts, answers_early)
    good = hosts.start("good")
    data = random.Random(4).randbytes(20_000_000)
    with running_proxy(tmp_path, "--set", f"balancer_agents=good={good.url},raw={raw.url}") as proxy:
        proxy.wait_online("good", "raw")
        path = f"/api/blobs/{digest_of(data)}"
        for agent in (None, "raw"):
            headers = {"X-Balancer-Agent": agent} if agent else {}
            answer = proxy.http.post(path, content=data, headers=headers)
            if status.startswith("200"):
                assert answer.status_code == (200 if agent else 201)
            else:
                assert answer.status_code == 413
                assert "too large for the proxy" in answer.json()["error"]
        assert good.blobs[digest_of(data)] == len(data)
        assert all(f"Host: {raw.url.removeprefix('http://')}".encode() in head for head in hosts_heard)
        wait_until(lambda: not any(agent["in_flight"] for agent in proxy.agents().values()), "all leases are back")
        assert "fan-out" not in proxy.introspect()["tasks"]
    raw.stop()


def test_a_file_of_200_mb_passes_to_all_hosts_with_bounded_memory(fleet: Fleet) -> None:
    piece, count = bytes(1024 * 1024), 200
    hashed = hashlib.sha256()
    for _ in range(count):
        hashed.update(piece)
    digest = f"sha256:{hashed.hexdigest()}"
    process = psutil.Process(fleet.proxy.process.pid)
    before = process.memory_info().rss
    grown: list[int] = []

    def pieces() -> Iterator[bytes]:
        for _ in range(count):
            grown.append(process.memory_info().rss - before)
            yield piece

    # Once with a known length and once in chunks.
    for headers in ({"Content-Length": str(count * len(piece))}, {}):
        answer = fleet.proxy.http.post(f"/api/blobs/{digest}", content=pieces(), headers=headers)
        assert answer.status_code in (200, 201), answer.text
    assert [host.blobs[digest] for host in fleet] == [count * len(piece)] * 3
    assert max(grown) < 64 * 1024 * 1024


def test_an_upload_that_breaks_off_leaves_nothing_anywhere(fleet: Fleet) -> None:
    digest = digest_of(b"never whole")
    with socket.create_connection(("127.0.0.1", fleet.proxy.port)) as s:
        s.sendall(f"POST /api/blobs/{digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
        s.sendall(bytes(200_000))
        wait_until(lambda: all(a["in_flight"] == 1 for a in fleet.proxy.agents().values()), "it has begun")
    wait_until(lambda: not any(a["in_flight"] for a in fleet.proxy.agents().values()), "it has ended")
    wait_until(lambda: "fan-out" not in fleet.proxy.introspect()["tasks"], "nothing is left")
    assert not any(digest in host.blobs for host in fleet)
    assert fleet.proxy.agents()["one"]["stats"]["cancelled"] >= 1


def test_an_upload_of_another_origins_page_is_refused_before_its_body(fleet: Fleet) -> None:
    path = f"/api/blobs/{digest_of(b'evil')}"
    answer = fleet.proxy.http.post(path, content=b"evil", headers={"Origin": "https://evil.test"})
    assert answer.status_code == 403
    assert not any(digest_of(b"evil") in host.blobs for host in fleet)
    with socket.create_connection(("127.0.0.1", fleet.proxy.port)) as s:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.test\r\nContent-Length: 1000000000\r\n\r\n"
        s.sendall(head.encode())
        s.sendall(bytes(200_000))
        assert s.recv(65536).startswith(b"HTTP/1.1 403 ")


def test_a_host_that_takes_nothing_of_a_file_does_not_fill_the_memory(tmp_path: Path, hosts: Hosts) -> None:
    """The client is stopped while one host does not read, and goes on when that host is gone."""

    async def takes_nothing(reader: Any, writer: Any) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/api/blobs/" in head:
            writer.transport.pause_reading()
            stuck.append(writer)
            await gone.wait()
        else:
            body = b'{"version":"1"}' if b"version" in head else b'{"models":[]}'
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    stuck: list[Any] = []
    gone = asyncio.Event()
    raw = RawHost(hosts, takes_nothing)
    good = hosts.start("good")
    agents = f"good={good.url},stuck={raw.url}"
    piece, count = bytes(1024 * 1024), 100
    digest = "sha256:" + hashlib.sha256(piece * count).hexdigest()
    with running_proxy(tmp_path, "--set", f"balancer_agents={agents}") as proxy:
        proxy.wait_online("good", "stuck")
        process = psutil.Process(proxy.process.pid)
        before = process.memory_info().rss
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as s:
            s.sendall(f"POST /api/blobs/{digest} HTTP/1.1\r\nHost: x\r\nContent-Length: {count << 20}\r\n\r\n".encode())
            s.settimeout(1)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < count << 20:
                    sent += s.send(piece)
            assert sent < 32 * 1024 * 1024
            assert process.memory_info().rss - before < 64 * 1024 * 1024
            hosts.loop.call_soon_threadsafe(stuck[0].transport.abort)
            hosts.loop.call_soon_threadsafe(gone.set)
            s.settimeout(30)
            s.sendall(bytes((count << 20) - sent))
            answer = HTTPResponse(s, method="POST")
            answer.begin()
            assert answer.status == 502
            assert b"stuck: " in answer.read()
        assert good.blobs[digest] == count << 20
    raw.stop()
