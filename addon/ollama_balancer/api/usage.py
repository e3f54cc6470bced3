"""GET /api/usage: who used what, as JSON or CSV; GET /api/usage/me: a key's own."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..core.ledger import TOKEN, Groups, Query
from ..core.usage_report import as_csv, described, hour_text, read_query
from ..storage.sqlite_file import SqliteFileError
from ..storage.usage import UsageLog
from .callers import caller_of

FORMATS = ("json", "csv")


class UsageApi:
    """`wall` gives seconds since 1970."""

    def __init__(self, log: UsageLog, wall: Callable[[], float]) -> None:
        self.log = log
        self.wall = wall
        # However many ask, the threads that others need are not taken.
        self._one_at_a_time = asyncio.Lock()
        self.handlers: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "usage": self.usage,
            "own_usage": self.own_usage,
        }

    async def usage(self, request: Request) -> Response:
        return await self._answer(request, None, "key")

    async def own_usage(self, request: Request) -> Response:
        caller = caller_of(request)
        key = TOKEN if caller.authorized or caller.key is None else caller.key.name
        return await self._answer(request, key, "model")

    async def _answer(self, request: Request, key: str | None, default: str) -> Response:
        given = request.query_params
        form = given.get("format", "json")
        if form not in FORMATS:
            raise HTTPException(400, f"format: {form[:40]!r} is not accepted; it takes {' or '.join(FORMATS)}")
        try:
            query = read_query(given.get("by", default), given.get("from"), given.get("to"), self.wall(), key)
            async with self._one_at_a_time:
                groups = await asyncio.to_thread(self.log.sums, query)
        except ValueError as e:
            raise HTTPException(400, str(e)) from e
        except SqliteFileError as e:
            raise HTTPException(503, str(e)) from e
        return await asyncio.to_thread(_response, query, groups, form)


def _response(query: Query, groups: Groups, form: str) -> Response:
    rows = [described(query, group, values) for group, values in groups.items()]
    headers = {"Cache-Control": "no-store"}
    if form == "csv":
        headers["Content-Disposition"] = 'attachment; filename="usage.csv"'
        return Response(as_csv(query, rows), headers=headers, media_type="text/csv")
    about = {"from": hour_text(query.start), "to": hour_text(query.end), "by": list(query.by)}
    return JSONResponse(about | {"rows": rows}, headers=headers)
