"""GET /api/events: what has happened to the fleet, in pages; `next` is where what comes after it will be."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..core.events import MAX_EVENTS, Event, Events
from ..text import rfc3339
from .paths import EVENTS

DEFAULT = 100
MAX_NUMBER = 2**53 - 1
"""The largest that JavaScript reads as it is."""


def endpoint(events: Events) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        limit = _number(request, "limit", DEFAULT, 1, MAX_EVENTS)
        after = _number(request, "after", None, 0, MAX_NUMBER)
        assert limit is not None
        found = events.last(limit) if after is None else events.after(after, limit)
        last = found[-1].number if found else after or 0
        return JSONResponse(
            {"events": [_described(event) for event in found], "next": f"{EVENTS}?limit={limit}&after={last}"},
            headers={"Cache-Control": "no-store"},
        )

    return answer


def _described(event: Event) -> dict[str, Any]:
    return {
        "number": event.number,
        "time": rfc3339(event.time),
        "kind": event.kind,
        "agent": event.agent,
        "key": event.key,
        "reason": event.reason,
        "count": event.times,
        "first": None if event.first is None else rfc3339(event.first),
    }


def _number(request: Request, name: str, default: int | None, least: int, most: int) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 17 and least <= int(text) <= most):
        raise HTTPException(
            400, f"{name}: {text[:40]!r} is not accepted; it takes a whole number from {least} to {most}"
        )
    return int(text)
