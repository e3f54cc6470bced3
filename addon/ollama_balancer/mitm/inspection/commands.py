"""Commands for mitmproxy's console and mitmweb's command bar."""

import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

import mitmproxy.types
from mitmproxy import command, contentviews, ctx, exceptions, flow, http
from mitmproxy.log import ALERT

from ...api.paths import is_control_path
from ...core.agent import Agent
from ...core.policies import POLICIES
from ...core.queue import RequestQueue
from ...core.registry import AgentRegistry
from ...gateway.headers import AGENT_HEADER
from ...ollama.names import canonical_name, local_name
from ...ollama.requests import read_request
from ...ollama.routes import find_route
from ...tables import Table, fleet_table, in_columns, queue_table
from ..compat.mitmproxy_names import remove_view
from ..flows import path_of
from ..replay import send_again
from .annotations import COMPARED, COMPARISON_KEY
from .comparison import ComparisonContentview
from .copies import ReplayedCopies, copy_of
from .marks import UserMarks, set_mark

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 1_000
"""Requests that one command sends."""


def define[F: Callable[..., Any]](path: str) -> Callable[[F], F]:
    """mitmproxy's decorator for a command, with its type."""
    decorator: Callable[[F], F] = command.command(path)
    return decorator


class CompletionNames(list[str]):
    """Names for completion. Other names are accepted too, so that the command reports the error."""

    def __contains__(self, name: object) -> bool:
        return True


def choice[F: Callable[..., Any]](name: str, of: str) -> Callable[[F], F]:
    """That argument is completed with what the command `of` returns."""
    decorator: Callable[[F], F] = command.argument(name, type=mitmproxy.types.Choice(of))
    return decorator


class Commands:
    """An addon of its own, so that all of them are found in one place."""

    name = "ollama-balancer-commands"

    def __init__(self, registry: AgentRegistry, queue: RequestQueue) -> None:
        self.registry = registry
        self.request_queue = queue
        self.marks = UserMarks()
        self.copies = ReplayedCopies()

    def running(self) -> None:
        self.marks.install()
        self.copies.install()

    def done(self) -> None:
        self.marks.remove()
        self.copies.remove()

    @define("balancer.agents")
    def agents(self) -> mitmproxy.types.Data:
        """Show the fleet: each agent's state, load, loaded models and speed."""
        return _present(fleet_table(self.registry, self.registry.clock()))

    @define("balancer.queue")
    def queue(self) -> mitmproxy.types.Data:
        """Show how many requests wait for an agent, by model and by client."""
        return _present(queue_table(self.request_queue.describe()))

    @define("balancer.mode")
    @choice("mode", of="balancer.modes")
    def mode(self, mode: str = "") -> str:
        """Show how agents are chosen, or change it: balancer.mode roundrobin."""
        if mode:
            try:
                ctx.options.update(balancer_mode=mode)
            except exceptions.OptionsError as e:
                raise exceptions.CommandError(str(e)) from e
        return self.registry.mode

    @define("balancer.modes")
    def modes(self) -> Sequence[str]:
        """The ways of choosing an agent."""
        return CompletionNames(POLICIES)

    @define("balancer.names")
    def names(self) -> Sequence[str]:
        """The names of all agents."""
        return CompletionNames(agent.name for agent in self.registry)

    @define("balancer.drain")
    @choice("agent", of="balancer.names")
    def drain(self, agent: str) -> None:
        """Drain an agent: it gets no new requests, and running ones finish."""
        found = self._find(agent)
        self.registry.drain(found)
        logger.log(ALERT, "Agent %s is draining: %d requests are still in flight.", found.name, found.in_flight)

    @define("balancer.resume")
    @choice("agent", of="balancer.names")
    def resume(self, agent: str) -> None:
        """Resume a drained agent."""
        found = self._find(agent)
        self.registry.resume(found)
        logger.log(ALERT, "Agent %s is %s.", found.name, found.status)

    @define("balancer.replay")
    @choice("agent", of="balancer.names")
    def replay(self, flows: Sequence[flow.Flow], agent: str) -> None:
        """Send copies of these flows' requests to an agent: balancer.replay @focus gpu-1."""
        found = self._find(agent)
        prompts = _prompts(flows)
        for prompt in prompts:
            _send_copy(prompt, found)
        logger.log(ALERT, "Sent to %s: %d of %d flows.", found.name, len(prompts), len(flows))

    @define("balancer.compare")
    def compare(self, flows: Sequence[flow.Flow]) -> None:
        """Send copies of these flows' requests to every agent that has the model: balancer.compare '~marked'."""
        plan = [(prompt, self._capable_agents(prompt)) for prompt in _prompts(flows)]
        if sum(len(agents) for _, agents in plan) > MAX_AT_ONCE:
            raise exceptions.CommandError(f"this would send more than {MAX_AT_ONCE} requests: compare fewer flows")
        for prompt, agents in plan:
            group = secrets.token_hex(3)
            for agent in agents:
                _send_copy(prompt, agent, group)
            logger.log(
                ALERT,
                "Comparison %s was sent to %s. When the answers have arrived: balancer.comparison '~comment %s'",
                group,
                ", ".join(agent.name for agent in agents),
                group,
            )

    def _find(self, name: str) -> Agent:
        agent = self.registry.get(name)
        if agent is None:
            names = ", ".join(self.names()) or "none"
            raise exceptions.CommandError(f"there is no agent named {name[:80]!r}; the agents are: {names[:500]}")
        return agent

    def _capable_agents(self, prompt: http.HTTPFlow) -> list[Agent]:
        """The agents that can be sent this request."""
        path = path_of(prompt)
        route = find_route(path)
        body, kind = prompt.request.raw_content or b"", prompt.request.headers.get("content-type", "")
        model = read_request(route, path, body, kind).model if route is not None else None
        if model is None:
            raise exceptions.CommandError(f"{path[:200]}: the request names no model to compare")
        names = {canonical_name(model), local_name(model) or canonical_name(model)}
        agents = [agent for agent in self.registry if agent.available and any(map(agent.may_have, names))]
        if not agents:
            raise exceptions.CommandError(f"no online agent has model {model[:200]!r}")
        return agents


