"""GET /metrics: the fleet and the outcome of its requests, for Prometheus.

Nothing is kept twice: what the registry knows is read when somebody asks, and what has happened is in the metrics.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.agent import Agent, Status
from ..core.ledger import Ledger
from ..core.queue import RequestQueue
from ..core.registry import AgentRegistry
from ..core.stats import Histogram, RequestMetrics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "ollama_balancer_"

HOST_FIGURES = (
    ("cpu_count", "cpus", "Processors."),
    ("disk_free", "models_disk_free_bytes", "Free space on the file system that holds the models."),
    ("disk_total", "models_disk_size_bytes", "Size of the file system that holds the models."),
    ("network_received", "network_receive_bytes_per_second", "Received since the previous report."),
    ("network_sent", "network_transmit_bytes_per_second", "Sent since the previous report."),
)
"""Fields of a report, the names of their metrics, and what they are."""


@dataclass(frozen=True)
class _Collected:
    """The registry that the encoder expects."""

    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families


class Exposition:
    """The page, made anew for each who asks. `totals` gives the counts of all requests since the start."""

    def __init__(
        self,
        registry: AgentRegistry,
        queue: RequestQueue,
        metrics: RequestMetrics,
        totals: Callable[[], dict[str, int]],
        ledger: Ledger,
    ) -> None:
        self.registry = registry
        self.queue = queue
        self.metrics = metrics
        self.totals = totals
        self.ledger = ledger

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
        versions = _versions()
        yield _gauge("build_info", "Versions in use; always 1.", tuple(versions), [(tuple(versions.values()), 1)])
        yield from self._requests()
        yield from self._keys()
        yield from self._fleet(agents)
        yield from self._hosts(agents)

    def _requests(self) -> Iterator[Metric]:
        metrics = self.metrics
        pair = ("agent", "model")
        yield _counter(
            "requests", "Requests that ended.", ("agent", "model", "route", "outcome"), metrics.requests.items()
        )
        yield _counter(
            "prompt_tokens", "Tokens of prompts, as reported by the hosts.", pair, metrics.prompt_tokens.items()
        )
        yield _counter(
            "output_tokens", "Tokens of answers, as reported by the hosts.", pair, metrics.output_tokens.items()
        )
        yield _counter(
            "upstream_attempt_failures",
            "Attempts that failed before the first byte.",
            ("agent", "reason"),
            metrics.failures.items(),
        )
        yield _counter(
            "rejections",
            "Requests that ended with a 4xx because of the request itself, by status.",
            ("status",),
            (((str(status),), n) for status, n in metrics.rejections.items()),
        )
        yield _counter(
            "cancels",
            "Requests cancelled.",
            ("reason",),
            (((reason,), n) for reason, n in metrics.cancels.items()),
        )
        yield _histogram(
            "request_duration_seconds", "From arrival to the last byte, of requests that succeeded.", metrics.durations
        )
        yield _histogram(
            "time_to_first_token_seconds", "From arrival to the first token, of streamed answers.", metrics.first_tokens
        )
        yield _histogram("output_tokens_per_second", "Generation speed.", metrics.rates)
        yield _histogram("queue_wait_seconds", "Time in the queue, of requests that waited.", {None: metrics.waits})
        yield _counter(
            "proxy_processing_seconds",
            "Time that the balancer's own code spent on requests.",
            (),
            [((), metrics.processing_seconds)],
        )

    def _keys(self) -> Iterator[Metric]:
        ledger = self.ledger
        yield _counter("key_requests", "Requests of each key that ended.", ("key", "outcome"), ledger.requests.items())
        for name, text, counts in (
            ("key_prompt_tokens", "Tokens of prompts, by key.", ledger.prompt_tokens),
            ("key_output_tokens", "Tokens of answers, by key.", ledger.output_tokens),
        ):
            yield _counter(name, text, ("key",), (((key,), count) for key, count in counts.items()))

    def _fleet(self, agents: list[Agent]) -> Iterator[Metric]:
        counts = self.registry.counts()
        yield _gauge("agents", "Agents by state.", ("state",), (((s.value,), counts.get(s, 0)) for s in Status))
        yield _gauge(
            "requests_in_flight", "Requests that hosts are working on.", (), [((), self.totals()["in_flight"])]
        )
        yield _gauge("waiting_requests", "Requests in the queue.", (), [((), len(self.queue))])
        yield _by_agent("agent_up", "1: the agent is online.", agents, lambda a: int(a.status is Status.ONLINE))
        yield _by_agent("agent_draining", "1: the agent was drained on purpose.", agents, lambda a: int(a.draining))
        yield _by_agent("agent_requests_in_flight", "Requests in flight on the agent.", agents, lambda a: a.in_flight)
        yield _by_agent(
            "agent_slots", "Requests per model that the agent runs at once.", agents, lambda a: a.slots or None
        )
        yield _by_agent("agent_loaded_models", "Models loaded.", agents, lambda a: len(a.loaded))
        yield _counter(
            "agent_ejections",
            "Times the agent was ejected.",
            ("agent",),
            (((a.name,), a.stats.ejections) for a in agents),
        )

    def _hosts(self, agents: list[Agent]) -> Iterator[Metric]:
        now = self.registry.clock()
        reporting = [agent for agent in agents if agent.metrics is not None]

        def reported(name: str, text: str, value: Any) -> Metric:
            return _by_agent(f"host_{name}", text, reporting, lambda agent: value(agent.metrics))

        yield _by_agent(
            "host_report_age_seconds", "Time since the last report.", reporting, lambda a: now - a.metrics_at
        )
        yield reported("cpu_usage_ratio", "CPU in use, 0 to 1.", lambda m: _ratio(m.cpu_usage))
        yield reported("memory_usage_ratio", "Memory in use, 0 to 1.", lambda m: _ratio(m.memory_usage))
        for field, name, text in HOST_FIGURES:
            yield reported(name, text, attrgetter(field))
        yield reported(
            "load1", "Load average over one minute.", lambda m: m.load_average[0] if m.load_average else None
        )
        collectors = {
            (agent.name, each.name): int(each.ok)
            for agent in reporting
            if agent.metrics is not None
            for each in agent.metrics.collectors or ()
        }
        yield _gauge(
            "host_collector_success",
            "1: the collector's part of the last report could be read.",
            ("agent", "collector"),
            collectors.items(),
        )
        gpus = [
            ((agent.name, str(number), gpu.name), gpu)
            for agent in reporting
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


@cache
def _versions() -> dict[str, str]:
    return {
        "version": __version__,
        "mitmproxy": metadata.version("mitmproxy"),
        "python": platform.python_version(),
    }


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
