"""GET /api/history: requests per minute, by agent and model, in pages; `next` is the next page."""

import asyncio
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agent_reporter.wire import Timestamp

from ..core.history import FIELDS, MINUTES, History
from .paths import HISTORY

DEFAULT = 60
"""Minutes."""

ROWS_AT_ONCE = 500
"""Rows serialized before other tasks get a turn: some 7 ms."""

ROWS_IN_PAGE = 5_000
"""Of an answer, some 1 MB: a client that does not read it must not have many times as much kept for it. A minute is
told whole."""

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

_TIMES: TypeAdapter[datetime] = TypeAdapter(Timestamp)


def endpoint(history: History) -> Any:
    """What Starlette calls."""

    one_at_a_time = asyncio.Lock()

    async def answer(request: Request) -> Response:
        query = request.query_params
        minutes, after = _minutes(query.get("minutes", str(DEFAULT))), _after(query.get("after"))
        agent, model = query.get("agent"), query.get("model")
        minutes_json: list[str] = []
        next_page, last = None, ""
        row_count = since_pause = 0
        async with one_at_a_time:
            for number, minute in list(history.last(minutes)):
                if number <= after:
                    continue
                rows = [row for row in minute.rows.items() if agent in (None, row[0][0]) and model in (None, row[0][1])]
                row_count += len(rows)
                if minutes_json and row_count > ROWS_IN_PAGE:
                    next_page = _address(request, last)
                    break
                texts = []
                for start in range(0, len(rows), ROWS_AT_ONCE):
                    batch = rows[start : start + ROWS_AT_ONCE]
                    texts.append(_to_json([_row(key, values) for key, values in batch])[1:-1])
                    if len(batch) == ROWS_AT_ONCE:
                        await asyncio.sleep(0)
                last = _time(number)
                minutes_json.append(f'{{"at":"{last}","rows":[{",".join(texts)}]}}')
                since_pause += 1 + len(minute.rows)  # those that are left out were read as well
                if since_pause >= ROWS_AT_ONCE:
                    since_pause = 0
                    await asyncio.sleep(0)
        body = f'{{"minutes":[{",".join(minutes_json)}],"next":{_to_json(next_page)}}}'
        return Response(body, media_type="application/json")

    return answer


def _minutes(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= MINUTES):
        raise HTTPException(400, f"minutes: {text[:40]!r} is not accepted; it takes a whole number from 1 to {MINUTES}")
    return int(text)


def _after(text: str | None) -> int:
    """The number of the minute of that time; None: before all."""
    if text is None:
        return 0
    try:
        return int(_TIMES.validate_python(text).timestamp() // 60)
    except ValidationError:
        raise HTTPException(
            400, f"after: {text[:40]!r} is not accepted; it takes a time with a zone, such as {_time(0)}"
        ) from None


def _address(request: Request, after: str) -> str:
    """Where the next page is."""
    rest = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
    return f"{HISTORY}?{urlencode([*rest, ('after', after)], safe=':')}"


def _row(key: tuple[str, str], values: Iterable[float]) -> dict[str, Any]:
    figures = {
        name: round(value, 3) if name in ("seconds", "waited", "first_token_seconds") else int(value)
        for name, value in zip(FIELDS, values, strict=True)
    }
    return {"agent": key[0] or None, "model": key[1] or None, **figures}


def _to_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _time(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).strftime(_FORMAT)
