"""The bodies and answers of the control API, as its document describes them.

Answers are not built through these models, which would take long for a thousand agents; tests hold them against what
is answered.
"""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from agent_reporter.wire import AgentMetrics, Count, ModelEntry

from ..core.access import Right
from ..core.agent import Source, Status
from ..core.events import EventKind
from ..core.policies import POLICIES
from ..storage.keys import DEFAULT_OVERLAP, MAX_LIMIT, MAX_OVERLAP, MAX_PATTERNS, MODELS, NAME, NOTE
from .decision_models import Answer, Decision, Seconds

Mode = Annotated[str, Field(json_schema_extra={"enum": list(POLICIES)})]


class DrainRequest(BaseModel):
    """The optional body of a drain."""

    model_config = ConfigDict(extra="ignore")

    until: Literal["resume", "registration"] = "resume"
    """What ends the drain: only a resume, or the agent's next registration too."""


ModelPattern = Annotated[str, Field(pattern=f"^{MODELS.pattern}$")]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]


class KeySettings(BaseModel):
    """What can be changed of a client key. A limit that is null is none."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    rights: Annotated[list[Right], Field(min_length=1)] = [Right.INFER]
    models: Annotated[list[ModelPattern], Field(max_length=MAX_PATTERNS)] = []
    """Patterns of the models that it may use, with * and ?; none: all."""
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    parallel: Limit | None = None
    """Requests at once."""
    priority: Literal["interactive", "normal", "batch"] = "normal"
    expires: AwareDatetime | None = None
    disabled: bool = False
    note: Annotated[str, Field(pattern=f"^{NOTE.pattern}$")] = ""


class AddKey(KeySettings):
    """A new client key."""

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class ChangeKey(KeySettings):
    """The fields that are to be changed."""


class RotateKey(BaseModel):
    """The optional body of a rotation."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    overlap: Annotated[float, Field(ge=0, le=MAX_OVERLAP)] = DEFAULT_OVERLAP
    """Seconds for which the old secret stays valid."""


class Error(Answer):
    """Why a call was refused."""

    error: str
    """What is wrong, and where."""


class KeyDetails(KeySettings):
    """A client key without its secret."""

    name: str
    created: AwareDatetime
    problem: str | None
    """Why it is not valid: disabled or expired."""
    running: int
    """Requests of it that have not ended."""
    agent: str | None
    """Of the key of a host that has joined: the only agent for which it may report."""


class KeyList(Answer):
    keys: list[KeyDetails]


class NewKey(KeyDetails):
    """A client key with its secret, which cannot be seen again."""

    secret: str


class RegisteredAgent(Answer):
    """The registered agent."""

    id: str
    """The same in every run of the balancer."""
    name: str
    url: str


class ReportedMetrics(AgentMetrics):
    """An agent's last report. A list of agents leaves its two lists of models out."""

    models: list[ModelEntry] | None = None
    loaded_models: list[ModelEntry] | None = None


class AgentStats(Answer):
    """Outcomes of the requests that were sent to an agent."""

    requests: Count
    succeeded: Count
    failed: Count
    cancelled: Count
    rejected: Count
    """The caller's own 4xx."""
    avg_response_time: float | None
    """Milliseconds, of those that succeeded."""
    tokens_per_second: dict[str, float]
    """By model."""


class AgentState(Answer):
    """One Ollama host."""

    id: str
    name: str
    url: str
    source: Source
    status: Status
    reason: str | None
    """Why it has that status."""
    notice: str | None
    """What to do about it all the same: its reporter is older than the balancer."""
    alias_of: str | None
    """The name of another agent that is the same host."""
    strikes: Count
    """Failures in a row."""
    models: list[str]
    loaded_models: list[str]
    ollama_version: str | None
    in_flight: Count
    running: dict[str, int]
    """Requests in flight, by model."""
    loading: list[str]
    decision: Decision | None
    slots: int | None
    """Requests that it runs at once."""
    metrics: ReportedMetrics | None
    metrics_age: Seconds | None
    stale: bool
    """Whether there are no fresh metrics."""
    score: float | None
    """The score of the mode `metrics`; null without fresh metrics."""
    stats: AgentStats


class Estimate(Answer):
    """A figure that was learned, and on how many answers it rests; 0: a guess."""

    value: float
    observations: int


