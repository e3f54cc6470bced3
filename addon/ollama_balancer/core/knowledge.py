"""What was learned of the fleet as plain data, so that it outlives the process.

What is old counts less: after a week as no more than five observations, after a month not at all. Which of it still
holds, `scoring.facts` decides when the agents say what they are now.
"""

from collections.abc import Iterator
from typing import NamedTuple

from .agent import Agent
from .agent_records import MAX_SPEEDS
from .fleet import Fleet
from .scoring.likeness import DIGEST

DAY = 86_400.0

MAX_AGE = 30 * DAY
"""Seconds after which what was learned is dropped."""

FADING = 35 * DAY
"""An observation of some age counts as one of this many seconds divided by that age, at most: five after a week."""

MAX_RECORDS = 100_000
"""Pairs of an agent and a model that are kept, the latest first."""


MAX_SPEED = 1e6
"""Tokens per second: what is faster was not measured right."""


class Known(NamedTuple):
    """A figure, and how many observations it rests on."""

    value: float
    observations: int


class ModelRecord(NamedTuple):
    """A model on an agent."""

    model: str
    """Its canonical name."""
    digest: str | None
    at: float
    """When the last of it was learned, in seconds since the epoch."""
    decode: Known | None
    """Tokens per second."""
    prefill: Known | None
    """Tokens per second."""
    load: Known | None
    """Seconds."""
    slots: int | None
    """Proven ones; None: no more than one, which may be as nobody has tried."""
    prompts: int | None
    """How many it keeps cached; None: nothing has been learned of it."""
    speed: float | None
    """Tokens per second of the last answers, whatever ran beside them."""


class AgentRecord(NamedTuple):
    id: str
    hardware: str | None
    """Its GPUs, as `scoring.facts` words them."""
    version: str | None
    """Of its server."""
    parallel: int | None
    """The slots that it has reported."""
    models: tuple[ModelRecord, ...]


class OutputRecord(NamedTuple):
    """The usual length of a model's answers."""

    model: str
    at: float
    tokens: Known


class _Recalled(NamedTuple):
    slots: dict[str, int]
    prompts: dict[str, int]
    speeds: dict[str, float]


def aged(observations: int, age: float) -> int:
    """How many observations these count as after so many seconds."""
    return min(observations, max(1, int(FADING / age))) if age > 0 else observations


