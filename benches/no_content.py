"""A script for mitmdump that answers every request with 204: the least that mitmproxy takes for a report."""

from __future__ import annotations

from mitmproxy import http


def request(flow: http.HTTPFlow) -> None:
    flow.response = http.Response.make(204)
