"""Recorded requests. Times are seconds since the epoch."""

from collections import Counter
from dataclasses import dataclass, field, replace

from ..core.demand import Demand
from ..core.scoring.learning import SHORTEST_LOAD
from ..ollama.shapes import Timings

MAX_TOKENS = 2_000_000
"""No model reads or writes more: what claims to be longer is taken to be that long."""

QUIET = 2.0
"""Seconds before the first byte from which on a load may be the reason, where the answer does not tell of one."""

NO_TIMINGS = Timings()


@dataclass(frozen=True)
class Recorded:
    """One request and what came of it."""

    at: float
    """When its last byte had come."""
    client: str
    demand: Demand
    mode: str
    agent: str | None
    """Who had it last."""
    served: bool
    """Whole."""
    cancelled: bool
    streamed: bool
    """Whether its first byte came with its first token."""
    attempts: int
    waited: float
    """Seconds in the balancer's line."""
    first: float | None
    """Seconds from `at` to the first byte."""
    total: float
    """Seconds from `at` to the end."""
    timings: Timings = NO_TIMINGS
    """Of a whole answer that could be read."""
    pieces: int = 0
    """Events that brought text, of a stream that was whole."""
    conversation: int = 0
    known: int = 0
    """Tokens of the prompt, as the demand counts them, that an earlier request of the conversation had."""

    @property
    def model(self) -> str:
        return self.demand.model

    @property
    def sent(self) -> float:
        """When the agent got it, if it was the first one tried."""
        return self.at + self.waited

    @property
    def began(self) -> float | None:
        return None if self.first is None else max(self.sent, self.at + self.first)

    @property
    def ended(self) -> float:
        return max(self.began or self.sent, self.at + self.total)

    @property
    def prompt(self) -> int:
        """Tokens, counted or else estimated."""
        return max(1, min(MAX_TOKENS, self.timings.prompt_eval_count or self.demand.tokens))

    @property
    def output(self) -> int | None:
        """Tokens; None: not known."""
        if self.demand.output_limit == 0:
            return 0
        count = self.timings.eval_count
        if count is None:
            count = self.pieces or None
        return None if count is None else min(MAX_TOKENS, count)

    @property
    def loaded(self) -> bool | None:
        """Whether the agent loaded the model for it, or had it wait for a load; None: it does not say."""
        load = self.timings.load_duration
        return None if load is None else load >= SHORTEST_LOAD

    @property
    def warm(self) -> bool:
        """Whether the agent seems to have had the model in memory."""
        if self.loaded is not None:
            return not self.loaded
        return self.attempts == 1 and self.first is not None and self.first - self.waited < QUIET


@dataclass
class Recording:
    """All that was read. `read` in `flows` makes it."""

    requests: list[Recorded] = field(default_factory=list)
    """In the order of their arrival, once `link_conversations` was called."""
    candidates: dict[str, set[str]] = field(default_factory=dict)
    """By model, the agents that were weighed for it: they have it."""
    without_model: dict[str, set[str]] = field(default_factory=dict)
    """By model, the agents that turned out not to have it."""
    failed_agents: set[str] = field(default_factory=set)
    """Agents that failed at a request before its first byte."""
    slots: dict[str, int] = field(default_factory=dict)
    """Requests of a model that an agent runs at once, as was set or as it told."""
    fits: dict[str, int] = field(default_factory=dict)
    """Models that an agent has in memory at once, as it told."""
    loaded_together: dict[str, int] = field(default_factory=dict)
    """Models that an agent was seen to have in memory at once."""
    flows: int = 0
    refused: int = 0
    """Requests that were answered as their caller's mistake: they are left out."""
    odd: int = 0
    """Flows with a record that is none: they are left out."""
    pinned: int = 0
    problems: list[str] = field(default_factory=list)
    """What was wrong with the files, one line each."""

    def link_conversations(self) -> None:
        """Sort the requests and link those of the same conversation."""
        self.requests.sort(key=lambda request: request.at)
        conversations: dict[bytes, int] = {}
        arranged = []
        for number, request in enumerate(self.requests):
            demand = request.demand
            prefix = next((each for each in reversed(demand.prefixes) if each[0] in conversations), None)
            conversation = number if prefix is None else conversations[prefix[0]]
            conversations |= {key: conversation for key, _ in demand.new_prefixes}
            kept = () if prefix is None else tuple(dict.fromkeys((demand.prefixes[0], prefix)))
            arranged.append(
                replace(
                    request,
                    demand=demand._replace(prefixes=kept),
                    conversation=conversation,
                    known=0 if prefix is None else prefix[1],
                )
            )
        self.requests = arranged

    @property
    def modes(self) -> Counter[str]:
        return Counter(request.mode for request in self.requests)
