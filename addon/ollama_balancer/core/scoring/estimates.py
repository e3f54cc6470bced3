"""Estimates of how fast each agent serves each model, learned from its answers.

Rates and times differ by factors and not by sums, so that averages are of logarithms. Where an agent has not served a
model yet, the figure is what other agents take for that model, times how much faster or slower this agent has shown
itself to be with others; where nothing at all is known, a prior.
"""

import math
from dataclasses import dataclass
from typing import Any

from ..agent_records import Rates

NEWEST = 0.2
"""The weight of the newest observation, once there are some.

`--tune estimates.NEWEST`: flat from 0.05 to 0.8."""

NEWS = math.log(1.1)
"""The factor by which an average has to change before dependent estimates are recomputed.

It saves work. `--tune estimates.NEWS`: flat up to a factor of 2."""

OUTLIER = math.log(4.0)
"""The factor by which an observation may differ from the average: outliers are clipped to it.

`--tune estimates.OUTLIER`: flat from 1.5 to 20."""

MAX_MODELS = 1000
"""Models that are tracked, in total and per agent."""


MAX_OUTPUT = 131_072
"""Tokens of an answer: larger counts are clipped to it."""


@dataclass(frozen=True)
class Estimate:
    """A figure and the number of observations of the agent with the model that it rests on; 0: a guess."""

    value: float
    observations: int

    def describe(self) -> dict[str, float]:
        return {"value": round(self.value, 3), "observations": self.observations}


class Average:
    """A moving average of logarithms; the first observations have equal weights."""

    __slots__ = ("_told", "log", "observations", "value")

    def __init__(self) -> None:
        self.log = 0.0
        self.observations = 0
        self.value = 1.0
        self._told = math.inf

    def observe(self, log: float) -> bool:
        """Add an observation; True if the average has changed enough for dependent estimates to be recomputed."""
        if self.observations:
            weight = max(NEWEST, 1 / (self.observations + 1))
            step = log - self.log
            self.log += weight * (-OUTLIER if step < -OUTLIER else OUTLIER if step > OUTLIER else step)
        else:
            self.log = log
        self.observations += 1
        self.value = math.exp(self.log)
        if abs(self.log - self._told) < NEWS:
            return False
        self._told = self.log
        return True


class Figure:
    """One kind of figure (tokens per second, or seconds) over all agents and models, within bounds.

    Agents are named by their ids and models by their canonical names.
    """

    def __init__(self, prior: float, lowest: float, highest: float) -> None:
        self._prior = prior
        self._lowest, self._highest = lowest, highest
        self._models: dict[str, Average] = {}
        """By model, the figure on an agent of average speed."""
        self._agents: dict[str, Average] = {}
        """By agent, its factor to that, over all models."""
        self._pairs: dict[str, dict[str, Average]] = {}

    def observe(self, agent: str, model: str, value: float) -> bool:
        """Add an observation; values that are not positive are ignored.

        True if estimates for the model on other agents have changed.
        """
        if not 0 < value < math.inf:
            return False
        value = max(self._lowest, min(self._highest, value))
        pairs, factor = self._pairs.get(agent), self._agents.get(agent)
        if pairs is None or factor is None:
            pairs, factor = self._pairs.setdefault(agent, {}), self._agents.setdefault(agent, Average())
        pair, typical = pairs.get(model), self._models.get(model)
        if pair is None or typical is None:
            if (pair is None and len(pairs) >= MAX_MODELS) or (typical is None and len(self._models) >= MAX_MODELS):
                return False
            pair, typical = pairs.setdefault(model, Average()), self._models.setdefault(model, Average())
        log = math.log(value)
        difference = factor.log if factor.observations else 0.0
        if typical.observations:
            factor.observe(log - typical.log)
        pair.observe(log)
        return typical.observe(log - difference)

    def value(self, agent: str, model: str) -> float:
        """The figure for the model on the agent."""
        return self.known(agent, model)[0]

    def known(self, agent: str, model: str) -> tuple[float, int]:
        """The figure for the model on the agent, and the number of observations it rests on."""
        pairs = self._pairs.get(agent)
        pair = pairs.get(model) if pairs is not None else None
        if pair is not None:
            return pair.value, pair.observations
        typical = self._models.get(model)
        factor = self._agents.get(agent)
        value = typical.value if typical is not None else self._prior
        if factor is not None:
            value *= factor.value
        return max(self._lowest, min(self._highest, value)), 0

    def of(self, agent: str, model: str) -> Estimate:
        return Estimate(*self.known(agent, model))

    def models(self, agent: str) -> list[str]:
        """The models with observations on the agent."""
        return list(self._pairs.get(agent, ()))

    def forget(self, agent: str) -> None:
        """The agent has left, or is another machine now."""
        self._pairs.pop(agent, None)
        self._agents.pop(agent, None)


DECODE, PREFILL, LOAD, OUTPUT = 20.0, 800.0, 15.0, 200.0
"""Priors of a mid-range GPU and model: tokens per second, tokens per second, seconds, tokens.

`--tune estimates.LOAD`: 4 is as good, 60 worse. `--tune estimates.DECODE`, `--tune estimates.PREFILL` and
`--tune estimates.OUTPUT`: none better at a quarter or four times as much, and none worse beyond noise."""


class Estimates:
    """The figures of a fleet."""

    def __init__(self) -> None:
        self.decode = Figure(DECODE, 0.01, 1e5)
        """Tokens per second of a request that runs alone."""
        self.prefill = Figure(PREFILL, 0.1, 1e6)
        """Tokens of a prompt per second."""
        self.load = Figure(LOAD, 0.1, 3600.0)
        """Seconds."""
        self._generations: dict[str, int] = {}
        self._output: dict[str, Average] = {}

    def rates(self, agent: str, model: str) -> Rates:
        decode, observations = self.decode.known(agent, model)
        return Rates(decode, self.prefill.value(agent, model), observations)

    def shown(self, agent: str, model: str) -> Rates | None:
        """The agent's rates with the model, once both have been observed."""
        decode, observations = self.decode.known(agent, model)
        prefill, reads = self.prefill.known(agent, model)
        return Rates(decode, prefill, observations) if observations and reads else None

    def observe_output(self, model: str, tokens: int) -> None:
        """Add the length of an answer."""
        if tokens > 0 and (model in self._output or len(self._output) < MAX_MODELS):
            average = self._output.setdefault(model, Average())
            self.changed(model, average.observe(math.log(min(tokens, MAX_OUTPUT))))

    def generation(self, model: str) -> int:
        """A number that grows when estimates for the model change on all agents."""
        return self._generations.get(model, 0)

    def changed(self, model: str, news: bool) -> None:
        if news:
            self._generations[model] = self._generations.get(model, 0) + 1

    def output(self, model: str) -> float:
        """The expected tokens of an answer."""
        average = self._output.get(model)
        return OUTPUT if average is None else average.value

    def output_of(self, model: str) -> Estimate:
        average = self._output.get(model)
        return Estimate(self.output(model), 0 if average is None else average.observations)

    def describe(self, agent: str) -> dict[str, dict[str, Any]]:
        """The figures of the models that the agent has served."""
        figures = {"decode": self.decode, "prefill": self.prefill, "load": self.load}
        models = dict.fromkeys(model for figure in figures.values() for model in figure.models(agent))
        return {
            model: {name: figure.of(agent, model).describe() for name, figure in figures.items()}
            | {"output": self.output_of(model).describe()}
            for model in models
        }

    def forget(self, agent: str) -> None:
        for figure in (self.decode, self.prefill, self.load):
            figure.forget(agent)