class ComparisonCommand:
    """Apart from the others, as it needs no fleet."""

    name = "ollama-balancer-comparison"

    def __init__(self) -> None:
        self.comparisons = ComparisonContentview()

    def running(self) -> None:
        if self.comparisons.name.lower() not in contentviews.registry:
            contentviews.add(self.comparisons)

    def done(self) -> None:
        remove_view(self.comparisons.name)

    @define("balancer.comparison")
    def comparison(self, flows: Sequence[flow.Flow]) -> mitmproxy.types.Data:
        """Show the answers of these flows side by side: balancer.comparison '~comment comparison'."""
        table = self.comparisons.compare(flows)
        if not table:
            raise exceptions.CommandError("none of these flows went through the balancer")
        logger.log(ALERT, "Open one of these flows: the view Comparison shows its text against the first one.")
        return _present(table)


def _prompts(flows: Sequence[flow.Flow]) -> list[http.HTTPFlow]:
    """Those flows that can be sent again."""
    prompts = [
        each
        for each in flows
        if isinstance(each, http.HTTPFlow)
        and each.request.raw_content is not None
        and not is_control_path(path_of(each))
        and each.websocket is None
    ]
    if not prompts:
        raise exceptions.CommandError("none of these flows is a request to Ollama that can be replayed")
    if len(prompts) > MAX_AT_ONCE:
        raise exceptions.CommandError(f"more than {MAX_AT_ONCE} flows are selected")
    return prompts


def _send_copy(prompt: http.HTTPFlow, agent: Agent, group: str | None = None) -> None:
    copy = copy_of(prompt)
    if group is not None:
        copy.metadata[COMPARISON_KEY] = group
        set_mark(copy, COMPARED)
    copy.request.headers[AGENT_HEADER] = agent.name
    send_again(copy)


def _present(table: Table) -> mitmproxy.types.Data:
    """In the console a table opens by itself; mitmweb's command bar has one line for it, its event log more."""
    if hasattr(ctx.master, "web_url"):
        logger.info("%s", "\n" + in_columns(table))
    return cast(mitmproxy.types.Data, table)
