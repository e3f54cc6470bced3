"""Serves the control API."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.net.local_ip import get_local_ip

from ..api.health import health
from ..api.paths import HEALTH, is_control_path
from ..gateway.access import REPORT, acts_for
from ..gateway.callers import Caller
from ..gateway.messages import json_response
from ..text import one_line
from .balancer import Balancer
from .flows import context_of, error_of, path_of, to_mitmproxy
from .key_file import KeyFile
from .listening import listening, reach
from .requests import Requests
from .serving import serve
from .startup import Startup

if TYPE_CHECKING:
    from ..api.app import ControlApi as Application
    from ..core.agent import Agent

logger = logging.getLogger(__name__)

MAX_CONTROL_PATH = 4 * 1024
"""Bytes of the path and query of a control call."""


def _address_for_others() -> str | None:
    at = reach(listening(), get_local_ip())
    return None if at is None or at.local else at.url.partition("://")[2]


def _log_older_reporter(agent: Agent) -> None:
    from ..api.upgrades import SOMEWHERE, notice

    at = reach(listening(), get_local_ip())
    text = notice(agent.metrics, SOMEWHERE if at is None else at.url)
    if text is not None:
        logger.info("%s: %s", agent.name, one_line(text, 400))


class ControlApi:
    name = "ollama-balancer-control-api"

    def __init__(self, balancer: Balancer, requests: Requests, startup: Startup, keys: KeyFile) -> None:
        self.balancer = balancer
        self.keys = keys
        self.requests = requests
        self.startup = startup
        self._started = balancer.clock()
        self._app: Application | None = None

    def _application(self) -> Application:
        # No property: mitmproxy looks at all that an addon has for commands when it loads it.
        if self._app is None:
            from ..api.app import ControlApi as Application

            balancer = self.balancer
            self._app = Application(
                balancer.registry,
                balancer.gateway.router.queue,
                balancer.gateway.request_metrics,
                balancer.accounting.recent,
                balancer.accounting.history,
                self._started,
                balancer.probe_now,
                lambda: balancer.stopper.ending,
                lambda: balancer.gateway.in_flight,
                access=balancer.access,
                keys=self.keys,
                audit=balancer.audit,
                usage=balancer.usage,
                events=balancer.events,
                outward=_address_for_others,
                token_place=lambda: "" if balancer.token is None else balancer.token.place,
            )
        return self._app

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answer a call of the balancer's own API."""
        if not flow.live or flow.response is not None or flow.error is not None or flow.request.stream:
            return
        path = path_of(flow)
        if is_control_path(path):
            await self._serve(flow, path)

    async def _serve(self, flow: http.HTTPFlow, path: str) -> None:
        if not flow.request.data.method.isalpha():
            flow.response = error_of(flow, 405, "unknown HTTP method")
            return
        if len(flow.request.data.path) > MAX_CONTROL_PATH:
            flow.response = error_of(flow, 414, f"paths of the control API have at most {MAX_CONTROL_PATH} bytes")
            return
        self.balancer.accounting.count()
        context = context_of(flow)
        caller = Caller(flow.client_conn.id) if context is None else context.caller
        if path == HEALTH and flow.request.method == "GET":
            status, health_data = health(self.balancer.registry, ending=self.balancer.stopper.ending)
            body = json.dumps(health_data, separators=(",", ":")).encode()
            flow.response = to_mitmproxy(json_response(status, body))
            return
        await self.startup.wait_until_loaded()
        from ..api.reports import take_report
        from ..gateway.reachability import reachability_headers

        reports = flow.request.method == "POST" and self.balancer.access.refusal(caller, REPORT, always=True) is None
        body = flow.request.raw_content or b""
        agent = (
            take_report(self.balancer.registry, path, body, lambda agent: acts_for(caller, agent), _log_older_reporter)
            if reports
            else None
        )
        if agent is not None:
            now = time.time()
            headers = http.Headers([(k.encode(), v.encode()) for k, v in reachability_headers(agent).items()])
            flow.response = http.Response(b"HTTP/1.1", 204, b"No Content", headers, b"", None, now, now)
        else:
            await serve(self._application().app, flow, caller)
            if flow.response is not None and flow.response.status_code == 401:
                flow.response = self.requests.throttled(flow, flow.response)
