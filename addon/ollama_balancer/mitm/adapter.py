"""The gateway's adapter: its requests are mitmproxy's flows."""

from collections.abc import Callable

from mitmproxy import http
from mitmproxy.flow import Error

from ..gateway.context import RequestContext
from ..gateway.messages import AgentRequest, ClientRequest
from . import transports
from .flows import flow_of
from .headers import client_request, request_to_agents


class FlowAdapter:
    """`via` is the balancer's name in the Via header; `show` updates what the flow shows about its request."""

    def __init__(self, via: str, show: Callable[[http.HTTPFlow, RequestContext], None]) -> None:
        self.via = via
        self.show = show

    def request(self, context: RequestContext) -> ClientRequest:
        return client_request(_flow(context).request)

    def agent_request(self, context: RequestContext) -> AgentRequest:
        caller = context.caller
        return request_to_agents(_flow(context).request, self.via, caller.credentials, caller.target)

    def waiting(self, context: RequestContext) -> None:
        self.show(_flow(context), context)

    def is_killed(self, context: RequestContext) -> bool:
        flow = flow_of(context)  # nothing else tells of a flow that a person has killed
        return flow is not None and flow.error is not None and flow.error.msg == Error.KILLED_MESSAGE

    def cut(self, context: RequestContext) -> None:
        if (flow := flow_of(context)) is not None:
            transports.cut_agent(flow)

    def client_is_slow(self, context: RequestContext) -> bool:
        flow = flow_of(context)
        return flow is not None and transports.is_slow(flow)

    def read_client(self, context: RequestContext, on: bool) -> None:
        transports.read_client(context.caller.client_id, on)

    async def drain_client(self, context: RequestContext) -> None:
        await transports.drain_client(context.caller.client_id)


def _flow(context: RequestContext) -> http.HTTPFlow:
    flow = flow_of(context)
    assert flow is not None
    return flow
