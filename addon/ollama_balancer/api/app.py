"""The control API as a Starlette application. It reads and changes the registry and nothing else."""

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent_reporter.limits import DEFAULT_OLLAMA_PORT
from agent_reporter.wire import AgentRegistration, check_size, describe

from ..core.access import Right
from ..core.address import Address
from ..core.agent import Agent, Source
from ..core.agent_view import describe_agent
from ..core.events import Events
from ..core.history import History
from ..core.ledger import Ledger
from ..core.queue import RequestQueue
from ..core.recent import Recent
from ..core.registry import AgentRegistry
from ..core.stats import RequestMetrics
from ..gateway.access import Access, acts_for
from ..gateway.audit import AuditTrail
from ..gateway.callers import Caller
from ..gateway.messages import RETRY_AFTER
from ..gateway.reachability import reachability_headers
from ..storage.usage import UsageLog
from . import dashboard
from . import events as events_api
from . import history as history_api
from .callers import caller_of
from .calls import CALLS, JSON, Call
from .health import by_state, health
from .joining import JoinApi
from .keys import KeyFile, KeysApi
from .models import DrainRequest
from .openapi import document
from .paths import SCRIPTS
from .prometheus import Exposition
from .reports import store_report
from .upgrades import notice
from .usage import UsageApi

type Handler = Callable[[Request], Awaitable[Response]]


