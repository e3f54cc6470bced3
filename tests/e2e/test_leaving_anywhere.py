"""Wherever a request waits when its client leaves or resets it: it ends at once, as cancelled, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.clients import Http1Client, Http2Client, LeavingClient
from tests.e2e.harness import Hosts, Proxy, running_proxy, wait_until
from tests.e2e.leaving import deaf_address, deaf_agent
from tests.e2e.scripted import JSON, NDJSON, TEXT, ScriptedHost, chunked

ANSWERS = {
    "/api/generate": NDJSON + chunked(TEXT),
    "/api/chat": JSON + chunked(b'{"model":"m","mess'),
    "/v1/chat/completions": b"",
    "/api/show": b"",
    "/api/pull": NDJSON + chunked(b'{"status":"pulling"}\n'),
    "/api/copy": b"",
}
KINDS: dict[str, Callable[[Proxy], LeavingClient]] = {"HTTP/1.1": Http1Client, "HTTP/2": Http2Client}
BODY = {"model": "m", "prompt": "x", "messages": []}

options = ("--set", "balancer_slots=1", "--set", "balancer_connect_timeout=60")


class Scene(NamedTuple):
    proxy: Proxy
    host: ScriptedHost


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    hosts = Hosts()
    host = ScriptedHost(hosts, ANSWERS)
    try:
        with running_proxy(
            tmp_path_factory.mktemp("proxy"), "--set", f"balancer_agents=one={host.url}", *options
        ) as proxy:
            proxy.wait_online("one")
            yield Scene(proxy, host)
    finally:
        host.stop()
        hosts.stop()


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, scene: Scene) -> Iterator[LeavingClient]:
    this = KINDS[request.param](scene.proxy)
    yield this
    this.close()


def stats(proxy: Proxy) -> dict[str, Any]:
    found: dict[str, Any] = proxy.agents()["one"]["stats"]
    return found


def check_nothing_is_left(proxy: Proxy) -> None:
    def left() -> dict[str, Any]:
        state = proxy.introspect()
        counts = ("contexts", "kept_contexts", "kept_streams", "timers", "wakeups", "memory")
        return {name: state[name] for name in counts if state[name]} | {
            name: count for name, count in state["tasks"].items() if name == "fan-out"
        }

    wait_until(lambda: left() == {}, "nothing is left of the request")
    state = proxy.introspect()
    assert set(state["in_flight"].values()) == {0}
    assert state["receivers"] == 0
    assert proxy.http.get("/api/balancer").json()["waiting"] == 0


@pytest.mark.parametrize(
    ("path", "body_comes"),
    [
        ("/v1/chat/completions", False),
        ("/api/show", False),
        ("/api/chat", False),
        ("/api/generate", True),
        ("/api/copy", False),
        ("/api/pull", True),
    ],
    ids=["head", "head without a slot", "body", "stream", "fan-out", "fan-out's stream"],
)
def test_leaving_while_the_host_has_the_request(
    scene: Scene, client: LeavingClient, path: str, body_comes: bool
) -> None:
    proxy, host = scene
    before, asked, left = stats(proxy), len(host.asked), host.left
    client.send(path, BODY | {"stream": path == "/api/generate"})
    wait_until(lambda: len(host.asked) > asked, "the host has the request")
    if body_comes:
        client.wait_for_body()
    client.leave()
    check_nothing_is_left(proxy)
    wait_until(lambda: host.left > left, "the host's connection is closed")
    assert stats(proxy) == before | {
        "requests": before["requests"] + 1,
        "cancelled": before["cancelled"] + 1,
        "avg_response_time": before["avg_response_time"],
    }
    assert proxy.agents()["one"]["strikes"] == 0


def test_leaving_the_queue(scene: Scene, client: LeavingClient) -> None:
    proxy, host = scene
    before, asked = stats(proxy), len(host.asked)
    first = Http1Client(proxy)
    first.send("/v1/chat/completions", BODY)
    wait_until(lambda: len(host.asked) == asked + 1, "the host has the first request, and its slot is taken")
    client.send("/api/generate", BODY)
    wait_until(lambda: proxy.http.get("/api/balancer").json()["waiting"] == 1, "it waits")
    client.leave()
    wait_until(lambda: proxy.http.get("/api/balancer").json()["waiting"] == 0, "it waits no more")
    first.leave()
    check_nothing_is_left(proxy)
    assert len(host.asked) == asked + 1, "nothing is sent for who has left"
    assert stats(proxy)["failed"] == before["failed"]


def test_leaving_while_the_balancer_connects(scene: Scene, client: LeavingClient) -> None:
    proxy, _ = scene
    with deaf_agent(proxy, "deaf"):
        client.send("/api/generate", BODY, pin="deaf")
        wait_until(lambda: proxy.introspect()["timers"] == 1, "the balancer connects")
        client.leave()
        wait_until(lambda: proxy.agents()["deaf"]["in_flight"] == 0, "its lease is given back")
        assert proxy.agents()["deaf"]["stats"]["cancelled"] == 1
        assert proxy.agents()["deaf"]["stats"]["failed"] == 0
    client.close()
    check_nothing_is_left(proxy)
    wait_until(lambda: proxy.introspect()["timers"] == 0, "no attempt is left")


@pytest.mark.parametrize("path", ["/api/generate", "/api/blobs/sha256:" + "0" * 64])
def test_leaving_in_the_middle_of_the_own_body(scene: Scene, client: LeavingClient, path: str) -> None:
    proxy = scene.proxy
    failed = stats(proxy)["failed"]
    client.send(path, BODY, whole=False)
    wait_until(lambda: proxy.introspect()["kept_contexts"] == 1, "its head is there")
    client.leave()
    check_nothing_is_left(proxy)
    assert stats(proxy)["failed"] == failed


def test_nothing_is_left_of_an_http2_upload_that_was_reset(scene: Scene) -> None:
    proxy = scene.proxy
    client = Http2Client(proxy)
    client.send("/api/blobs/sha256:" + "0" * 64, BODY, whole=False)
    wait_until(lambda: proxy.introspect()["kept_contexts"] == 1, "its head is there")
    client.leave()
    check_nothing_is_left(proxy)
    wait_until(lambda: proxy.introspect()["wakeups"] == 0, "nobody looks after it")
    assert proxy.introspect()["kept_streams"] == 0
    client.close()


def test_nothing_is_left_of_http2_requests_that_are_refused_or_killed(scene: Scene) -> None:
    proxy = scene.proxy
    client = Http2Client(proxy)
    for _ in range(20):
        client.send("/api/generate", BODY, scheme="foo")
    client.send("/api/generate", {"model": "nobody-has-it"})
    assert client.status() == "404"
    assert proxy.introspect()["kept_streams"] == 0
    client.close()


def test_an_http2_connection_goes_on_after_a_reset(scene: Scene) -> None:
    client = Http2Client(scene.proxy)
    for path in ("/v1/chat/completions", "/api/generate"):
        client.send(path, BODY)
        wait_until(lambda: scene.proxy.agents()["one"]["in_flight"] == 1, "the host has it")
        client.leave()
        wait_until(lambda: scene.proxy.agents()["one"]["in_flight"] == 0, "it is over")
        client.send("/api/generate", {"model": "nobody-has-it"})
        assert client.status() == "404"
    client.close()
    check_nothing_is_left(scene.proxy)


REPLAYING = """
from mitmproxy import ctx, http
from ollama_balancer.mitm.addons import the_addon


