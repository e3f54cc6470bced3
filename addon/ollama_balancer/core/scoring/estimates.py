"""Estimates of how fast each agent serves each model, learned from its answers.

Rates and times differ by factors and not by sums, so that averages are of logarithms. Where an agent has not served a
model yet, the figure is that of agents with the same GPUs and the same model; else what other agents take for that
model, times how much faster or slower this agent, or those with the same GPUs, have shown themselves to be with others;
of a model that no agent has served, what others come to for each byte; where nothing at all is known, a prior.
"""

import math
from dataclasses import dataclass
from typing import Any

from ..agent_records import Rates
from .likeness import Likeness

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

MAX_KIN = 10_000
"""Pairs of GPUs and digests, and GPUs, for which there are averages of all agents that have them."""

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

    Agents are named by their ids and models by their canonical names. `by_size` is the power of a model's size to which
    the figure is proportional, where nothing else is known.
    """

    def __init__(
        self, prior: float, lowest: float, highest: float, likeness: Likeness | None = None, by_size: float = 0.0
    ) -> None:
        self._prior = math.log(prior)
        self._lowest, self._highest = lowest, highest
        self._likeness = likeness or Likeness()
        self._by_size = by_size
        self._sized = Average()
        """The figure of a model of `MODEL_SIZE` on an agent of average speed."""
        self._kin: dict[tuple[str, str], Average] = {}
        """By GPUs and digest."""
        self._hardware: dict[str, Average] = {}
        """By GPUs, the factor of the agents that have them."""
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
        self._observe_alike(agent, model, log, log - typical.log if typical.observations else None)
        size = self._likeness.size(model)
        if size is not None:
            self._sized.observe(log - difference - self._by_size * size)
        return typical.observe(log - difference)

    def _observe_alike(self, agent: str, model: str, log: float, difference: float | None) -> None:
        """An observation counts for the agents that are alike as well."""
        hardware, kin = self._likeness.hardware.get(agent), self._likeness.kin(agent, model)
        if kin is not None and (kin in self._kin or len(self._kin) < MAX_KIN):
            self._kin.setdefault(kin, Average()).observe(log)
        if (
            hardware is not None
            and difference is not None
            and (hardware in self._hardware or len(self._hardware) < MAX_KIN)
        ):
            self._hardware.setdefault(hardware, Average()).observe(difference)

    def value(self, agent: str, model: str) -> float:
        """The figure for the model on the agent."""
        return self.known(agent, model)[0]

    def known(self, agent: str, model: str) -> tuple[float, int]:
        """The figure for the model on the agent, and the number of observations it rests on."""
        pairs = self._pairs.get(agent)
        pair = pairs.get(model) if pairs is not None else None
        if pair is not None:
            return pair.value, pair.observations
        return max(self._lowest, min(self._highest, math.exp(self._guess(agent, model)))), 0

    def _guess(self, agent: str, model: str) -> float:
        """The logarithm of the figure for a pair that has not met."""
        likeness = self._likeness
        kin = likeness.kin(agent, model)
        alike = self._kin.get(kin) if kin is not None else None
        if alike is not None:
            return alike.log
        typical, factor = self._models.get(model), self._agents.get(agent)
        if factor is None:
            factor = self._hardware.get(likeness.hardware.get(agent, ""))
        if typical is not None:
            log = typical.log
        else:
            size = likeness.size(model)
            log = self._sized.log if self._sized.observations and size is not None else self._prior
            log += self._by_size * (size or 0.0)
        return log if factor is None else log + factor.log

    def of(self, agent: str, model: str) -> Estimate:
        return Estimate(*self.known(agent, model))

    def models(self, agent: str) -> list[str]:
        """The models with observations on the agent."""
        return list(self._pairs.get(agent, ()))

    def agents(self) -> list[str]:
        """The agents with observations."""
        return list(self._pairs)

    def recall(self, agent: str, model: str, value: float, observations: int) -> None:
        """What was known of a pair before: it counts as so many observations. What is known since counts more."""
        if model not in self._pairs.get(agent, ()):
            self.observe(agent, model, value)
            pair = self._pairs.get(agent, {}).get(model)
            if pair is not None:
                pair.observations = observations

    def weaken(self, agent: str) -> None:
        """What is known of the agent counts as one observation each: the next one weighs as much."""
        for pair in self._pairs.get(agent, {}).values():
            pair.observations = min(1, pair.observations)

    def forget(self, agent: str) -> None:
        """The agent has left, or is another machine now."""
        self._pairs.pop(agent, None)
        self._agents.pop(agent, None)

    def forget_pair(self, agent: str, model: str) -> None:
        """The agent has another model of that name now."""
        self._pairs.get(agent, {}).pop(model, None)

    def forget_model(self, model: str) -> None:
        """No agent has the model of that name any more, but another one."""
        self._models.pop(model, None)


DECODE, PREFILL, LOAD, OUTPUT = 20.0, 800.0, 15.0, 200.0
"""Priors of a mid-range GPU and model: tokens per second, tokens per second, seconds, tokens.

