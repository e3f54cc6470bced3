"""Handles arriving requests: access checks, the caller, and routing."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING

from mitmproxy import http

from agent_reporter.addresses import is_loopback

from ..api.paths import is_control_path
from ..gateway.access import rights_for
from ..gateway.callers import Caller, fairness_key_of
from ..gateway.headers import AGENT_HEADER, PRIORITY_HEADER
from ..gateway.messages import RETRY_AFTER, Response, date, header
from ..gateway.request_ids import REQUEST_ID_HEADER, new_request_id, request_id_of
from ..gateway.wrong_tokens import WrongTokens
from ..ollama import origins
from ..ollama.routes import find_route
from ..text import one_line
from .balancer import Balancer, timed
from .connections import Connections, body_limit, body_too_large
from .flows import (
    attach,
    closing,
    context_of,
    declared_size,
    error_of,
    escape_target,
    extract_caller,
    note_refusal,
    path_of,
    to_mitmproxy,
)
from .headers import allow_origin
from .host_header import host_problem
from .shared_stream import NAMED_HOST
from .startup import Startup
from .stream_hooks import continue_later
from .transports import drain_agent

if TYPE_CHECKING:
    from ..gateway.fanout import FanOut

logger = logging.getLogger(__name__)

_PIN, _PRIORITY = AGENT_HEADER.lower().encode(), PRIORITY_HEADER.lower().encode()

NOT_ALLOWED = (
    "clients with public addresses are refused; whoever runs the balancer can allow this one with the option "
    "balancer_allow_from"
)


class Requests:
    name = "ollama-balancer-requests"

    def __init__(self, balancer: Balancer, connections: Connections, startup: Startup) -> None:
        self.balancer = balancer
        self.connections = connections
        self.startup = startup
        self.wrong_tokens = WrongTokens(balancer.clock)
        self._salt = secrets.token_bytes(16)
        self._warned = False
        """Whether a key that travels unencrypted was warned of."""

    def http_connect(self, flow: http.HTTPFlow) -> None:
        flow.response = error_of(flow, 403, "the balancer is not an open proxy: CONNECT is refused")
        flow.response.headers[REQUEST_ID_HEADER] = new_request_id()

    @timed
    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Check the token and remove all credentials from the flow."""
        balancer = self.balancer
        if not flow.live:
            return  # it was read from a file
        balancer.flows.begun(flow)
        self.connections.limits.begun(flow.client_conn.id)
        escape_target(flow.request)
        assert balancer.token
        proxies = balancer.settings.trusted_proxies if balancer.settings else ()
        caller = extract_caller(flow, balancer.token, self._salt, balancer.access, proxies)
        path = path_of(flow)
        request = flow.request
        attach(
            flow,
            balancer.gateway.arrived(
                caller, path, flow, method=request.method, request_id=request_id_of(request.headers.fields)
            ),
        )
        problem = None if flow.is_replay else host_problem(flow.request)
        if flow.client_conn.id in balancer.blocked_clients and not flow.is_replay:
            flow.response = closing(flow, error_of(flow, 403, NOT_ALLOWED))
        elif problem is not None:
            flow.response = closing(flow, error_of(flow, 400, problem))
        else:
            flow.response = self._loop_refusal(flow)
            if flow.response is None and not caller.authorized:
                flow.response = self.throttled(flow, self._page_refusal(flow))
        if flow.response is None and not is_control_path(path) and not _needs_no_key(flow):
            flow.response = self._access_refusal(flow, caller, path)
            self._warn_of_plain_http(flow, caller)
        if flow.response is None and not _is_upload(flow, path):
            flow.response = _size_refusal(flow)
        if flow.response is not None or is_control_path(path):
            return
        if _is_upload(flow, path):
            flow.response = None if caller.authorized else self.throttled(flow, self._origin_refusal(flow))
            # Its body is passed on while it comes: it may be larger than the memory.
            if flow.response is None:
                flow.request.stream = True
                if flow.request.headers.get("expect", "").lower() == "100-continue":
                    del flow.request.headers["expect"]
                    flow.request.stream = continue_later

    @timed
    def request(self, flow: http.HTTPFlow) -> None:
        """Reject requests of web pages of other origins."""
        if not flow.live or flow.response is not None or flow.error is not None or flow.request.stream:
            return
        # Who sends it again is no web page.
        context = context_of(flow)
        trusted = flow.is_replay is not None or (context is not None and context.caller.authorized)
        flow.response = None if trusted else self.throttled(flow, self._origin_refusal(flow))

    def throttled(self, flow: http.HTTPFlow, refusal: http.Response | None) -> http.Response | None:
        """Rate-limit refusals of callers that present wrong tokens."""
        context = context_of(flow)
        if refusal is None or context is None:
            return refusal
        caller = context.caller
        wrong_key = refusal.status_code == 401 and caller.presented and caller.key is None
        if not (wrong_key or (caller.has_wrong_token and caller.key is None)):
            return refusal
        seconds = self.wrong_tokens.record(fairness_key_of(caller.address, "")[0])
        if seconds is None:
            return refusal
        throttled = error_of(
            flow,
            429,
            f"too many wrong tokens or keys from this address: try again in {seconds} s",
        )
        throttled.headers["Retry-After"] = str(seconds)
        return throttled

    def _warn_of_plain_http(self, flow: http.HTTPFlow, caller: Caller) -> None:
        """Say once that keys can be read on their way."""
        client = flow.client_conn
        if self._warned or client.tls or not caller.presented or not self.balancer.access.needs_key:
            return
        peer = str(client.peername[0]) if client.peername else ""
        if is_loopback(peer) or peer != caller.address:
            return  # a trusted proxy on the way has the encrypted part
        self._warned = True
        logger.warning(
            "%s sends its key unencrypted: whoever is on the network can read it. To serve https on the same port: "
            "--set certs=*=FILE.pem (docs/access.md).",
            one_line(peer, 60),
        )

    def _access_refusal(self, flow: http.HTTPFlow, caller: Caller, path: str) -> http.Response | None:
        """The refusal of a caller without a key that may make the call."""
        access = self.balancer.access
        refusal = access.refusal(caller, rights_for(path)) if access.needs_key else None
        if refusal is None:
            return None
        self.balancer.audit.refused(caller, path, *refusal)
        response = closing(flow, error_of(flow, *refusal))
        if refusal.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        elif refusal.status == 503:
            response.headers["Retry-After"] = RETRY_AFTER
        return self.throttled(flow, response)

    def _page_refusal(self, flow: http.HTTPFlow) -> http.Response | None:
        """The refusal of a request that only a malicious web page sends."""
        request = flow.request
        if header(request.headers.fields, b"service-worker") is not None:
            return error_of(flow, 403, "the balancer serves no service workers")
        local = flow.client_conn.sockname
        host: str | None = vars(request).get(NAMED_HOST)
        settings = self.balancer.settings
        if flow.is_replay or local is None or not is_loopback(local[0]) or host is None:
            return None
        if origins.allowed_host(host, settings.hosts if settings else ()):
            return None
        name = one_line(host, 80)
        return error_of(
            flow,
            403,
            f"Host {name!r} is not a name of this machine: use its address or localhost, or allow the name "
            "with --set balancer_hosts=NAME",
        )

    def _origin_refusal(self, flow: http.HTTPFlow) -> http.Response | None:
        """The refusal of a web page of another origin, or the answer to its preflight."""
        request = flow.request
        origin = header(request.headers.fields, b"origin")
        if not origin or origins.same_origin(origin, request.host_header or ""):
            return None
        route = find_route(path_of(flow))
        allowed = {"Allow": ", ".join(route.methods)} if route is not None else {}
        if not self.balancer.allows(origin):
            note_refusal(flow, f"web pages of {one_line(origin, 80)} may not call; balancer_origins allows them")
            return _empty_response(403, allowed if request.method == "OPTIONS" else {})
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            response = _empty_response(204, allowed)
            response.headers.pop("content-length", None)
            requested = header(request.headers.fields, b"access-control-request-headers") or ""
            response.headers["Access-Control-Allow-Headers"] = origins.allowed_headers(requested)
            response.headers["Access-Control-Allow-Methods"] = origins.ALLOWED_METHODS
            response.headers["Access-Control-Max-Age"] = "43200"
            allow_origin(response, origin)
            return response
        return None

    def _loop_refusal(self, flow: http.HTTPFlow) -> http.Response | None:
        if self.balancer.via in (header(flow.request.headers.fields, b"via") or ""):
            return error_of(
                flow, 508, "this request comes from the balancer itself: an agent has the balancer's address"
            )
        return None

    async def route_request(self, flow: http.HTTPFlow) -> None:
        """Choose an agent, or answer."""
        balancer, gateway = self.balancer, self.balancer.gateway
        context = context_of(flow)
        if context is None:  # no head of it was seen
            context = gateway.arrived(
                Caller(flow.client_conn.id),
                path_of(flow),
                flow,
                method=flow.request.method,
                request_id=new_request_id(),
            )
            attach(flow, context)
        fields = flow.request.headers.fields
        if balancer.tracing is not None and context.trace is None:
            balancer.tracing.begin(context, flow.request.method, flow.request.headers.fields)
        gateway.begin(context, header(fields, _PIN), header(fields, _PRIORITY))
        await self.startup.wait_until_probed()
        if gateway.load_checks.pending and path_of(flow) == "/api/ps":
            await gateway.load_checks.wait_pending()
        direction = await gateway.route(context)
        if isinstance(direction, Response):
            flow.response = to_mitmproxy(direction)
        balancer.show(flow, context)

    async def sending(self, flow: http.HTTPFlow) -> None:
        """A piece of a large request has been sent."""
        await drain_agent(flow)

    async def advance(self, fan_out: FanOut) -> None:
        """The next part of several agents' answer."""
        await fan_out.advance()


def _needs_no_key(flow: http.HTTPFlow) -> bool:
    """Whether an operator sends it again, or a browser asks whether a page may send what it is about to."""
    return flow.is_replay is not None or flow.request.method == "OPTIONS"


def _size_refusal(flow: http.HTTPFlow) -> http.Response | None:
    """What a request gets whose head says that its body is too large."""
    limit = body_limit(flow)
    if declared_size(flow) <= limit:
        return None
    flow.request.headers.pop("expect", None)  # nobody is to send it
    return closing(flow, body_too_large(flow, limit))


def _is_upload(flow: http.HTTPFlow, path: str) -> bool:
    route = find_route(path)
    return route is not None and route.uploads and flow.request.method == "POST" and not flow.is_replay


def _empty_response(status: int, headers: dict[str, str]) -> http.Response:
    name, value = date()
    return http.Response.make(status, b"", headers | {name.decode(): value.decode()})
