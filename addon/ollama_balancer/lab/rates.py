"""Learns the fleet from a recording: the speed of each host and model, and the concurrency of each host."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from ..core.agent import Agent
from ..core.scoring.estimates import Estimates, Figure
from .hosts import Model, Rates, Spec
from .learning_replay import LearningReplay
from .recording import Recorded, Recording

KEEP_ALIVE = 300.0
"""Seconds for which a host keeps an idle model in memory, as Ollama does, unless it was seen to keep one for longer."""

PASSED_OVER = 0.01
"""Probability below which a host that was never chosen for a model is assumed not to have it."""


@dataclass(frozen=True)
class LearnedFleet:
    """`hosts` and `models` are in the order of their names."""

    hosts: tuple[Spec, ...]
    models: tuple[Model, ...]
    decode: int
    """Answers that tell how fast hosts answer."""
    prefill: int
    """Answers that tell how fast they read."""
    loads: int
    """Answers that tell how long they load."""
    pairs: int
    """Hosts and models that they have: each is a pair."""
    guessed: int
    """Pairs of which no answer tells the pace."""
    assumed: tuple[str, ...]
    """Models that hosts are assumed to have which were not seen with them."""
    nowhere: frozenset[str]
    """Models that no host is known to have."""
    unused: tuple[str, ...]
    """Agents that have answered nothing and were not weighed: they are left out."""


def learn(recording: Recording, *, slots: int = 0, fits: int = 0, keep: float = 0.0) -> LearnedFleet:
    """The fleet as the recording shows it. `slots`, `fits` and `keep` hold for each host; 0: as the flows show.

    ValueError: no host has answered anything.
    """
    answered: dict[str, list[Recorded]] = {}
    for request in recording.requests:
        if request.served and request.agent is not None:
            answered.setdefault(request.agent, []).append(request)
    if not answered:
        raise ValueError("no request in it was served by a host: there is nothing to learn from")
    names = sorted(answered.keys() | set().union(*recording.candidates.values()))
    seen = {name: _residency(answered.get(name, ())) for name in names}
    room = {
        name: fits or recording.fits.get(name) or max(recording.loaded_together.get(name, 1), at_once)
        for name, (at_once, _) in seen.items()
    }
    replay = LearningReplay(names, room)
    replay.run(recording.requests)
    models = sorted({request.model for request in recording.requests})
    pace = _Pace(replay.registry.learner.estimates, replay.agents.values(), models)
    holders_by_model, assumed = _holders(recording, answered, names, models)
    hosts = tuple(
        Spec(
            speed=1.0,
            disk=1.0,
            parallel=slots or recording.slots.get(name) or agent.slots or 1,
            fits=room[name],
            name=name,
            rates={model: pace.rates(agent.id, model) for model in models if name in holders_by_model[model]},
            loaded=_loaded_at_first(answered.get(name, ()))[: room[name]],
            keep=keep or max(KEEP_ALIVE, seen[name][1]),
        )
        for name, agent in replay.agents.items()
    )
    pairs = {(host.name, model) for host in hosts for model in host.rates or ()}
    return LearnedFleet(
        hosts=hosts,
        models=tuple(pace.model(model, number) for number, model in enumerate(models) if holders_by_model[model]),
        decode=pace.observations[pace.estimates.decode],
        prefill=pace.observations[pace.estimates.prefill],
        loads=pace.observations[pace.estimates.load],
        pairs=len(pairs),
        guessed=len(pairs - pace.pairs),
        assumed=tuple(assumed),
        nowhere=frozenset(model for model in models if not holders_by_model[model]),
        unused=tuple(sorted(recording.failed_agents - set(names))),
    )


class _Pace:
    """The learned speeds. A model without data is assumed to be like the others, as a prior would belong to another
    fleet.
    """

    def __init__(self, estimates: Estimates, agents: Iterable[Agent], models: Iterable[str]) -> None:
        self.estimates = estimates
        self.observations: Counter[Figure] = Counter()
        self.pairs: set[tuple[str, str]] = set()
        """Agents and models of which an answer tells the pace."""
        self._known: dict[Figure, dict[str, list[float]]] = {}
        agents = list(agents)
        for figure in (estimates.decode, estimates.prefill, estimates.load):
            known = self._known[figure] = {}
            for model in models:
                for agent in agents:
                    estimate = figure.of(agent.id, model)
                    if estimate.observations:
                        known.setdefault(model, []).append(estimate.value)
                        self.observations[figure] += estimate.observations
                        if figure is not estimates.load:
                            self.pairs.add((agent.name, model))

    def rates(self, agent: str, model: str) -> Rates:
        """Of the agent with that id; any other name is an agent of middling speed."""
        estimates = self.estimates
        return Rates(
            *(self._value(figure, agent, model) for figure in (estimates.decode, estimates.prefill, estimates.load))
        )

    def _value(self, figure: Figure, agent: str, model: str) -> float:
        known = self._known[figure]
        if model in known or not known:
            return figure.value(agent, model)
        return median(value for values in known.values() for value in values)

    def model(self, name: str, number: int) -> Model:
        """Which idle model a host evicts first is not known: the first by name."""
        rates = self.rates("", name)
        return Model(name, rates.decode, rates.prefill, rates.load, self.estimates.output(name), number)


def _holders(
    recording: Recording, answered: dict[str, list[Recorded]], names: list[str], models: list[str]
) -> tuple[dict[str, set[str]], list[str]]:
    """The hosts of each model, and the models that hosts are only assumed to have.

    Modes that score agents record the candidates. In the others, a host is assumed to lack a model if, given its share
    of all requests, it would almost certainly have got one for it.
    """
    holders_by_model = {model: set(recording.candidates.get(model, ())) for model in models}
    for name, requests in answered.items():
        for request in requests:
            holders_by_model[request.model].add(name)
    assumed = []
    requests_per_model = Counter(request.model for request in recording.requests)
    total = sum(len(requests) for requests in answered.values())
    for model, holders in holders_by_model.items():
        if not holders or model in recording.candidates:
            continue
        assumed_holders = {
            name
            for name in set(names) - holders - recording.without_model.get(model, set())
            if (1 - len(answered.get(name, ())) / total) ** requests_per_model[model] > PASSED_OVER
        }
        if assumed_holders:
            holders |= assumed_holders
            assumed.append(model)
    return holders_by_model, assumed


def _residency(requests: Iterable[Recorded]) -> tuple[int, float]:
    """The most models that a host had loaded at once, and the longest time that one stayed loaded while idle.

    A model that answers without a load has been loaded since its last answer, or since the beginning.
    """
    spans: dict[str, list[list[float]]] = {}
    idle = 0.0
    for request in sorted(requests, key=lambda request: request.began or request.sent):
        began = request.began or request.sent
        model_spans = spans.setdefault(request.model, [])
        was_loaded = request.loaded is False
        if model_spans and (was_loaded or began <= model_spans[-1][1]):
            idle = max(idle, request.sent - model_spans[-1][1])
            model_spans[-1][1] = max(model_spans[-1][1], request.ended)
        else:
            model_spans.append([0.0 if was_loaded else began, request.ended])
    edges = sorted(
        (at, step) for each in spans.values() for span in each for at, step in zip(span, (1, -1), strict=True)
    )
    return max([1, *accumulate(step for _, step in edges)]), idle


def _loaded_at_first(requests: Iterable[Recorded]) -> tuple[str, ...]:
    """Models that a host seems to have had loaded when the recording began."""
    first: dict[str, Recorded] = {}
    for request in sorted(requests, key=lambda request: request.began or request.sent):
        first.setdefault(request.model, request)
    return tuple(model for model, request in first.items() if request.warm)
