"""The demo fleet: simulated Ollama hosts of different speed and models, each with a real reporter."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import agent_reporter
from agent_reporter.push import Reporter
from agent_reporter.wire import AgentMetrics, GpuMetrics, ModelEntry

from ..core.address import Address
from ..core.agent import Source
from ..core.registry import AgentRegistry
from ..simulator import SimulatedModel, SimulatedOllama, Timing

REPORT_INTERVAL = 2.0
"""Seconds between two reports, shorter than a host's so that there is something to see."""

GPU_MEMORY = 16 * 1024**3
GPU_OWN = 300 * 1024**2
"""Bytes of a demo host's GPU, and those that its driver takes."""

LLAMA = SimulatedModel("llama3.2", size=2_019_393_189, family="llama")
QWEN = SimulatedModel("qwen3", size=5_225_388_164, family="qwen3")
EMBED = SimulatedModel("nomic-embed-text", size=274_302_450, family="nomic-bert", embedding=True)

HOSTS = (
    (
        Timing(load=0.5, prefill_rate=4000, decode_rate=80, output_tokens=60, num_parallel=4, max_loaded=3),
        (LLAMA, QWEN, EMBED),
    ),
    (
        Timing(load=1.0, prefill_rate=1500, decode_rate=40, output_tokens=60, num_parallel=2, max_loaded=2),
        (LLAMA, QWEN),
    ),
    (
        Timing(load=2.0, prefill_rate=500, decode_rate=20, output_tokens=60, num_parallel=1, max_loaded=1),
        (LLAMA, EMBED),
    ),
)
"""What the first, second, third demo host is like; the fourth is like the first, and so on."""


class Demo:
    """`count` hosts that report to `balancer`. `ready` is set when they are in the registry, or will not be."""

    def __init__(self, registry: AgentRegistry, count: int, balancer: str, token: str, ready: asyncio.Event) -> None:
        self.registry = registry
        self.balancer = balancer
        self.token = token
        self.ready = ready
        self.hosts = [
            SimulatedOllama(models=list(models), timing=timing, name=f"demo-{i + 1}", seed=i)
            for i in range(count)
            for timing, models in [HOSTS[i % len(HOSTS)]]
        ]

    async def run(self) -> None:
        """Serve until cancelled; then everything is stopped."""
        logging.getLogger(agent_reporter.__name__).setLevel(logging.WARNING)  # there is one log for all of them
        try:
            for host in self.hosts:
                await host.start()
                self.registry.register(host.name, Address.parse(host.url), Source.DEMO)
            async with asyncio.TaskGroup() as group:
                for host in self.hosts:
                    collect = collector(host)
                    agent = self.registry.get(host.name)
                    assert agent
                    # The first report goes straight in, so that the fleet is there before the first request. That it
                    # can be reached is known: it listens in this process.
                    self.registry.liveness.reached(agent)
                    self.registry.update_metrics(agent.id, await collect())
                    reporter = Reporter(
                        balancers=[self.balancer],
                        token=self.token,
                        name=host.name,
                        advertise=host.url,
                        interval=REPORT_INTERVAL,
                        collect=collect,
                    )
                    group.create_task(reporter.run())
                self.ready.set()
        finally:
            self.ready.set()
            for host in self.hosts:
                await host.stop()


def collector(host: SimulatedOllama) -> Callable[[], Awaitable[AgentMetrics]]:
    """What a host's collectors would report, made up to fit what the simulated host is doing."""
    rng = random.Random(host.name)  # noqa: S311 - a simulation's figures
    memory = rng.uniform(25, 45)

    async def collect() -> AgentMetrics:
        loaded = host.ps_entries()
        busy = host.load_cpu()
        gpu = GpuMetrics(
            name="Simulated GPU",
            utilization=busy,
            memory_used=GPU_OWN + sum(int(entry["size_vram"]) for entry in loaded),
            memory_total=GPU_MEMORY,
            temperature=round(35 + busy * 0.4 + rng.uniform(0, 2), 1),
            power=round(40 + busy * 2.6, 1),
        )
        return AgentMetrics(
            cpu_usage=round(min(100.0, max(0.0, busy + rng.uniform(0, 4))), 1),
            memory_usage=round(min(95.0, memory + 12 * len(loaded)), 1),
            active_requests=0,
            timestamp=datetime.now(UTC),
            models=[ModelEntry.model_validate(entry) for entry in host.tag_entries()],
            loaded_models=[ModelEntry.model_validate(entry) for entry in loaded],
            gpus=[gpu],
            ollama_version=host.version,
            num_parallel=host.timing.num_parallel,
            max_loaded_models=host.timing.max_loaded,
            ollama_ok=True,
        )

    return collect
