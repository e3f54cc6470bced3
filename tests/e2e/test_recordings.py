"""Every recorded exchange of one request, with a host behind the balancer that answers as the real server did.

What the host gets and what the client gets must be what was recorded, apart from the headers that the balancer adds and
strips, and from the cases in `DIFFERENT`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ollama_balancer.ollama.routes import Dialect, Kind, dialect_of, find_route
from tests.e2e.harness import PATIENCE, Hosts, Proxy, RawHost, report, running_proxy, wait_until

RECORDINGS = Path(__file__).parents[1] / "recordings"

ADDED = {
    "x-balancer-agent",
    "x-balancer-attempts",
    "x-request-id",
    "access-control-expose-headers",
    "content-security-policy",
    "x-content-type-options",
}
STRIPPED = {"connection", "keep-alive"}
FRAMING = {"content-length", "transfer-encoding", "cache-control"}
"""Of an answer that the balancer makes itself."""

JSON_ERRORS = "errors are always JSON, in the caller's protocol"
OWN_HOST = "an address, a name without a dot, and whatever a client of an HTTP proxy names can be no page's trick"
OWN_HTTP = "mitmproxy answers what is not HTTP itself"
SMUGGLING = "a request with two lengths is refused, as requests are smuggled that way"
SHORTENED = "the recording does not have the whole answer"
ONE_HOST_ONLY = "concerns one host, which the request does not name"

DIFFERENT = {
    "notfound": JSON_ERRORS,
    "notfound_api": JSON_ERRORS,
    "v1_root": JSON_ERRORS,
    "favicon": JSON_ERRORS,
    "case_path": JSON_ERRORS,
    "pprof": JSON_ERRORS,
    "v1_messages_count_tokens": JSON_ERRORS,
    "v1_model_slash": JSON_ERRORS,
    "http_expect_100_notfound": JSON_ERRORS,
    "wrong_method_delete": JSON_ERRORS,
    "wrong_method_generate": JSON_ERRORS,
    "wrong_method_tags": JSON_ERRORS,
    "put_generate": JSON_ERRORS,
    "blob_get": JSON_ERRORS,
    "options_no_origin": JSON_ERRORS,
    "cors_preflight_same": JSON_ERRORS,
    "host_evil": JSON_ERRORS,
    "host_evil_port": JSON_ERRORS,
    "host_evil_post": JSON_ERRORS,
    "host_othername": OWN_HOST,
    "host_pubip": OWN_HOST,
    "host_absolute_form_evil": OWN_HOST,
    "http_bad_request_line": OWN_HTTP,
    "big_header_1_1M": JSON_ERRORS,
    "http_te_and_cl": SMUGGLING,
    "v1_chat_stream_too_long_no_truncate": SHORTENED,
    "me": ONE_HOST_ONLY,
    "signout": ONE_HOST_ONLY,
    "web_search": ONE_HOST_ONLY,
    "push_nonetwork": ONE_HOST_ONLY,
}


def load(path: Path) -> dict[str, Any] | None:
    value: dict[str, Any] = json.loads(path.read_text())
    return value if "request" in value and "response" in value else None


ALL = {path.stem: recording for path in sorted(RECORDINGS.glob("*.json")) if (recording := load(path))}


def body_of(recorded: dict[str, Any] | None) -> bytes:
    """A recorded body; where only its length is told, as many bytes of JSON's blanks."""
    if not recorded:
        return b""
    if "hex" in recorded:
        return bytes.fromhex(recorded["hex"])
    if "len" in recorded:
        return b'{"model": "tiny-a", "prompt": "x", "input": "x"}'.ljust(recorded["len"])
    text: str = recorded["text"]
    return text.encode()


def answer_of(response: dict[str, Any]) -> bytes:
    """The bytes that the server sent."""
    reads = [r["text"].encode() if "text" in r else bytes.fromhex(r["hex"]) for r in response["raw_reads"]]
    if [len(data) for data in reads] == [r["n"] for r in response["raw_reads"]]:
        return b"".join(reads)
    # Shortened in the recording: the same head and framing around what is left.
    head = "\r\n".join([response["status_line"], *(f"{name}: {value}" for name, value in response["headers"])])
    body = body_of(response["body"])
    assert response["framing"] == "chunked"
    return head.encode() + b"\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


