"""GET /metrics: the fleet and what became of its requests, for Prometheus.

Nothing is kept twice: what the registry knows is read when somebody asks, and what has happened is in the tally.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..core.agent import Agent, Status
from ..core.queue import RequestQueue
from ..core.registry import AgentRegistry
from ..core.stats import Histogram, RequestMetrics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "ollama_balancer_"

HOST_FIGURES = (
    ("cpu_count", "cpus", "Processors."),
    ("disk_free", "models_disk_free_bytes", "Room left where the models are."),
    ("disk_total", "models_disk_size_bytes", "Size of the file system where the models are."),
    ("network_received", "network_receive_bytes_per_second", "Received since the report before."),
    ("network_sent", "network_transmit_bytes_per_second", "Sent since the report before."),
)
"""Fields of a report, the names of their metrics, and what they are."""


@dataclass(frozen=True)
class _Collected:
    """What an encoder takes for a registry."""

    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families


class Exposition:
    """The page, made anew for each who asks. `totals` gives the counts of all requests since the start."""

    def __init__(
        self, registry: AgentRegistry, line: RequestQueue, tally: RequestMetrics, totals: Callable[[], dict[str, int]]
    ) -> None:
        self.registry = registry
        self.line = line
        self.tally = tally
        self.totals = totals

    async def page(self, accept: str) -> tuple[bytes, str]:
        """Its bytes and their type, in the format that is asked for."""
        from prometheus_client.exposition import choose_encoder

        encoder, content_type = choose_encoder(accept)
        collected: Any = _Collected([])
        # Of a large fleet it takes a third of a second, in which answers have to go on.
        for family in self.collect():
            collected.families.append(family)
            await asyncio.sleep(0)
        return await asyncio.to_thread(encoder, collected), content_type

    def collect(self) -> Iterator[Metric]:
        agents = list(self.registry)
        yield from self._requests()
        yield from self._fleet(agents)
        yield from self._hosts(agents)

    def _requests(self) -> Iterator[Metric]:
        tally = self.tally
        pair = ("agent", "model")
        yield _counter(
            "requests", "Requests that ended.", ("agent", "model", "route", "outcome"), tally.requests.items()
        )
        yield _counter("prompt_tokens", "Tokens of prompts, as hosts tell.", pair, tally.prompt_tokens.items())
        yield _counter("output_tokens", "Tokens of answers, as hosts tell.", pair, tally.output_tokens.items())
        yield _counter(
            "failed_attempts",
            "Agents tried in vain before the first byte.",
            ("agent", "reason"),
            tally.failures.items(),
        )
        yield _counter(
            "rejections",
            "Requests answered with a 4xx because of the request itself, by status.",
            ("status",),
            (((str(status),), n) for status, n in tally.rejections.items()),
        )
        yield _counter(
            "cancels", "Requests cancelled.", ("reason",), (((reason,), n) for reason, n in tally.cancels.items())
        )
        yield _histogram(
            "request_duration_seconds", "From arrival to the last byte, of those that succeeded.", tally.durations
        )
        yield _histogram("time_to_first_token_seconds", "From arrival, of streamed answers.", tally.first_tokens)
        yield _histogram("output_tokens_per_second", "How fast answers came.", tally.rates)
        yield _histogram("wait_seconds", "In the line, of those that waited.", {None: tally.waits})
        yield _counter("own_seconds", "What the balancer itself spent on requests.", (), [((), tally.own_seconds)])

    def _fleet(self, agents: list[Agent]) -> Iterator[Metric]:
        counts = self.registry.counts()
        yield _gauge("agents", "Agents by state.", ("state",), (((s.value,), counts.get(s, 0)) for s in Status))
        yield _gauge("requests_in_flight", "Requests that hosts have.", (), [((), self.totals()["in_flight"])])
        yield _gauge("waiting_requests", "Requests in the line.", (), [((), len(self.line))])
        yield _by_agent("agent_up", "1: online.", agents, lambda a: int(a.status is Status.ONLINE))
        yield _by_agent("agent_draining", "1: gets no new requests, on purpose.", agents, lambda a: int(a.draining))
        yield _by_agent("agent_requests_in_flight", "Requests that run there.", agents, lambda a: a.in_flight)
        yield _by_agent("agent_slots", "Requests it runs at once.", agents, lambda a: a.slots or None)
        yield _by_agent("agent_loaded_models", "Models in memory.", agents, lambda a: len(a.loaded))
        yield _counter(
            "agent_ejections", "Times it was ejected.", ("agent",), (((a.name,), a.stats.ejections) for a in agents)
        )

    def _hosts(self, agents: list[Agent]) -> Iterator[Metric]:
        now = self.registry.clock()
        told = [agent for agent in agents if agent.metrics is not None]

        def reported(name: str, text: str, value: Any) -> Metric:
            return _by_agent(f"host_{name}", text, told, lambda agent: value(agent.metrics))

        yield _by_agent("host_report_age_seconds", "Since the last report.", told, lambda a: now - a.metrics_at)
        yield reported("cpu_usage_ratio", "CPU in use, 0 to 1.", lambda m: _ratio(m.cpu_usage))
        yield reported("memory_usage_ratio", "Memory in use, 0 to 1.", lambda m: _ratio(m.memory_usage))
        for field, name, text in HOST_FIGURES:
            yield reported(name, text, attrgetter(field))
        yield reported("load1", "Load average over a minute.", lambda m: m.load_average[0] if m.load_average else None)
        yield reported(
            "failing_collectors",
            "Parts of the last report that could not be read.",
            lambda m: sum(not each.ok for each in m.collectors) if m.collectors is not None else None,
        )
        gpus = [
            ((agent.name, str(number), gpu.name), gpu)
            for agent in told
            if agent.metrics is not None
            for number, gpu in enumerate(agent.metrics.gpus or ())
        ]
        for name, text, value in (
            ("utilization_ratio", "GPU in use, 0 to 1.", lambda g: _ratio(g.utilization)),
            ("memory_used_bytes", "GPU memory in use.", lambda g: g.memory_used),
            ("memory_total_bytes", "GPU memory.", lambda g: g.memory_total),
            ("temperature_celsius", "GPU temperature.", lambda g: g.temperature),
            ("power_watts", "GPU power.", lambda g: g.power),
        ):
            known = ((labels, figure) for labels, gpu in gpus if (figure := value(gpu)) is not None)
            yield _gauge(f"host_gpu_{name}", text, ("agent", "gpu", "name"), known)


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


type Samples = Iterable[tuple[tuple[str, ...], float]]


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for values, count in samples:
        family.add_metric(values, count)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _by_agent(name: str, text: str, agents: Iterable[Agent], value: Any) -> Metric:
    known = (((agent.name,), figure) for agent in agents if (figure := value(agent)) is not None)
    return _gauge(name, text, ("agent",), known)


def _histogram(name: str, text: str, by_model: Mapping[str, Histogram] | Mapping[None, Histogram]) -> Any:
    """With a label for the model, unless the key is None."""
    from prometheus_client.core import HistogramMetricFamily

    family: Any = HistogramMetricFamily(PREFIX + name, text, labels=() if None in by_model else ("model",))
    for model, histogram in by_model.items():
        family.add_metric(() if model is None else (model,), histogram.buckets(), histogram.sum)
    return family