class Knowledge:
    """Times are seconds since the epoch, given by the caller."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}
        """By agent and model, how many observations there were, and when the last of them was new.

        The agent is "" for lengths of answers.
        """
        self._absent: dict[str, _Recalled] = {}
        """What concerns agents that have not joined yet."""

    def agents(self) -> list[str]:
        """The ids of those of which something is known, of which some may not be in the fleet."""
        figures = self._fleet.learner.estimates.figures
        agents = dict.fromkeys(agent for figure in figures for agent in figure.agents())
        self._seen = {key: seen for key, seen in self._seen.items() if not key[0] or key[0] in agents}
        return list(agents)

    def record(self, agent_id: str, now: float) -> AgentRecord | None:
        """What is known of one; None: nothing that counts. One that has been away for too long is forgotten."""
        fleet, learner = self._fleet, self._fleet.learner
        estimates, facts = learner.estimates, learner.facts
        agent, absent = fleet.agents.get(agent_id), self._absent.get(agent_id)
        if agent is not None:
            slots = {model: each.proven for model, each in agent.learners.items() if each.proven > 1}
            recalled = _Recalled(slots, agent.kept_prompts.known(), agent.stats.speeds)
        else:
            recalled = absent or _Recalled({}, {}, {})
        digests = estimates.likeness.digests.get(agent_id, {})
        models = []
        for model in dict.fromkeys(model for figure in estimates.figures for model in figure.models(agent_id)):
            found = [Known(*figure.known(agent_id, model)) for figure in estimates.figures]
            at = self._last_news((agent_id, model), sum(known.observations for known in found), now)
            if now - at <= MAX_AGE:
                decode, prefill, load = (known if known.observations else None for known in found)
                digest, speed = digests.get(model), recalled.speeds.get(model)
                models.append(
                    ModelRecord(
                        model,
                        digest[:DIGEST] if digest is not None else None,
                        at,
                        decode,
                        prefill,
                        load,
                        recalled.slots.get(model),
                        recalled.prompts.get(model),
                        speed if speed is not None and 0 < speed < MAX_SPEED else None,
                    )
                )
        if models:
            hardware = estimates.likeness.hardware.get(agent_id)
            version, parallel = facts.versions.get(agent_id), facts.parallel.get(agent_id)
            return AgentRecord(agent_id, hardware, version, parallel, tuple(models))
        if agent is None:
            estimates.forget(agent_id)
            facts.forget(agent_id)
            self._absent.pop(agent_id, None)
        return None

    def outputs(self, now: float) -> list[OutputRecord]:
        """What is known of the lengths of answers."""
        records = []
        for model, tokens in self._fleet.learner.estimates.outputs().items():
            at = self._last_news(("", model), tokens.observations, now)
            if now - at <= MAX_AGE:
                records.append(OutputRecord(model, at, Known(tokens.value, tokens.observations)))
        return records

    def restore(self, record: AgentRecord, now: float) -> None:
        """Take in what was known of an agent, unless it is another one now. What is known since counts more."""
        learner = self._fleet.learner
        estimates, facts = learner.estimates, learner.facts
        same_machine, same_server = facts.recall(record.id, record.hardware, record.version, record.parallel)
        if not same_machine:
            return
        recalled = _Recalled({}, {}, {})
        for each in record.models:
            at = min(each.at, now)
            if now - at > MAX_AGE or not facts.recall_model(record.id, each.model, each.digest):
                continue
            total = 0
            for figure, known in zip(estimates.figures, (each.decode, each.prefill, each.load), strict=True):
                if known is not None:
                    counts = aged(known.observations, now - at) if same_server else 1
                    figure.recall(record.id, each.model, known.value, counts)
                    total += counts
            self._seen[record.id, each.model] = total, at
            if each.slots is not None and same_server:
                recalled.slots[each.model] = each.slots
            if each.prompts is not None and same_server:
                recalled.prompts[each.model] = each.prompts
            if each.speed is not None and len(recalled.speeds) < MAX_SPEEDS:
                recalled.speeds[each.model] = each.speed
            estimates.changed(each.model, news=True)
        agent = self._fleet.agents.get(record.id)
        if agent is not None:
            self._recall(agent, recalled)
        elif any(figure.models(record.id) for figure in estimates.figures):
            self._absent[record.id] = recalled
        else:
            facts.forget(record.id)  # all of it is too old

    def restore_output(self, record: OutputRecord, now: float) -> None:
        """Take in the usual length of a model's answers."""
        at = min(record.at, now)
        if now - at <= MAX_AGE:
            counts = aged(record.tokens.observations, now - at)
            self._fleet.learner.estimates.recall_output(record.model, record.tokens.value, counts)
            self._seen["", record.model] = counts, at

    def arrived(self, agent: Agent) -> None:
        """It has joined the fleet."""
        recalled = self._absent.pop(agent.id, None)
        if recalled is not None:
            self._recall(agent, recalled)

    def _recall(self, agent: Agent, recalled: _Recalled) -> None:
        agent.kept_prompts.recall(recalled.prompts)
        agent.recalled(recalled.slots, recalled.speeds, self._fleet.clock())

    def _last_news(self, key: tuple[str, str], observations: int, now: float) -> float:
        """When the newest of so many observations was made, as far as that was looked at."""
        seen, at = self._seen.get(key, (0, now))
        if observations > seen:
            at = now
        self._seen[key] = observations, at
        return at


def latest(records: list[AgentRecord], most: int = MAX_RECORDS) -> Iterator[AgentRecord]:
    """The agents of which something was learned last, with at most so many models in all."""
    for record in sorted(records, key=lambda record: max(each.at for each in record.models), reverse=True):
        most -= len(record.models)
        if most < 0:
            return
        yield record
