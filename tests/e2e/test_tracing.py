"""Traces through a real mitmdump to a receiver that speaks OTLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from ollama_balancer.core.access import Key
from ollama_balancer.storage.keys import FILE_NAME, KeyStore

from .harness import Hosts, RawHost, running_proxy, wait_until

pytestmark = pytest.mark.e2e

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Receiver:
    """Takes spans in. `resources` are those that sent them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        received = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    received.resources.append(values(resource.resource.attributes))
                    for scope in resource.scope_spans:
                        received.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, count: int) -> list[Span]:
        wait_until(lambda: len(self.spans) >= count, f"{count} spans")
        return sorted(self.spans, key=lambda span: span.start_time_unix_nano)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def test_a_request_is_a_span_with_its_phases_and_goes_on_with_its_callers_trace(
    tmp_path: Path, receiver: Receiver
) -> None:
    hosts = Hosts()
    secret = KeyStore(tmp_path / FILE_NAME).add(Key("alice"))
    try:
        agent = hosts.start("a", "llama3.2")
        options = ("--set", f"balancer_agents=a={agent.url}", "--set", "balancer_access=open")
        with running_proxy(tmp_path, *options, env=receiver.environment) as proxy:
            proxy.wait_online("a")
            answer = httpx.post(
                f"{proxy.url}/api/chat",
                json={"model": "llama3.2", "messages": [{"role": "user", "content": "a planted prompt"}]},
                headers={"traceparent": PARENT, "x-api-key": secret},
                timeout=20,
            )
            assert answer.status_code == 200
            spans = receiver.wait(5)
    finally:
        hosts.stop()
    by_name = {span.name: span for span in spans}
    root, attempt = by_name["chat llama3.2"], by_name["attempt"]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert root.parent_span_id.hex() == PARENT.split("-")[2]
    assert attempt.parent_span_id == root.span_id
    for phase in ("load", "prefill", "decode"):
        span = by_name[phase]
        assert span.parent_span_id == attempt.span_id
        assert attempt.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert values(span.attributes)["ollama_balancer.measured_by"] == "host"
    found = values(root.attributes)
    last = answer.text.splitlines()[-1]
    assert f'"eval_count":{found["gen_ai.usage.output_tokens"]}' in last
    assert (found["gen_ai.operation.name"], found["gen_ai.request.model"]) == ("chat", "llama3.2")
    assert (found["http.response.status_code"], found["ollama_balancer.key"]) == (200, "alice")
    assert values(attempt.attributes)["ollama_balancer.agent"] == "a"
    text = str(spans)
    assert "planted" not in text
    assert secret not in text
    assert receiver.resources[0]["service.name"] == "ollama-balancer"


def test_a_failed_attempt_is_a_span_of_its_own_and_hosts_go_on_with_the_trace(
    tmp_path: Path, receiver: Receiver
) -> None:
    seen: list[bytes] = []

    async def refuses(reader: Any, writer: Any) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    hosts = Hosts()
    host = RawHost(hosts, refuses)
    try:
        options = ("--set", f"balancer_agents=a={host.url}")
        with running_proxy(tmp_path, *options, env=receiver.environment) as proxy:
            status = httpx.post(
                f"{proxy.url}/api/generate", json={"model": "m", "prompt": "hi"}, headers={"X-Balancer-Agent": "a"}
            ).status_code
            wait_until(lambda: receiver.spans, "spans")
            spans = receiver.wait(1)
    finally:
        hosts.stop()
    assert status >= 500
    root = next(span for span in spans if span.name == "text_completion m")
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert values(root.attributes)["error.type"] == str(status)
    for head in seen:
        if b"POST" in head:
            parent = head.lower().partition(b"traceparent: ")[2][:55].decode()
            attempt = next(span for span in spans if span.span_id.hex() == parent.split("-")[2])
            assert (attempt.name, attempt.parent_span_id) == ("attempt", root.span_id)
            assert attempt.status.code == Status.STATUS_CODE_ERROR


def test_a_receiver_that_is_not_there_costs_no_request(tmp_path: Path) -> None:
    hosts = Hosts()
    try:
        agent = hosts.start("a", "llama3.2")
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        with running_proxy(tmp_path, "--set", f"balancer_agents=a={agent.url}", env=environment) as proxy:
            proxy.wait_online("a")
            assert [proxy.generate().status_code for _ in range(3)] == [200] * 3
    finally:
        hosts.stop()