@dataclass
class Received:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class RecordedHost:
    """Answers the balancer's own questions for its models and version, and everything else with `answer`."""

    answer: bytes = b""
    tags: bytes = b""
    loaded: bytes = b""
    lacks: str = ""
    """Which request is answered that there is no such thing: the balancer asks so before it sends a file."""
    received: list[Received] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self._body(reader, headers)
            if headers.get("user-agent") == "ollama-balancer":
                own = {"/api/tags": self.tags, "/api/ps": self.loaded}
                answer = own.get(line.split()[1], b'{"version":"0.33.0-rc2"}')
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            elif self.lacks and line.startswith(self.lacks):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            else:
                self.received.append(Received(line, headers, body))
                writer.write(self.answer)
                if b"\r\nContent-Length: " not in self.answer and b"chunked" not in self.answer:
                    return  # the answer ends with the connection
            await writer.drain()

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if "transfer-encoding" not in headers:
            return await reader.readexactly(int(headers.get("content-length", 0)))
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return body


def restored(value: str) -> str:
    """A header's value, of which the recording of a very long one has only the beginning."""
    truncated = re.fullmatch(r"(.)\1*\.\.\.\((\d+) bytes\)", value)
    return truncated[1] * int(truncated[2]) if truncated else value


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


def send(port: int, recording: dict[str, Any]) -> Answer:
    """Send the recorded request byte for byte and read the answer."""
    request = recording["request"]
    body = body_of(request.get("body"))
    headers = {name.lower(): value for name, value in request["headers"]}
    method = request.get("method", "POST")
    lines = [f"{method} {request['path']} {request.get('version', 'HTTP/1.1')}"]
    lines += [f"{name}: {restored(value)}" for name, value in request["headers"]]
    if not body and int(headers.get("content-length", 0)):
        body = bytes(int(headers["content-length"]))
    if "chunked" in headers.get("transfer-encoding", ""):
        trailer = b"X-T: 1\r\n" if "trailer" in headers else b""
        body = b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailer)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as s:
        s.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        s.sendall(body)
        response = http.client.HTTPResponse(s, method=method)
        response.begin()
        return Answer(response.status, response.getheaders(), response.read())


@dataclass
class Scene:
    proxy: Proxy
    host: RecordedHost


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    hosts = Hosts()
    recorded = RecordedHost()
    raw = RawHost(hosts, recorded.serve)
    try:
        with running_proxy(tmp_path_factory.mktemp("conf")) as proxy:
            proxy.register("recorded", raw.url)
            yield Scene(proxy, recorded)
    finally:
        raw.stop()
        hosts.stop()


def arrange(scene: Scene, recording: dict[str, Any]) -> None:
    """The host has the models that the real one had, and those that answered the recorded request."""
    listed = json.loads(ALL["tags"]["response"]["body"]["text"])["models"]
    request, response = recording["request"], recording["response"]
    path = request["path"].partition("?")[0]
    if path == "/api/tags" and response["body"]["text"].startswith("{"):
        listed = json.loads(response["body"]["text"])["models"]
    elif response["status"] not in (404, 405):
        try:
            model = json.JSONDecoder().raw_decode(body_of(request.get("body")).decode())[0]["model"]
        except (ValueError, KeyError, TypeError):
            model = path.rpartition("/")[2] if path.startswith("/v1/models/") else "tiny-a"
        if isinstance(model, str) and model and not any(entry["name"] == f"{model}:latest" for entry in listed):
            listed = [*listed, {"name": model, "modified_at": "2020-01-01T00:00:00Z"}]
    loaded = json.loads(response["body"]["text"])["models"] if path == "/api/ps" else []
    scene.host.answer = answer_of(response)
    scene.host.tags = json.dumps({"models": listed}).encode()
    scene.host.loaded = json.dumps({"models": loaded}).encode()
    scene.host.lacks = "HEAD /api/blobs/" if request.get("method", "POST") == "POST" else ""
    scene.host.received.clear()
    metrics = report(ollama_version="0.33.0-rc2", loaded_models=loaded) | {"models": listed}

    def is_known() -> bool:
        # A list that may be older than the last answer of the host is not taken.
        metrics["timestamp"] = datetime.now(UTC).isoformat()
        reported = scene.proxy.control("POST", "/api/agents/recorded/metrics", metrics)
        assert reported.status_code == 204, reported.text
        known: list[str] = scene.proxy.agents()["recorded"]["loaded_models"]
        return known == [entry["name"] for entry in loaded]

    wait_until(is_known, "what is loaded is known")


