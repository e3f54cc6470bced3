"""Which models to load in place of which others, so that the fleet can serve more of what is asked for.

`demand` is by model, and `capacity` by agent and model what the agent could serve of it with all its slots, both in
requests per second. What an agent can do counts as shared equally by the models in demand that it has loaded.
"""

from collections.abc import Callable, Mapping, Set
from typing import NamedTuple

from ..agent import Agent

USABLE = 0.65
"""The part of an agent's capacity that counts: prompts are read as well, and answers are longer on average than most.

`--tune placement_plan.USABLE`: flat from 0.5 to 0.85."""

MIN_GAIN = 0.02
"""What a load has to bring, in parts of all that is asked for: each costs time, and what hosts have cached. One that
gives a model another place need not.

`--tune placement_plan.MIN_GAIN`: flat from 0.01 to 0.05."""

MOST_LOADS = 8
MOST_MODELS = 4
"""Loads of a plan, and models that are looked at for each: those of which most cannot be served."""

type Capacity = Mapping[Agent, Mapping[str, float]]
type Places = Mapping[Agent, Set[str]]
"""The models that each agent has loaded."""


class Load(NamedTuple):
    """An agent is to load a model. `instead` is the one that it is to unload for it; None: there is room."""

    agent: Agent
    model: str
    instead: str | None = None


class Plan(NamedTuple):
    """`unserved` is the part of what is asked for that the present places cannot serve, and `left` what remains of it
    after the loads.
    """

    loads: list[Load]
    unserved: float
    left: float


def plan(
    places: Places,
    demand: Mapping[str, float],
    capacity: Capacity,
    could_hold: Callable[[Agent, Set[str], str], bool],
    tolerated: float = 0.0,
) -> Plan:
    """One load after the other, each that which serves most of what is left. No model in demand loses its last place.

    `could_hold` says whether an agent may hold a model beside others. There are no loads where no more than the part
    `tolerated` of what is asked for cannot be served.
    """
    sketch = _Sketch(places, demand, capacity)
    total, before = sum(demand.values()), sketch.unserved
    loads: list[Load] = []
    complete = 0
    while before > tolerated * total and len(loads) < MOST_LOADS and sketch.unserved > 0:
        candidates = [(sketch.gain(load), load) for load in sketch.loads(could_hold)]
        if all(gain < MIN_GAIN * total for gain, _ in candidates):
            candidates = [(gain, load) for gain, load in candidates if load.model in sketch.lost and gain > 0]
        if not candidates:
            break
        _, load = max(candidates, key=lambda candidate: candidate[0])
        sketch.apply(load)
        loads.append(load)
        if not sketch.lost:
            complete, left = len(loads), sketch.unserved
    return Plan(loads[:complete], before / total, left / total if complete else before / total)


class _Sketch:
    """Places as they would be after some loads."""

    def __init__(self, places: Places, demand: Mapping[str, float], capacity: Capacity) -> None:
        self._places = {agent: set(models) for agent, models in places.items()}
        self._demand = demand
        self._capacity = capacity
        self._supply = dict.fromkeys(demand, 0.0)
        self._copies = dict.fromkeys(demand, 0)
        for agent, models in places.items():
            for model, share in self._shares(agent, models).items():
                self._supply[model] += share
                self._copies[model] += 1
        self._had = {model for model, copies in self._copies.items() if copies}

    def _shares(self, agent: Agent, models: Set[str]) -> dict[str, float]:
        able = self._capacity[agent]
        wanted = [model for model in models if model in self._demand]
        return {model: USABLE * able.get(model, 0.0) / len(wanted) for model in wanted}

    def _lacks(self, model: str, supply: float) -> float:
        return max(0.0, self._demand[model] - supply)

    @property
    def unserved(self) -> float:
        return sum(self._lacks(model, supply) for model, supply in self._supply.items())

    @property
    def lost(self) -> set[str]:
        """Models in demand that were loaded somewhere, and are not any more."""
        return {model for model in self._had if not self._copies[model]}

    def loads(self, could_hold: Callable[[Agent, Set[str], str], bool]) -> list[Load]:
        """Those that may help the models that lack most."""
        lack = {model: self._lacks(model, supply) for model, supply in self._supply.items()}
        lacking = sorted((model for model in lack if lack[model] > 0), key=lambda model: -lack[model])
        worst = [model for n, model in enumerate(lacking) if n < MOST_MODELS or model in self.lost]
        found = []
        for agent, models in self._places.items():
            for model in worst:
                if model in models or model not in self._capacity[agent]:
                    continue
                if could_hold(agent, models, model):
                    found.append(Load(agent, model))
                    continue
                others = [other for other in sorted(models) if could_hold(agent, models - {other}, model)]
                found += [Load(agent, model, other) for other in others]
        return found

    def gain(self, load: Load) -> float:
        """How much more could be served after it."""
        before, after = self._before_and_after(load)
        gain = 0.0
        for model in before.keys() | after.keys():
            supply = self._supply[model]
            changed = supply - before.get(model, 0.0) + after.get(model, 0.0)
            gain += self._lacks(model, supply) - self._lacks(model, changed)
        return gain

    def apply(self, load: Load) -> None:
        before, after = self._before_and_after(load)
        for model, share in before.items():
            self._supply[model] -= share
            self._copies[model] -= 1
        for model, share in after.items():
            self._supply[model] += share
            self._copies[model] += 1
        self._places[load.agent] = self._places[load.agent] - {load.instead} | {load.model}

    def _before_and_after(self, load: Load) -> tuple[dict[str, float], dict[str, float]]:
        models = self._places[load.agent]
        return self._shares(load.agent, models), self._shares(load.agent, models - {load.instead} | {load.model})