class ControlApi:
    """Serves the control API. `request_metrics`, `recent` and `history` describe finished requests.

    `on_change` is called with an agent that was added or has moved, so that it is probed at once. `ending` returns
    whether the balancer is shutting down, `in_flight` the number of requests now at agents, `wall` the time of day in
    seconds since 1970, `outward` this machine's address for others, as host:port, `token_place` a sentence that says
    where the token is.
    """

    def __init__(
        self,
        registry: AgentRegistry,
        queue: RequestQueue,
        request_metrics: RequestMetrics,
        recent: Recent,
        history: History,
        started: float,
        on_change: Callable[[Agent], None],
        ending: Callable[[], bool] = lambda: False,
        in_flight: Callable[[], int] | None = None,
        wall: Callable[[], float] = time.time,
        access: Access | None = None,
        keys: KeyFile | None = None,
        audit: AuditTrail | None = None,
        usage: UsageLog | None = None,
        events: Events | None = None,
        outward: Callable[[], str | None] = lambda: None,
        token_place: Callable[[], str] = lambda: "",
    ) -> None:
        self.registry = registry
        self.started = started
        self.on_change = on_change
        self.queue = queue
        self.request_metrics = request_metrics
        self.in_flight = in_flight or (lambda: registry.in_flight)
        usage = usage or UsageLog(Ledger(wall))
        self.exposition = Exposition(registry, queue, request_metrics, self._totals, usage.ledger)
        self.ending = ending
        self.wall = wall
        self.access = access or Access(registry.clock)
        self.audit = audit or AuditTrail(registry.clock, wall)
        self.joining = JoinApi(registry, self.access, self.audit, keys, registry.clock, wall, outward)
        page = dashboard.Dashboard(registry, queue, recent, self._totals, self.joining.line, token_place)
        self._answers: dict[str, Handler] = {
            "health": self.health,
            "prometheus": self.prometheus,
            "page": page.page,
            **{name: dashboard.file(name, "text/javascript") for name in SCRIPTS},
            "style": dashboard.file("page.css", "text/css"),
            "data": page.data,
            "balancer": self.balancer,
            "history": history_api.endpoint(history),
            "events": events_api.endpoint(events or Events(wall)),
            "openapi": self.openapi,
            "agents": self.agents,
            "register": self.register,
            "agent": self.agent,
            "delete": self.delete,
            "metrics": self.metrics,
            "drain": self.drain,
            "resume": self.resume,
            **UsageApi(usage, wall).handlers,
            **self.joining.handlers,
        }
        if keys is not None:
            self._answers |= KeysApi(keys, self.access.limiter, self.audit, wall).handlers
        self.app = Starlette(routes=self._routes(), exception_handlers={HTTPException: self._http_error})
        self.app.router.redirect_slashes = False  # such a path is unknown, like any other

    def _routes(self) -> list[Route]:
        """One for each path: two of one path would each refuse the other's methods."""
        by_path: dict[str, dict[str, Call]] = {}
        for call in CALLS:
            by_path.setdefault(call.path, {})[call.method] = call
        return [Route(path, self._endpoint(calls), methods=list(calls)) for path, calls in by_path.items()]

    def _endpoint(self, calls: dict[str, Call]) -> Handler:
        async def answer(request: Request) -> Response:
            call = calls["GET" if request.method == "HEAD" else request.method]
            self._authorize(request, call)
            return await self._answers[call.operation](request)

        return answer

    def _authorize(self, request: Request, call: Call) -> None:
        caller = caller_of(request)
        refusal = self.access.refusal(caller, call.rights, always=call.always)
        if refusal is not None:
            self.audit.refused(caller, request.scope["path"], *refusal)
            headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": RETRY_AFTER}}
            raise HTTPException(*refusal, headers.get(refusal.status))

    def _totals(self) -> dict[str, int]:
        return self.request_metrics.totals(self.in_flight())

    async def health(self, request: Request) -> Response:
        status, body = health(self.registry, ending=self.ending())
        return JSONResponse(body, status)

    async def prometheus(self, request: Request) -> Response:
        body, content_type = await self.exposition.page(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type, "Vary": "Accept"})

    async def openapi(self, request: Request) -> Response:
        return Response(document(), media_type=JSON)

    async def balancer(self, request: Request) -> Response:
        registry = self.registry
        return JSONResponse(
            {
                "mode": registry.mode,
                "access": {"needs_key": self.access.needs_key, "keys": self.access.keyring.clients},
                "uptime": round(registry.clock() - self.started, 3),
                "totals": self._totals(),
                "waiting": len(self.queue),
                "line": self.queue.describe(),
                "agents": by_state(registry.counts()),
            }
        )

    async def agents(self, request: Request) -> Response:
        return JSONResponse({"agents": [self._describe(agent, request, whole=False) for agent in self.registry]})

    async def agent(self, request: Request) -> Response:
        return self._agent_response(self._find_agent(request), request)

    async def register(self, request: Request) -> Response:
        try:
            registration = AgentRegistration.model_validate_json(_check_body(await request.body()))
        except ValidationError as e:
            raise HTTPException(400, describe(e.errors())) from e
        try:
            if registration.url is not None:
                address = Address.parse(registration.url)
            elif request.client is not None:
                address = Address(_plain(request.client.host), registration.port or DEFAULT_OLLAMA_PORT)
            else:
                raise ValueError("missing, and the caller's address is not known")
        except ValueError as e:
            raise HTTPException(400, f"url: {e}") from e
        known, caller = self.registry.get(registration.name), caller_of(request)
        self._check_key(known, address, caller, registration)
        if known is not None:
            address = self._registered_address(known, registration, address)
        former_address = None if known is None else known.address
        takes_over = known is None or not _is_taken(known, registration)
        try:
            agent, new = self.registry.register(registration.name, address, Source.REGISTERED, _reporting_key(caller))
        except ValueError as e:
            raise HTTPException(400, str(e)) from e
        if takes_over:
            agent.registered_by(registration.instance)
        self.on_change(agent)
        if registration.instance is None or agent.address != former_address:  # a reporter registers again and again
            self.audit.changed(caller, "agent.register", agent.name, url=agent.address.url)
        return JSONResponse({"id": agent.id, "name": agent.name, "url": agent.address.url}, 201 if new else 200)

    def _registered_address(self, agent: Agent, registration: AgentRegistration, address: Address) -> Address:
        """Where a known agent is to be found from now on. A token alone does not lead its requests elsewhere."""
        if agent.address == address:
            return address
        if agent.source is not Source.REGISTERED:
            if agent.host_key == (address.host, address.port):
                return agent.address  # the same host, as it is configured
            whose = (
                "by balancer_agents or the fleet file" if agent.source is Source.STATIC else "by the balancer itself"
            )
            raise HTTPException(
                409,
                f"{agent.name} is configured {whose} at {agent.address.url}: a registration cannot move it. If this "
                f"is the same host, register it with that URL (--advertise {agent.address.url}); if it is another "
                "one, give it a different name with --name",
            )
        if _is_taken(agent, registration):
            # Two hosts of one name would take the agent from each other with every report.
            raise HTTPException(
                409,
                f"another host reports as {agent.name} ({agent.address.url}): give this one a different name with "
                f"--name. If it is the same host with a new address, it is accepted {self.registry.stale_after} s "
                "after the last report from the old one, or at once with the instance that registered it",
            )
        return address

    def _check_key(
        self, known: Agent | None, address: Address, caller: Caller, registration: AgentRegistration
    ) -> None:
        """A key that may only report takes no agent, and no host, that is somebody else's."""
        key = _reporting_key(caller)
        if key is None:
            return
        if caller.key is not None and caller.key.agent not in (None, registration.name):
            raise HTTPException(409, f"this key may report for {caller.key.agent} only, as which its host has joined")
        from_host = _plain(caller.address) == address.host
        if known is not None and known.key != key:
            if known.key is not None:
                problem = "another key reports for it"
            elif _is_taken(known, registration):
                problem = "another host reports for it"
            elif not (from_host and known.address == address):
                problem = "it was registered or configured by somebody else, at another address than this host's"
            else:
                return
            raise HTTPException(409, f"{known.name} is not this key's agent: {problem}; use another name (--name)")
        others = [agent for agent in self.registry if agent.address == address and agent.key != key]
        if others and not from_host:
            raise HTTPException(409, f"url: {address.url} is another agent's, and this call does not come from there")

    async def metrics(self, request: Request) -> Response:
        agent = self._find_own_agent(request)
        try:
            store_report(self.registry, agent, await request.body(), self.wall())
        except ValueError as e:
            raise HTTPException(400, str(e)) from e
        return Response(status_code=204, headers=reachability_headers(agent))

    async def drain(self, request: Request) -> Response:
        agent = self._find_own_agent(request)
        body = await request.body()
        try:
            drain_request = DrainRequest.model_validate_json(_check_body(body)) if body.strip() else DrainRequest()
        except ValidationError as e:
            raise HTTPException(400, describe(e.errors())) from e
        says_goodbye = drain_request.until == "registration"
        if not says_goodbye:
            self._check_host(agent, request)
        self.registry.drain(agent, until_registration=says_goodbye)
        if not says_goodbye:
            self.audit.changed(caller_of(request), "agent.drain", agent.name)
        return self._agent_response(agent, request)

    async def resume(self, request: Request) -> Response:
        agent = self._find_own_agent(request)
        self._check_host(agent, request)
        self.registry.resume(agent)
        self.audit.changed(caller_of(request), "agent.resume", agent.name)
        return self._agent_response(agent, request)

    async def delete(self, request: Request) -> Response:
        agent = self._find_agent(request)
        self.registry.remove(agent)
        self.audit.changed(caller_of(request), "agent.delete", agent.name)
        return Response(status_code=204)

    def _find_agent(self, request: Request) -> Agent:
        key = request.path_params["id"]
        agent = self.registry.get(key)
        if agent is None:
            raise HTTPException(404, f"no agent has the id or name {key[:80]!r}: GET /api/agents lists them")
        return agent

    def _find_own_agent(self, request: Request) -> Agent:
        """One that the caller may report for."""
        agent, caller = self.registry.get(request.path_params["id"]), caller_of(request)
        if agent is not None and acts_for(caller, agent):
            return agent
        if caller.authorized or (caller.key is not None and caller.key.has(Right.OPERATE)):
            return self._find_agent(request)
        # A key that may only report does not hear of others' agents.
        raise HTTPException(404, "this key has registered no agent with that id or name: register it first")

    def _check_host(self, agent: Agent, request: Request) -> None:
        """What is done to an agent is done to the other names of its host."""
        caller = caller_of(request)
        if _reporting_key(caller) is not None and not all(
            acts_for(caller, each) for each in self.registry.fleet.hosts.of(agent)
        ):
            raise HTTPException(409, f"{agent.name}'s host is another agent too, which is not this key's")

    def _describe(self, agent: Agent, request: Request, *, whole: bool = True) -> dict[str, Any]:
        text = notice(agent.metrics)
        if text is not None:
            with contextlib.suppress(HTTPException):  # without an address to name
                text = notice(agent.metrics, self.joining.balancer_url(request, for_others=True))
        return describe_agent(agent, self.registry.clock(), whole=whole) | {"notice": text}

    def _agent_response(self, agent: Agent, request: Request) -> Response:
        described = self._describe(agent, request)
        described["learned"] = self.registry.learner.estimates.describe(agent.id)
        if _reporting_key(caller_of(request)) is not None:
            described |= {"alias_of": None, "reason": None}  # they name other agents
        return JSONResponse(described)

    async def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        detail = error.detail
        path = request.scope["path"]
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
            detail = f"{request.method} is not allowed for {path[:200]}: it takes {headers['Allow']}"
        elif error.status_code == 404 and detail == "Not Found":
            detail = f"{path[:200]}: the control API has no such path"
        return JSONResponse({"error": detail}, error.status_code, headers)


def _check_body(body: bytes) -> bytes:
    try:
        return check_size(body)
    except ValueError as e:
        raise HTTPException(400, f"body: {e}") from e


def _reporting_key(caller: Caller) -> str | None:
    """The name of a key that may only report."""
    key = caller.key
    return None if caller.authorized or key is None or key.has(Right.OPERATE) else key.name


def _is_taken(agent: Agent, registration: AgentRegistration) -> bool:
    """Whether another reporter than the one that registers holds the name: it reports, and has not said goodbye."""
    return (
        agent.fresh
        and not agent.draining_until_registration
        and (registration.instance is None or agent.instance != registration.instance)
    )


def _plain(host: str) -> str:
    """An IPv4 address that came in over an IPv6 socket, as an IPv4 address."""
    return host.removeprefix("::ffff:") if "." in host else host
