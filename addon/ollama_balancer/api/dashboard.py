"""GET /dashboard: a live page of the fleet. It comes from here alone, and holds no word of a prompt."""

import html
from collections.abc import Awaitable, Callable
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..core.agent import Agent, Status
from ..core.queue import RequestQueue
from ..core.recent import Recent
from ..core.registry import AgentRegistry
from .upgrades import older_version

FOLDER = Path(__file__).parent / "page"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

MAX_ROWS = 100


def _busiest_gpu(agent: Agent) -> float:
    """Percent; -1 where nothing is known of any."""
    most = -1.0
    if agent.metrics is not None and agent.metrics.gpus:
        for gpu in agent.metrics.gpus:
            if gpu.utilization is not None and gpu.utilization > most:
                most = gpu.utilization
    return most


SORTS: dict[str, Callable[[Agent], Any]] = {
    "status": lambda agent: agent.status,
    "in_flight": lambda agent: -agent.in_flight,
    "cpu": lambda agent: -agent.metrics.cpu_usage if agent.metrics is not None else 1,
    "memory": lambda agent: -agent.metrics.memory_usage if agent.metrics is not None else 1,
    "gpu": lambda agent: -_busiest_gpu(agent),
}
"""Sort keys, applied to agents that are sorted by name."""


class Dashboard:
    """`totals` gives the counts of all requests since the start, `join_line` what lets a host join, `token_place` a
    sentence that says where the token is.
    """

    def __init__(
        self,
        registry: AgentRegistry,
        queue: RequestQueue,
        recent: Recent,
        totals: Callable[[], dict[str, int]],
        join_line: Callable[[Request], str | None],
        token_place: Callable[[], str],
    ) -> None:
        self.registry = registry
        self.queue = queue
        self.recent = recent
        self.totals = totals
        self.join_line = join_line
        self.token_place = token_place

    async def page(self, request: Request) -> Response:
        page = _read("page.html").replace(b"@TOKEN_PLACE@", html.escape(self.token_place()).encode())
        return Response(page, headers=HEADERS | {"Content-Type": "text/html; charset=utf-8"})

    async def data(self, request: Request) -> Response:
        """All that the page shows, in one answer, whatever the fleet's size."""
        query = request.query_params
        order = SORTS.get(query.get("sort", ""))
        words = query.get("filter", "").casefold()[:200]
        agents = [agent for agent in self.registry if not words or _matches(agent, words)]
        agents.sort(key=attrgetter("name"))
        if order is not None:
            agents.sort(key=order)
        size = min(max(_number(query.get("size"), 50), 1), MAX_ROWS)
        pages = max(1, -(-len(agents) // size))
        page = min(max(_number(query.get("page"), 1), 1), pages)
        now = self.registry.clock()
        curves = query.get("curves") != "no"
        counts = self.registry.counts()
        return JSONResponse(
            {
                "mode": self.registry.mode,
                "figures": self.recent.figures(),
                "totals": (totals := self.totals()),
                "in_flight": totals["in_flight"],
                "states": {str(status): counts.get(status, 0) for status in Status},
                "line": self.queue.describe(20),
                "agents": [self._row(agent, now, curves=curves) for agent in agents[(page - 1) * size : page * size]],
                "found": len(agents),
                "join": None if any(counts.values()) else self.join_line(request),
                "page": page,
                "pages": pages,
                "decisions": [
                    {**decision, "age": round(now - decision["at"], 1)} for decision in reversed(self.recent.decisions)
                ],
            }
        )

    def _row(self, agent: Agent, now: float, *, curves: bool) -> dict[str, Any]:
        metrics, curve = agent.metrics, self.recent.curve(agent) if curves else None
        return {
            "name": agent.name,
            "url": agent.address.url,
            "status": agent.status,
            "reason": agent.reason,
            "older_reporter": older_version(metrics),
            "draining": agent.draining,
            "loaded": [model.name for model in agent.loaded][:20],
            "models": len(agent.model_names),
            "present": agent.model_names[:20],
            "in_flight": agent.in_flight,
            "slots": agent.slots,
            "cpu": metrics.cpu_usage if metrics else None,
            "memory": metrics.memory_usage if metrics else None,
            "gpus": [
                {
                    "name": gpu.name,
                    "busy": gpu.utilization,
                    "used": gpu.memory_used,
                    "total": gpu.memory_total,
                    "temperature": gpu.temperature,
                }
                for gpu in (metrics.gpus or ())[:8]
            ]
            if metrics
            else [],
            "speeds": {model: round(speed, 1) for model, speed in list(agent.stats.speeds.items())[:5]},
            "fresh": agent.fresh,
            "report_age": round(now - agent.metrics_at, 1) if metrics else None,
            "curve": {"in_flight": list(curve.in_flight), "cpu": list(curve.cpu)} if curve is not None else None,
        }


def _matches(agent: Agent, words: str) -> bool:
    return words in "\n".join((agent.name, agent.status, *agent.model_names)).casefold()


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 8 else default


@cache
def _read(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def file(name: str, content_type: str) -> Callable[[Request], Awaitable[Response]]:
    """What answers with one of the page's files."""

    async def answer(request: Request) -> Response:
        return Response(_read(name), headers=HEADERS | {"Content-Type": f"{content_type}; charset=utf-8"})

    return answer
