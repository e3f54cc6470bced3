"""One request, from its head to its end: who sends it, what it asks for, who was tried, and the lease it holds.

It is made when the request's head has come, and the adapter finds it by what it has of the request. It ends once,
whoever sees the end first: `end` gives back all that it holds, and an ended request is given nothing any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.address import Address
from ..core.agent import Agent
from ..core.agent_records import Outcome
from ..core.decision import ScoredCandidate
from ..core.demand import Demand
from ..core.leases import Lease
from ..core.queue import FairnessKey, Ticket
from ..ollama.errors import Blame
from ..ollama.routes import Dialect, Route
from ..text import one_line
from .attempts import CORRECTIONS, Attempt, Candidate, Failure, FailureKind, kind_of
from .callers import Caller
from .memory_budget import Held
from .messages import Response
from .timeouts import Deadlines

if TYPE_CHECKING:
    from ..ollama.watching import AnswerWatcher
    from .fanout import FanOut


@dataclass(eq=False, slots=True)
class RequestContext:
    """One request. It holds at most one lease, or a fan-out, and a place in the queue; `end` gives them back, once."""

    caller: Caller
    dialect: Dialect
    clock: Callable[[], float]
    """Monotonic seconds."""
    begun: bool = False
    """Whether it was to be routed: what the balancer answers itself before that does not count."""
    route: Route | None = None
    model: str | None = None
    """As the client spells it."""
    excerpt: str = ""
    """The beginning of what the user said last, where somebody may look at flows."""
    model_name: str | None = None
    """The canonical name by which agents have it."""
    pin: str | None = None
    mode: str = ""
    why: str = ""
    lease: Lease | None = None
    taken: float = 0.0
    """When the lease was taken."""
    tried: list[Agent] = field(default_factory=list)
    failures: list[Attempt] = field(default_factory=list)
    watcher: AnswerWatcher | None = None
    pass_on: Callable[[bytes], bytes] | None = None
    """What each chunk of a streamed answer goes through."""
    first_byte: float | None = None
    heard_at: float = float("-inf")
    """When the last part of the answer came."""
    outcome: Outcome | None = None
    problem: str | None = None
    status: int | None = None
    """Of the answer, once it is known."""
    total: float | None = None
    """Seconds from the request's arrival to the end."""
    tokens_per_second: float | None = None
    fan_out: FanOut | None = None
    """Of a request that goes to several agents."""
    path: str = ""
    """Without the query."""
    handle: object = None
    """What the adapter knows the request by."""
    head_only: bool = False
    """Whether it is a HEAD."""
    retries_spent: bool = False
    """Whether it was not sent elsewhere because the fleet's retries were spent."""
    on_end: Callable[[RequestContext], None] | None = None
    """Called once, when it has ended and holds nothing any more."""
    slot_model: str | None = None
    """The canonical name of the model that is run for it; None if none is, or none is known."""
    demand: Demand | None = None
    """What it asks of an agent; None where `slot_model` is."""
    options: tuple[ScoredCandidate, ...] = ()
    """How the agents were weighed when it was sent, the best first."""
    candidates: tuple[Candidate, ...] = ()
    """In modes that weigh no request: the agent that was chosen, and the next ones."""
    streams: bool = False
    """Whether its answer is to stream."""
    unloads: bool = False
    """Whether its model is to be in memory no more when it is done."""
    body_bytes: int = 0
    spent: float = 0.0
    """Seconds that attempts have taken of the time for a first byte."""
    waiter: Ticket | None = None
    """Its place in the line."""
    waiting_since: float | None = None
    waited: float = 0.0
    """Seconds in the line."""
    turn: asyncio.Future[None] | None = None
    """Done when the wait in the line is over, for whatever reason."""
    leave_line: Callable[[Ticket], object] | None = None
    address: Address | None = None
    """Of the agent that gets the request."""
    failure: Failure | None = None
    """How the last attempt ended; None at the first."""
    expired: bool = False
    """The time for a first byte has run out: no attempt more."""
    given_up: str | None = None
    """Why the attempt that runs now is to end without an answer."""
    may_repeat: bool = True
    """Whether it does no harm to send the request again where it is not certain that it has not arrived."""
    held: Held | None = None
    """The memory that its kept answer takes."""
    patience: float = 0.0
    """Until then the agent's silence says nothing."""
    ask_after: float = 0.0
    """Until then the agent is not asked about its silence again."""
    seen_loading: bool = False
    """Whether the agent had the model to load when the request was sent, and was not seen to have it since."""
    started: float = field(init=False)
    _deadlines: Deadlines[RequestContext] | None = field(init=False, default=None)
    """Where the end of the wait for the first byte is noted, while it is."""
    _waits_since: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def client(self) -> str:
        """Whose request it is, as it is shown: by the API key, else by the address."""
        return self.caller.name

    @property
    def share(self) -> FairnessKey | None:
        """Whose turns it uses in the line; None: the client's."""
        return self.caller.share

    @property
    def seconds_to_first_byte(self) -> float | None:
        """From the request's arrival, the time in the line included."""
        return None if self.first_byte is None else self.first_byte - self.started

    @property
    def agent(self) -> Agent | None:
        return self.lease.agent if self.lease else None

    @property
    def agents(self) -> list[Agent]:
        """Who has the request now, or answered it."""
        if self.fan_out is not None:
            return [leg.agent for leg in self.fan_out.legs]
        return [self.lease.agent] if self.lease else []

    @property
    def attempts(self) -> int:
        return len(self.fan_out.legs) if self.fan_out is not None else len(self.tried)

    def take(self, lease: Lease) -> None:
        """Hold the lease; of a request that has ended it is given back at once."""
        if self.outcome is not None:
            lease.release(Outcome.CANCELLED)
            return
        self.lease = lease
        self.taken = self.patience = self.clock()
        self.seen_loading = lease.loading
        self.tried.append(lease.agent)

    def count(self, *kinds: Blame | FailureKind) -> int:
        """How many attempts have failed so."""
        return sum([failure.kind in kinds for failure in self.failures])

    def heard(self) -> None:
        """A part of the answer has come."""
        self.heard_at = now = self.clock()
        if self.lease is not None:
            self.lease.agent.heard(now)

    def fail_attempt(
        self,
        reason: str,
        kind: Blame | FailureKind = FailureKind.BROKEN,
        refusal: Response | None = None,
    ) -> Agent | None:
        """The agent failed before the client saw anything. Returns it.

        That it was the wrong one to ask is no failure of its: such an attempt is not in its statistics.
        """
        agent = self.agent
        if self.lease is not None and self.lease.release(None if kind in CORRECTIONS else Outcome.FAILED):
            self.failures.append(Attempt(self.lease.agent.name, one_line(reason), kind, refusal))
        self.lease = None
        return agent

    def start_timer(self, seconds: float, deadlines: Deadlines[RequestContext]) -> None:
        """Limit the time until the first byte to `seconds`, less what earlier attempts have taken."""
        if self._deadlines is None:
            self._deadlines = deadlines
            self._waits_since = self.clock()
            deadlines.set(self, self._waits_since + seconds - self.spent)

    def stop_timer(self) -> None:
        if self._deadlines is not None:
            self.spent += self.clock() - self._waits_since
            self._deadlines.drop(self)
            self._deadlines = None

    def leave(self) -> None:
        """Wait no longer."""
        waiter, self.waiter = self.waiter, None
        if self.waiting_since is not None:
            self.waited += self.clock() - self.waiting_since
            self.waiting_since = None
        if waiter is not None and self.leave_line is not None:
            self.leave_line(waiter)
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)

    def end(self, outcome: Outcome, problem: str | None = None) -> bool:
        """The request is over; False if it was before."""
        self.stop_timer()
        if self.outcome is not None:
            return False
        self.outcome = outcome
        self.problem = problem
        self.total = self.clock() - self.started
        self.leave()
        if self.held is not None:
            self.held.release()
        if self.lease is not None:
            self.lease.release(outcome, self.clock() - self.taken)
        if self.fan_out is not None:
            replies = [reply for reply in self.fan_out.replies if not reply.done]
            self.failures = [Attempt(reply.agent, one_line(reply.reason), kind_of(reply)) for reply in replies]
            self.fan_out.cancel()
        if self.on_end is not None:
            self.on_end(self)
        return True

    def record(self) -> dict[str, Any]:
        """The decision and what came of it, as JSON-serialisable data."""
        agents = self.agents
        return {
            "agent": ", ".join(agent.name for agent in agents) or None,
            "url": agents[0].address.url if len(agents) == 1 else None,
            "mode": self.mode,
            "why": self.why,
            "model": self.model,
            "options": [option.describe() for option in self.options],
            "candidates": [candidate._asdict() for candidate in self.candidates],
            "room": _room(agents[0]) if len(agents) == 1 else None,
            "client": self.client,
            "pinned": self.pin is not None,
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
    """What it runs at once per model and has in memory at once, where that is told; and how many it has there now."""
    fits = agent.metrics.max_loaded_models if agent.metrics is not None else None
    return {"slots": agent.fixed_slots or None, "fits": fits or None, "loaded": len(agent.loaded)}
