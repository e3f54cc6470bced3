"""GET /api/history: what went through in each minute, by agent and model."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..fleet.history import FIELDS, MINUTES, History

DEFAULT = 60
"""Minutes."""

ROWS_AT_ONCE = 2_000
"""Read before others get their turn."""


def endpoint(history: History) -> Any:
    """What Starlette calls."""

    async def answer(request: Request) -> Response:
        minutes = _minutes(request.query_params.get("minutes", str(DEFAULT)))
        agent, model = request.query_params.get("agent"), request.query_params.get("model")
        told = []
        since_pause = 0
        for number, minute in list(history.last(minutes)):
            rows = [
                {"agent": key[0] or None, "model": key[1] or None, **_figures(values)}
                for key, values in minute.rows.items()
                if agent in (None, key[0]) and model in (None, key[1])
            ]
            told.append({"at": _time(number), "rows": rows})
            since_pause += len(minute.rows)
            if since_pause > ROWS_AT_ONCE:
                since_pause = 0
                await asyncio.sleep(0)
        body = await asyncio.to_thread(json.dumps, {"minutes": told}, separators=(",", ":"))
        return Response(body, media_type="application/json")

    return answer


def _minutes(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= MINUTES):
        raise HTTPException(400, f"minutes: {text[:40]!r} is not accepted; it takes a whole number from 1 to {MINUTES}")
    return int(text)


def _figures(values: Any) -> dict[str, float]:
    return {
        name: round(value, 3) if name in ("seconds", "waited", "first_token_seconds") else int(value)
        for name, value in zip(FIELDS, values, strict=True)
    }


def _time(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
