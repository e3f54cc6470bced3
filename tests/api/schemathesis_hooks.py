"""What schemathesis cannot know of the control API from its document."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any

import schemathesis
from hypothesis import strategies as st
from requests import PreparedRequest
from requests.adapters import HTTPAdapter

# A report of the future is refused, and no schema can say so.
schemathesis.openapi.format(
    "date-time",
    st.integers(0, 1_000_000_000).map(lambda ms: (datetime.now(UTC) - timedelta(milliseconds=ms)).isoformat()),
)


def _plain(value: Any) -> Any:
    """Integers as programs write them: 3.0 is one for JSON Schema, and is refused."""
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value


_calls = itertools.count(1)


def _add_headers(adapter: HTTPAdapter, request: PreparedRequest, **kwargs: Any) -> None:
    """Call from another address each time: after ten wrong tokens from one, its calls are refused in another way."""
    request.headers["X-Forwarded-For"] = str(IPv4Address(0x0A000000 + next(_calls)))


# Not among the headers of a case: there, what tries calls without a header sees one that it did not put there.
HTTPAdapter.add_headers = _add_headers  # type: ignore[method-assign, assignment]


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Have no host of the network asked, whatever name is made up."""
    body = _plain(body)
    if isinstance(body, dict) and isinstance(body.get("url"), str) and body["url"].lower().startswith("http"):
        body["url"] = "http://127.0.0.1:9"
    return body
