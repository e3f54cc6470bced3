"""Handles failed attempts: who is to blame, what it means for the agent, and whether to retry."""

import logging
from collections.abc import Callable

from ..core.agent import Agent
from ..core.registry import AgentRegistry
from ..ollama.errors import Blame, classify_message
from ..ollama.names import is_cloud_model
from ..text import one_line
from .adapter import Prober
from .attempts import CORRECTIONS, Failure, FailureKind
from .context import RequestContext
from .decisions import Answer, Forward, Wait
from .descriptors import is_local_failure
from .reachability import cannot_connect, plain_reason
from .refusals import retry_after, why_refused
from .router import Router
from .tasks import run_in_background
from .timeouts import Timeouts

logger = logging.getLogger(__name__)


class Retries:
    """Accounts for failed attempts. `prober` gives what queries hosts, once it is loaded."""

    timeouts = Timeouts()

    def __init__(self, registry: AgentRegistry, router: Router, prober: Callable[[], Prober | None]) -> None:
        self.registry = registry
        self.router = router
        self._prober = prober

    def failed(self, context: RequestContext) -> Forward | Wait | Answer:
        """Handle `context.failure` and decide what to do next."""
        failure = context.failure
        assert failure
        if not failure.connected and is_local_failure(failure.reason):
            return self.router.local_failure(context, failure.reason)
        agent = context.agent
        if failure.blame is not None and failure.refusal is not None:
            reason = why_refused(failure.blame, failure.refusal.status, context.path[:200])
            self._blame(context, failure.blame, reason, retry_after(failure.refusal))
            context.fail_attempt(reason, failure.blame, failure.refusal)
        else:
            kind, reason = self._without_answer(failure, context)
            if context.lease is not None:
                self.registry.ejection.failed(context.lease, reason)
            context.fail_attempt(reason, kind)
        if agent is not None and failure.blame not in CORRECTIONS and not failure.connected:
            self.registry.liveness.unreachable(agent, cannot_connect(agent.address, reason))
        if not failure.retriable or context.timed_out:
            return self.router.attempts_failed(context)
        return self.router.retry(context)

    def _without_answer(self, failure: Failure, context: RequestContext) -> tuple[FailureKind, str]:
        """The kind of failure and its reason."""
        reason = plain_reason(one_line(failure.reason))
        kind = FailureKind.BROKEN if failure.connected else FailureKind.CONNECT
        if context.timed_out:
            kind, reason = FailureKind.TIMEOUT, f"no first byte within {self.timeouts.response:g} s"
        elif not failure.connected and reason == "timeout":
            kind, reason = FailureKind.TIMEOUT, f"not reached within {self.timeouts.connect:g} s"
        if context.abort_reason is not None:
            kind, reason = FailureKind.TIMEOUT, context.abort_reason
        return kind, reason

    def midstream_error(self, context: RequestContext, message: str) -> None:
        """The agent reported an error after its answer had begun with a success; the lease is still held."""
        self._blame(context, classify_message(message), one_line(message, 200), retry_after(None))

    def _blame(self, context: RequestContext, blame: Blame, reason: str, busy_seconds: float) -> None:
        """Apply what the failure says about the agent before its slot is released to waiting requests."""
        lease, registry = context.lease, self.registry
        if lease is None:
            return
        agent, model, route = lease.agent, context.model, context.route
        if blame is Blame.HOST_CANNOT and model is not None and is_cloud_model(model):
            blame = Blame.CANNOT_LOAD  # the trouble is elsewhere
        match blame:
            case Blame.HOST_CANNOT:
                registry.ejection.failed(lease, reason)
            case Blame.HOST_BUSY if lease.model is not None:
                registry.limiter.busy(agent, lease.model, busy_seconds)
            case Blame.HOST_REFUSES:
                self._refused(agent, context, reason)
            case Blame.LACKS_MODEL if context.model_name is not None:
                self._correct(agent, context.model_name)
            case Blame.LACKS_ROUTE if route is not None:
                logger.info(
                    "Agent %s does not have %s: such requests go to other agents for a while.", agent.name, route.path
                )
                registry.avoidance.lacks_route(agent, route.path)
            case Blame.CANNOT_LOAD if context.demand is not None:
                registry.avoidance.cannot_load(agent, context.demand.model, context.demand.runner)

    def _refused(self, agent: Agent, context: RequestContext, reason: str) -> None:
        """Mark the agent as refusing the balancer, unless only the credentials of this caller were refused."""
        if context.caller.credentials:
            if context.route is not None:
                self.registry.avoidance.refuses(agent, context.route.path)
            if (prober := self._prober()) is not None:
                run_in_background(prober.probe(agent), "access check")
            return
        self.registry.liveness.refuses(agent, reason)

    def _correct(self, agent: Agent, model: str) -> None:
        """Remove a model that the agent does not have from its inventory."""
        logger.info("Agent %s does not have model %s: removed from its list.", agent.name, one_line(model))
        self.registry.inventory.forget_model(agent, model)
        if (prober := self._prober()) is not None:
            run_in_background(prober.refresh(agent), "inventory")