@pytest.mark.parametrize("name", [name for name in ALL if name not in DIFFERENT])
def test_what_comes_out_is_what_was_recorded(scene: Scene, name: str) -> None:
    recording = ALL[name]
    arrange(scene, recording)
    recorded = recording["response"]
    answer = send(scene.proxy.port, recording)

    body = body_of(recorded["body"])
    path = recording["request"]["path"].partition("?")[0]
    route = find_route(path)
    own = not scene.host.received
    assert answer.status == recorded["status"], answer.body
    if own and body:
        assert meaning(answer.body) == meaning(body)
    else:
        assert answer.body == body
    if own:
        got, wanted = {k.lower() for k, _ in answer.headers}, {k.lower() for k, _ in recorded["headers"]}
        assert got - ADDED - FRAMING - STRIPPED == wanted - FRAMING - STRIPPED
        assert media_type(answer.headers) == media_type(recorded["headers"])
    else:
        assert headers_of(answer.headers) == headers_of(recorded["headers"])
        [received] = scene.host.received
        check_request(received, recording["request"])
    if route is not None and route.kind is Kind.MODEL and recorded["status"] not in (404, 307, 403) and not own:
        assert dict(answer.headers)["X-Balancer-Agent"] == "recorded"


def meaning(body: bytes) -> Any:
    """JSON without what a server makes up anew for each answer and what the balancer adds."""
    try:
        value = json.loads(body)
    except ValueError:
        return body
    if isinstance(value, dict):
        value.pop("request_id", None)
        if isinstance(value.get("models"), list):
            for entry in value["models"]:
                entry.pop("agent", None)
            # Models that were modified in the same second come in any order.
            value["models"].sort(key=lambda entry: entry["name"])
    return value


def media_type(headers: Any) -> str:
    value: str = dict(headers).get("Content-Type", "")
    return value.partition(";")[0]


def headers_of(headers: Any) -> list[tuple[str, str]]:
    kept = ((name.lower(), value) for name, value in headers)
    return sorted((name, value) for name, value in kept if name not in ADDED | STRIPPED)


def check_request(received: Received, request: dict[str, Any]) -> None:
    path = request["path"].removeprefix("http://localhost:11434")
    assert received.line == f"{request.get('method', 'POST')} {path} {request.get('version', 'HTTP/1.1')}"
    assert received.headers["host"].startswith("127.0.0.1:")
    if "/api/blobs/" in path:  # the balancer's own: a file has a connection to itself
        assert received.headers.pop("connection", "close") == "close"
    assert not {"origin", "connection", "expect", "trailer"} & received.headers.keys()
    if request.get("body") and request["body"].get("len", 0) < 1_000_000:
        assert received.body == body_of(request.get("body"))


@pytest.mark.parametrize("name", [name for name, why in DIFFERENT.items() if why == JSON_ERRORS])
def test_where_the_server_has_plain_text_the_status_is_the_same_and_the_error_is_json(scene: Scene, name: str) -> None:
    recording = ALL[name]
    arrange(scene, recording)
    answer = send(scene.proxy.port, recording)
    assert answer.status == recording["response"]["status"]
    assert dict(answer.headers).get("Allow") == dict(recording["response"]["headers"]).get("Allow")
    error = json.loads(answer.body)["error"]
    assert error if dialect_of(recording["request"]["path"]) is Dialect.OLLAMA else error["message"]
    assert not scene.host.received


@pytest.mark.parametrize("name", [name for name, why in DIFFERENT.items() if why == ONE_HOST_ONLY])
def test_what_concerns_one_host_goes_to_the_one_that_is_named(scene: Scene, name: str) -> None:
    recording = ALL[name]
    arrange(scene, recording)
    refused = send(scene.proxy.port, recording)
    assert refused.status == 400
    assert "X-Balancer-Agent" in json.loads(refused.body)["error"]
    request = recording["request"]
    named = recording | {"request": request | {"headers": [*request["headers"], ["X-Balancer-Agent", "recorded"]]}}
    answer = send(scene.proxy.port, named)
    assert (answer.status, answer.body) == (recording["response"]["status"], body_of(recording["response"]["body"]))
    check_request(scene.host.received[0], request)


@pytest.mark.parametrize("name", [name for name, why in DIFFERENT.items() if why == OWN_HOST])
def test_the_balancer_may_be_called_by_what_is_nobody_elses_name(scene: Scene, name: str) -> None:
    arrange(scene, ALL["version"])
    assert send(scene.proxy.port, ALL[name] | {"response": ALL["version"]["response"]}).status == 200


@pytest.mark.parametrize("name", [name for name, why in DIFFERENT.items() if why in (OWN_HTTP, SMUGGLING)])
def test_what_is_not_http_is_a_bad_request_and_reaches_no_host(scene: Scene, name: str) -> None:
    arrange(scene, ALL[name])
    assert send(scene.proxy.port, ALL[name]).status == 400
    assert not scene.host.received
