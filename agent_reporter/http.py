"""One HTTP call to a server that is not trusted: bounded in time and size, and one kind of error for all that fails."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx
import pydantic_core


class CallError(Exception):
    """A call got no usable answer. The message says why; it holds nothing of the request."""


class Answer(NamedTuple):
    status: int
    body: bytes


@functools.cache
def _tls() -> ssl.SSLContext:
    """Shared: each takes tens of milliseconds to make. $SSL_CERT_FILE names other roots."""
    return httpx.create_ssl_context()


def client(transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client that ignores proxy variables and ~/.netrc, follows no redirect and keeps no idle connection."""
    return httpx.AsyncClient(
        verify=_tls(),
        trust_env=False,
        follow_redirects=False,
        timeout=None,  # noqa: S113  # call() bounds the whole exchange; httpx bounds single reads only
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"Accept-Encoding": "identity"},
        transport=transport,
    )


async def call(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    timeout: float,  # noqa: ASYNC109  # callers say how long; asyncio.timeout is used within
    limit: int,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Make one call. `timeout` is in seconds for all of it, `limit` in bytes of the answer's body. Raises CallError."""
    body = bytearray()
    try:
        async with (
            asyncio.timeout(timeout),
            http.stream(method, url, content=content, headers=headers) as response,
        ):
            # Raw: what a small compressed body unpacks to has no bound.
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > limit:
                    raise CallError(f"its answer is longer than {limit} bytes")
    except CallError:
        raise
    except TimeoutError:
        raise CallError(f"no whole answer within {timeout:g} s") from None
    except Exception as error:  # whatever the HTTP library makes of a hostile answer
        raise CallError(_reason(error)) from error
    return Answer(response.status_code, bytes(body))


def parse_json(body: bytes) -> Any:
    """Read JSON without NaN, infinities and bottomless nesting. Raises ValueError."""
    return pydantic_core.from_json(body, allow_inf_nan=False)


def _reason(error: BaseException) -> str:
    """The operating system's word for it, where there is one: HTTP libraries wrap it until it says nothing."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ConnectionRefusedError):
            return "connection refused"
        if isinstance(inner, socket.gaierror):
            return "host not found"
        if isinstance(inner, OSError) and inner.errno:
            return os.strerror(inner.errno)
        inner = inner.__cause__ or inner.__context__
    return type(error).__name__
