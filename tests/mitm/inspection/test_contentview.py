"""When mitmproxy chooses the view, and what it gives the view."""

from __future__ import annotations

import io
import json

import pytest
from mitmproxy import http
from mitmproxy.contentviews import Contentview, Metadata, registry
from mitmproxy.contentviews._registry import ContentviewRegistry
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.test import tflow

from ollama_balancer.mitm.inspection.contentview import OllamaContentview
from tests.mitm.inspection.exchanges import exchange

VIEW = OllamaContentview()

# fmt: off
SHOWN = [
    "/api/generate", "/api/chat", "/api/chat?x=1", "/api/embed", "/api/embeddings", "/v1/chat/completions",
    "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses", "/api/pull", "/api/push", "/api/create",
]
# fmt: on
RECORDS: list[object] = [None, 7, "x", [], [{}], {"options": 3}, {"failures": {"a": 1}}]


def flow_of(path: str, asked: bytes = b"{}", said: bytes = b"{}", kind: str = "application/json") -> http.HTTPFlow:
    flow = tflow.tflow(
        req=http.Request.make("POST", f"http://gpu-1:11434{path}", asked),
        resp=http.Response.make(200, said, {"content-type": kind}),
    )
    assert isinstance(flow, http.HTTPFlow)
    return flow


def metadata_of(flow: http.HTTPFlow, message: http.Message | None) -> Metadata:
    kind = message.headers.get("content-type", "").partition(";")[0] if message is not None else None
    return Metadata(flow=flow, http_message=message, content_type=kind)


def chosen(flow: http.HTTPFlow, message: http.Message | None) -> Contentview:
    views = ContentviewRegistry()
    for view in registry.values():
        views.register(view)
    views.register(VIEW)
    return views.get_view((message.content if message is not None else None) or b"", metadata_of(flow, message))


@pytest.mark.parametrize("path", SHOWN)
def test_it_is_chosen_for_requests_to_models_and_their_management(path: str) -> None:
    flow = flow_of(path)
    assert chosen(flow, flow.request) is VIEW
    assert chosen(flow, flow.response) is VIEW


@pytest.mark.parametrize("path", ["/", "/api/tags", "/api/ps", "/v1/models", "/v1/audio/transcriptions", "/other"])
def test_it_is_not_chosen_for_others(path: str) -> None:
    flow = flow_of(path)
    assert chosen(flow, flow.request) is not VIEW
    assert chosen(flow, flow.response) is not VIEW


def test_a_flow_from_a_file_is_shown_with_its_decision() -> None:
    _, asked, kind, said = exchange("generate_stream")
    flow = flow_of("/api/generate", asked, said, kind)
    flow.metadata["balancer"] = {"agent": "gpu-1", "mode": "adaptive", "why": "warm"}
    file = io.BytesIO()
    FlowWriter(file).add(flow)
    file.seek(0)
    (loaded,) = FlowReader(file).stream()
    assert isinstance(loaded, http.HTTPFlow) and loaded.response is not None
    shown = VIEW.prettify(said, metadata_of(loaded, loaded.response))
    assert "→ gpu-1 · adaptive · warm" in shown
    assert " in far near hills" in shown
    assert "→ gpu-1" in VIEW.prettify(asked, metadata_of(loaded, loaded.request))


def test_chosen_by_hand_it_shows_anything() -> None:
    data = json.dumps({"a": 1}).encode()
    assert '{"a": 1}' in VIEW.prettify(data, Metadata())
    for flow in (tflow.ttcpflow(), tflow.tdnsflow(), tflow.twebsocketflow(), tflow.tflow()):
        assert '{"a": 1}' in VIEW.prettify(data, Metadata(flow=flow))
        assert VIEW.render_priority(data, Metadata(flow=flow)) < 0
    assert VIEW.render_priority(data, Metadata()) < 0


def test_a_record_of_any_type_is_survived() -> None:
    flow = flow_of("/api/generate")
    for record in RECORDS:
        flow.metadata["balancer"] = record
        for message in (flow.request, flow.response):
            assert isinstance(VIEW.prettify(b"{}", metadata_of(flow, message)), str)
