"""One request from its head to its end: caller, parsed request, attempts, queue ticket and lease.

The context is created when the head arrives. It ends exactly once: `end` releases everything it holds, and nothing can
be added afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..core.address import Address
from ..core.agent import Agent
from ..core.agent_records import Outcome
from ..core.decision import ScoredCandidate
from ..core.demand import Demand
from ..core.leases import Lease
from ..core.priority import Priority
from ..core.rate_limits import Use
from ..core.tickets import FairnessKey, Ticket
from ..ollama.errors import Blame
from ..ollama.routes import Dialect, Route
from ..text import one_line
from .attempts import CORRECTIONS, Candidate, FailedAttempt, Failure, FailureKind, failure_kind
from .callers import Caller
from .memory_budget import Reservation
from .messages import Response
from .timeouts import Deadlines

if TYPE_CHECKING:
    from ..ollama.answer_watcher import AnswerWatcher
    from .fanout import FanOut


class Trace(Protocol):
    """What a trace is told of a request while it runs."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def queued(self, began: float, ended: float) -> None: ...

    def attempt(self, agent: Agent) -> None: ...

    def attempt_failed(self, kind: str, reason: str) -> None: ...

    def end(self, context: RequestContext) -> None: ...


@dataclass(eq=False, slots=True)
class RequestContext:
    """One request. It holds at most one lease or a fan-out, and a queue ticket; `end` releases them once."""

    caller: Caller
    dialect: Dialect
    clock: Callable[[], float]
    """Monotonic seconds."""
    is_routed: bool = False
    """Whether routing has begun: requests that the balancer refuses before that are counted separately."""
    route: Route | None = None
    model: str | None = None
    """As the client wrote it."""
    excerpt: str = ""
    """The beginning of the last user message, if flows are observed."""
    model_name: str | None = None
    """The canonical name."""
    pin: str | None = None
    priority: Priority = Priority.NORMAL
    wrong_priority: str | None = None
    """What is wrong with the priority that the request asks for."""
    mode: str = ""
    why: str = ""
    lease: Lease | None = None
    leased_at: float = 0.0
    """When the lease was acquired."""
    tried: list[Agent] = field(default_factory=list)
    failures: list[FailedAttempt] = field(default_factory=list)
    watcher: AnswerWatcher | None = None
    pass_on: Callable[[bytes], bytes] | None = None
    """Filters each chunk of a streamed answer."""
    first_byte: float | None = None
    last_activity: float = float("-inf")
    """When the last part of the answer arrived."""
    outcome: Outcome | None = None
    problem: str | None = None
    status: int | None = None
    """Status of the answer, once known."""
    answer_bytes: int | None = None
    """Of the body of an answer of the balancer's own."""
    total: float | None = None
    """Seconds from the request's arrival to the end."""
    tokens_per_second: float | None = None
    fan_out: FanOut | None = None
    """Set if the request goes to several agents."""
    path: str = ""
    """Without the query."""
    method: str = ""
    request_id: str = ""
    handle: object = None
    """The adapter's handle of the request."""
    head_only: bool = False
    """Whether the method is HEAD."""
    retry_budget_spent: bool = False
    """Whether no other agent was tried because the retry budget was used up."""
    on_end: Callable[[RequestContext], None] | None = None
    """Called once after everything was released."""
    slot_model: str | None = None
    """The canonical name of the model to run; None if no model is run or it is unknown."""
    demand: Demand | None = None
    """What the request demands of an agent; None if `slot_model` is."""
    scored_candidates: tuple[ScoredCandidate, ...] = ()
    """The scored candidates at dispatch, best first."""
    candidates: tuple[Candidate, ...] = ()
    """In modes without scores: the chosen agent and the next ones."""
    streams: bool = False
    """Whether a streamed answer was requested."""
    unloads: bool = False
    """Whether its model is to be unloaded afterwards."""
    body_bytes: int = 0
    elapsed: float = 0.0
    """Seconds of the first-byte timeout that attempts have used."""
    ticket: Ticket | None = None
    """Its queue ticket."""
    waiting_since: float | None = None
    waited: float = 0.0
    """Seconds in the queue."""
    turn: asyncio.Future[None] | None = None
    """Done when the wait in the queue ends, for whatever reason."""
    on_leave_queue: Callable[[Ticket], object] | None = None
    address: Address | None = None
    """Address of the agent that gets the request."""
    failure: Failure | None = None
    """How the last attempt failed; None before the first."""
    timed_out: bool = False
    """The first-byte timeout has expired: no further attempt."""
    abort_reason: str | None = None
    """Why the current attempt is to be aborted."""
    resendable: bool = True
    """Whether the request may be resent when it is uncertain whether it arrived."""
    trace: Trace | None = None
    """Its spans, where requests are traced."""
    use: Use | None = None
    """Its share of its key's limits."""
    reservation: Reservation | None = None
    """Memory reserved for the stored answer."""
    grace_until: float = 0.0
    """Silence of the agent before this time is ignored."""
    next_silence_check: float = 0.0
    """When the agent may next be queried about its silence."""
    awaits_load: bool = False
    """Whether the agent had to load the model and has not been seen to have it since."""
    started: float = field(init=False)
    _deadlines: Deadlines[RequestContext] | None = field(init=False, default=None)
    """Holds the first-byte deadline while it runs."""
    _waits_since: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def client(self) -> str:
        """The client as shown: by API key, else by address."""
        return self.caller.name

    @property
    def fairness_key(self) -> FairnessKey | None:
        """Its share of the queue; None: the client's."""
        return self.caller.fairness_key

    @property
    def seconds_to_first_byte(self) -> float | None:
        """Seconds from arrival to the first byte, including the time in the queue."""
        return None if self.first_byte is None else self.first_byte - self.started

    @property
    def agent(self) -> Agent | None:
        return self.lease.agent if self.lease else None

    @property
    def agents(self) -> list[Agent]:
        """The agents that have the request now or have answered it."""
        if self.fan_out is not None:
            return [leg.agent for leg in self.fan_out.legs]
        return [self.lease.agent] if self.lease else []

    @property
    def attempts(self) -> int:
        return len(self.fan_out.legs) if self.fan_out is not None else len(self.tried)

    def take(self, lease: Lease) -> None:
        """Take over the lease; if the request has ended, release it at once."""
        if self.outcome is not None:
            lease.release(Outcome.CANCELLED)
            return
        self.lease = lease
        self.leased_at = self.grace_until = self.clock()
        self.awaits_load = lease.loading
        self.tried.append(lease.agent)
        if self.trace is not None:
            self.trace.attempt(lease.agent)

    def count(self, *kinds: Blame | FailureKind) -> int:
        """The number of failed attempts of these kinds."""
        return sum([failure.kind in kinds for failure in self.failures])

    def note_activity(self) -> None:
        """A part of the answer has arrived."""
        self.last_activity = now = self.clock()
        if self.lease is not None:
            self.lease.agent.heard(now)

    def fail_attempt(
        self,
        reason: str,
        kind: Blame | FailureKind = FailureKind.BROKEN,
        refusal: Response | None = None,
    ) -> Agent | None:
        """The agent failed before the client saw anything. Returns the agent.

        Failures that only correct the inventory do not count in its statistics.
        """
        agent = self.agent
        if self.trace is not None:
            self.trace.attempt_failed(str(kind), reason)
        if self.lease is not None and self.lease.release(None if kind in CORRECTIONS else Outcome.FAILED):
            self.failures.append(FailedAttempt(self.lease.agent.name, one_line(reason), kind, refusal))
        self.lease = self.abort_reason = None
        return agent

    def start_timer(self, seconds: float, deadlines: Deadlines[RequestContext]) -> None:
        """Start the first-byte timeout, less what earlier attempts have used."""
        if self._deadlines is None:
            self._deadlines = deadlines
            self._waits_since = self.clock()
            deadlines.set(self, self._waits_since + seconds - self.elapsed)

    def stop_timer(self) -> None:
        if self._deadlines is not None:
            self.elapsed += self.clock() - self._waits_since
            self._deadlines.drop(self)
            self._deadlines = None

    def leave_queue(self) -> None:
        """Leave the queue."""
        ticket, self.ticket = self.ticket, None
        if self.waiting_since is not None:
            now = self.clock()
            self.waited += now - self.waiting_since
            if self.trace is not None:
                self.trace.queued(self.waiting_since, now)
            self.waiting_since = None
        if ticket is not None and self.on_leave_queue is not None:
            self.on_leave_queue(ticket)
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)

    def end(self, outcome: Outcome, problem: str | None = None) -> bool:
        """End the request; False if it had already ended."""
        self.stop_timer()
        if self.outcome is not None:
            return False
        self.outcome = outcome
        self.problem = problem
        self.total = self.clock() - self.started
        self.leave_queue()
        if self.reservation is not None:
            self.reservation.release()
        if self.lease is not None:
            self.lease.release(outcome, self.clock() - self.leased_at)
        if self.fan_out is not None:
            replies = [reply for reply in self.fan_out.replies if not reply.done]
            self.failures = [
                FailedAttempt(reply.agent, one_line(reply.reason), failure_kind(reply)) for reply in replies
            ]
            self.fan_out.cancel()
        if self.on_end is not None:
            self.on_end(self)
        return True

    def record(self) -> dict[str, Any]:
        """The decision and its outcome as JSON-serialisable data."""
        agents = self.agents
        return {
            "request_id": self.request_id,
            "agent": ", ".join(agent.name for agent in agents) or None,
            "url": agents[0].address.url if len(agents) == 1 else None,
            "mode": self.mode,
            "why": self.why,
            "model": self.model,
            "options": [option.describe() for option in self.scored_candidates],
            "candidates": [candidate._asdict() for candidate in self.candidates],
            "room": _room(agents[0]) if len(agents) == 1 else None,
            "client": self.client,
            "key": None if self.caller.key is None else self.caller.key.name,
            "pinned": self.pin is not None,
            "priority": self.priority.label,
            "attempts": self.attempts,
            "waited_ms": round(self.waited * 1000, 3),
            "failures": [{"agent": failure.agent, "reason": failure.reason} for failure in self.failures],
            "outcome": self.outcome,
            "status": self.status,
            "problem": self.problem,
            "first_byte_ms": _milliseconds(self.seconds_to_first_byte),
            "total_ms": _milliseconds(self.clock() - self.started if self.total is None else self.total),
            "tokens_per_second": None if self.tokens_per_second is None else round(self.tokens_per_second, 2),
        }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _room(agent: Agent) -> dict[str, int | None]:
    """The reported slots per model and models that fit in memory, and the number of models loaded now."""
    fits = agent.metrics.max_loaded_models if agent.metrics is not None else None
    return {"slots": agent.fixed_slots or None, "fits": fits or None, "loaded": len(agent.loaded)}