class LearnedModel(Answer):
    """How fast an agent is with a model."""

    decode: Estimate
    """Tokens a second."""
    prefill: Estimate
    """Tokens a second."""
    load: Estimate
    """Seconds."""
    output: Estimate
    """Tokens of an answer."""


class AgentDetails(AgentState):
    """One Ollama host, with what was learned about it."""

    learned: dict[str, LearnedModel]
    """By model."""


class AgentList(Answer):
    agents: list[AgentState]


class AgentsByStatus(Answer):
    """How many agents there are of each status."""

    online: Count
    offline: Count
    unreachable: Count
    unauthorized: Count
    ejected: Count
    draining: Count


class Totals(Answer):
    """Requests since start; `requests` is the sum of the others."""

    requests: Count
    succeeded: Count
    failed: Count
    cancelled: Count
    rejected: Count
    """The caller's own 4xx."""
    refused: Count
    """By the balancer itself."""
    in_flight: Count


class Priorities(Answer):
    """Requests in the queue by class."""

    interactive: Count
    normal: Count
    batch: Count


class Queue(Answer):
    """The queue: requests that wait for an agent."""

    length: Count
    oldest: Seconds | None
    """Seconds that the oldest request has waited."""
    priorities: Priorities
    models: dict[str, int]
    clients: dict[str, int]


class AccessState(Answer):
    needs_key: bool
    """Whether calls need a key or the token."""
    keys: int
    """Client keys that there are."""


class BalancerState(Answer):
    mode: Mode
    access: AccessState
    uptime: Seconds
    totals: Totals
    waiting: Count
    line: Queue
    agents: AgentsByStatus


class Health(Answer):
    status: Literal["ok", "no agent can serve", "ending"]
    agents: AgentsByStatus


class HistoryRow(Answer):
    """Requests that ended in one minute."""

    agent: str | None
    """null: none, or no longer known."""
    model: str | None
    requests: Count
    succeeded: Count
    failed: Count
    cancelled: Count
    refused: Count
    rejected: Count
    prompt_tokens: Count
    output_tokens: Count
    seconds: Seconds
    """From arrival to the end, in all."""
    waited: Seconds
    first_tokens: Count
    """Answers whose times to the first token `first_token_seconds` adds up."""
    first_token_seconds: Seconds


class HistoryMinute(Answer):
    at: AwareDatetime
    rows: list[HistoryRow]


class History(Answer):
    """Minutes in which requests ended, the oldest first."""

    minutes: list[HistoryMinute]
    next: str | None
    """The path of the next page."""


class FleetEvent(Answer):
    """A change of state. What repeats within an hour is one event, which `count` counts."""

    number: Annotated[int, Field(ge=0)]
    """Grows with each event."""
    time: AwareDatetime
    kind: EventKind
    agent: str | None
    key: str | None
    """The name of a client key."""
    reason: str
    count: Annotated[int, Field(ge=1)]
    first: AwareDatetime | None
    """When it happened first, if it has happened more than once."""


class EventList(Answer):
    events: list[FleetEvent]
    next: str
    """The path of what comes after them."""


class UsageRow(Answer):
    """The sums of one group. It has those of `key`, `model`, `agent`, `day` and `hour` that were asked for."""

    key: str | None = None
    """`(none)`: calls without a key, `(token)`: with the balancer's token, `(other)`: too many keys in an hour."""
    model: str | None = None
    agent: str | None = None
    """Empty: no agent had the requests, or several."""
    day: str | None = None
    hour: str | None = None
    """Of what is older than a month: its day's first."""
    requests: Count
    succeeded: Count
    failed: Count
    cancelled: Count
    rejected: Count
    refused: Count
    prompt_tokens: Count
    output_tokens: Count
    seconds: Seconds
    """That agents had the requests, in all."""
    waited: Seconds
    """In the queue."""


class Usage(Answer):
    """What was used in that time, in groups."""

    begin: Annotated[AwareDatetime, Field(alias="from")]
    to: AwareDatetime
    by: list[str]
    rows: list[UsageRow]


class DashboardData(Answer):
    """The dashboard's data. It belongs to the page, and changes with it."""

    model_config = ConfigDict(extra="allow")

    mode: Mode
    totals: Totals
    agents: list[dict[str, Any]]