`--tune estimates.LOAD`: 4 is as good, 60 worse. `--tune estimates.DECODE`, `--tune estimates.PREFILL` and
`--tune estimates.OUTPUT`: none better at a quarter or four times as much, and none worse beyond noise."""


class Estimates:
    """The figures of a fleet."""

    def __init__(self) -> None:
        self.likeness = likeness = Likeness()
        self.decode = Figure(DECODE, 0.01, 1e5, likeness, -1.0)
        """Tokens per second of a request that runs alone."""
        self.prefill = Figure(PREFILL, 0.1, 1e6, likeness, -1.0)
        """Tokens of a prompt per second."""
        self.load = Figure(LOAD, 0.1, 3600.0, likeness, 1.0)
        """Seconds."""
        self.figures = self.decode, self.prefill, self.load
        self._generations: dict[str, int] = {}
        self._output: dict[str, Average] = {}
        self._embedding: dict[str, bool] = {}
        """Models that have been asked for embeddings last, and have written no answer yet."""

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

    def asked(self, model: str, *, for_embeddings: bool) -> None:
        """The model is sent a request. One of which nothing else is known does not write, if it is for embeddings."""
        if not for_embeddings:
            if self._embedding.pop(model, None):
                self.changed(model, news=True)
        elif model not in self._embedding and model not in self._output:
            if len(self._embedding) >= MAX_MODELS:
                del self._embedding[next(iter(self._embedding))]
            self._embedding[model] = True
            self.changed(model, news=True)

    def generation(self, model: str) -> int:
        """A number that grows when estimates for the model change on all agents."""
        return self._generations.get(model, 0)

    def changed(self, model: str, news: bool) -> None:
        if news:
            self._generations[model] = self._generations.get(model, 0) + 1

    def output(self, model: str) -> float:
        """The expected tokens of an answer."""
        average = self._output.get(model)
        if average is None:
            return 1.0 if model in self._embedding else OUTPUT
        return average.value

    def output_of(self, model: str) -> Estimate:
        average = self._output.get(model)
        return Estimate(self.output(model), 0 if average is None else average.observations)

    def outputs(self) -> dict[str, Estimate]:
        """By model, the tokens of an answer."""
        return {model: Estimate(average.value, average.observations) for model, average in self._output.items()}

    def recall_output(self, model: str, tokens: float, observations: int) -> None:
        """The length of its answers as it was known before, which counts as so many observations."""
        if model not in self._output and len(self._output) < MAX_MODELS:
            average = self._output[model] = Average()
            average.observe(math.log(max(1.0, min(tokens, MAX_OUTPUT))))
            average.observations = observations
            self.changed(model, news=True)

    def describe(self, agent: str) -> dict[str, dict[str, Any]]:
        """The figures of the models that the agent has served."""
        models = dict.fromkeys(model for figure in self.figures for model in figure.models(agent))
        figures = {"decode": self.decode, "prefill": self.prefill, "load": self.load}
        return {
            model: {name: figure.of(agent, model).describe() for name, figure in figures.items()}
            | {"output": self.output_of(model).describe()}
            for model in models
        }

    def knows(self, agent: str, model: str) -> bool:
        """Whether the agent has served the model."""
        return any(figure.known(agent, model)[1] for figure in self.figures)

    def weaken(self, agent: str) -> None:
        """What is known of the agent may not hold exactly any more."""
        for figure in self.figures:
            figure.weaken(agent)

    def forget(self, agent: str) -> None:
        for figure in self.figures:
            figure.forget(agent)

    def forget_pair(self, agent: str, model: str) -> None:
        for figure in self.figures:
            figure.forget_pair(agent, model)

    def forget_model(self, model: str) -> None:
        for figure in self.figures:
            figure.forget_model(model)
        self._output.pop(model, None)
        self.changed(model, news=model in self._generations)  # else nothing was known of it
