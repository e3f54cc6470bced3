"""The balancer's own answers as mitmproxy's responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate

from mitmproxy import http

from ..gateway.router import JSON_TYPE, Answer
from ..ollama.errors import error_body
from ..ollama.routes import dialect_of

_UNPRINTABLE = re.compile(rb"[^\x21-\x7e]")


def path_of(flow: http.HTTPFlow) -> str:
    return flow.request.data.path.partition(b"?")[0].decode("utf-8", "surrogateescape")


def escape_target(request: http.Request) -> None:
    """Write what is not printable ASCII in a request's path and query as %XX, as a browser does.

    So it is the same for hosts, and harmless where it is shown.
    """
    if _UNPRINTABLE.search(request.data.path):
        request.data.path = _UNPRINTABLE.sub(lambda found: b"%%%02X" % found[0][0], request.data.path)


def error_of(flow: http.HTTPFlow, status: int, message: str) -> http.Response:
    body = error_body(dialect_of(path_of(flow)), status, message)
    return http.Response.make(status, body, dated({"Content-Type": JSON_TYPE}))


def answer_of(flow: http.HTTPFlow, answer: Answer) -> http.Response:
    headers = {"Content-Type": answer.content_type} if answer.content_type else {}
    response = http.Response.make(answer.status, answer.body, dated(headers | dict(answer.headers)))
    if flow.request.method == "HEAD":
        response.raw_content = b""
    return response


def last_of(flow: http.HTTPFlow, response: http.Response) -> http.Response:
    """With this answer the client's connection ends, where HTTP has a header that says so."""
    if flow.request.http_version.startswith("HTTP/1."):
        response.headers["Connection"] = "close"
    return response


def dated(headers: Mapping[str, str]) -> dict[str, str]:
    return dict(headers) | {"Date": formatdate(usegmt=True)}
