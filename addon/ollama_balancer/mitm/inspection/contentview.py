"""mitmproxy's content view `Ollama`, for requests to Ollama and their answers."""

from mitmproxy import http
from mitmproxy.contentviews import Contentview, Metadata

from ...ollama.routes import Kind, find_route
from .annotations import METADATA_KEY

PRIORITY = 2.0
"""Above that of JSON."""


class OllamaContentview(Contentview):
    name = "Ollama"

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        from .rendering import render_answer, render_request

        flow, message = metadata.flow, metadata.http_message
        record = flow.metadata.get(METADATA_KEY) if flow is not None else None
        if isinstance(message, http.Request):
            return render_request(data, record)
        request = flow.request.get_content(strict=False) if isinstance(flow, http.HTTPFlow) else None
        return render_answer(data, (metadata.content_type or "").lower(), request or b"", record)

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        flow = metadata.flow
        if not isinstance(flow, http.HTTPFlow):
            return -1
        route = find_route(flow.request.path.partition("?")[0])
        supported = route is not None and (
            (route.runs and "audio" not in route.path) or (route.kind in (Kind.EVERY, Kind.NAMED) and not route.uploads)
        )
        return PRIORITY if supported else -1