class Replaying:
    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.request.path == "/replay":
            again = http.HTTPFlow(flow.client_conn, flow.server_conn)
            again.request = http.Request.make("POST", "http://x/api/generate", '{"model": "m"}')
            ctx.master.commands.call("replay.client", [again])
        elif flow.request.path == "/kill":
            for context in list(the_addon().balancer.gateway.live):
                context.handle.kill()
        else:
            return
        flow.response = http.Response.make(204)


addons = [Replaying()]
"""


def test_a_replay_that_is_killed(tmp_path: Path, hosts: Hosts) -> None:
    script = tmp_path / "replaying.py"
    script.write_text(REPLAYING)
    host = ScriptedHost(hosts, ANSWERS)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}", "-s", str(script)) as proxy:
        proxy.wait_online("one")
        proxy.http.get("/replay")
        wait_until(lambda: host.asked == ["/api/generate"], "the host has the replay")
        proxy.http.get("/kill")
        check_nothing_is_left(proxy)
        wait_until(lambda: host.left == 1, "the host's connection is closed")
        assert stats(proxy)["cancelled"] == 1
        assert stats(proxy)["failed"] == 0
    host.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_while_the_balancer_starts(tmp_path: Path, hosts: Hosts, kind: str) -> None:
    host = ScriptedHost(hosts, ANSWERS)
    with (
        ExitStack() as deaf,
        running_proxy(
            tmp_path,
            "--set",
            f"balancer_agents=one={host.url},deaf={deaf.enter_context(deaf_address())}",
            *options,
        ) as proxy,
    ):
        client = KINDS[kind](proxy)
        client.send("/api/generate", BODY)
        wait_until(lambda: proxy.introspect()["contexts"] == 1, "it waits for the start-up")
        client.leave()
        wait_until(lambda: proxy.introspect()["contexts"] == 0, "it is over")
        assert proxy.generate("nobody-has-it").status_code in (404, 503), "the start-up is over"
        check_nothing_is_left(proxy)
        client.close()
        assert host.asked == []
    host.stop()
