"""Counts of requests in flight stay exact, and nothing is left behind, whatever happens to hundreds of requests."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from pathlib import Path

import httpx
import psutil

from ollama_balancer.simulator import SimulatedOllama, Timing
from tests.e2e.harness import Hosts, Proxy, running_proxy, wait_until

REQUESTS = 400
AT_ONCE = 60

TIMING = Timing(load=0.01, prefill_rate=1e6, decode_rate=400, output_tokens=20, num_parallel=64, max_loaded=4)


async def storm(proxy: Proxy, hosts: Hosts, rng: random.Random) -> Counter[str]:
    """Many clients at once: most read their answer, some leave at any moment; hosts die, come back and misbehave.

    The last host stays as it is: whatever becomes of the others, somebody can answer.
    """
    unreliable = hosts.all[:-1]
    outcomes: Counter[str] = Counter()
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        patience = rng.choice([None, None, None, rng.uniform(0, 0.15)])
        stream = rng.random() < 0.7
        body = {"model": rng.choice(["llama3.2", "qwen3"]), "prompt": "x" * rng.randrange(200), "stream": stream}
        async with places:
            try:
                async with (
                    asyncio.timeout(patience),
                    httpx.AsyncClient(trust_env=False, verify=False, timeout=60) as client,
                ):
                    response = await client.post(proxy.url + "/api/generate", json=body)
                    outcome = str(response.status_code)
            except TimeoutError:
                outcome = "left"
            except httpx.HTTPError as e:
                outcome = type(e).__name__
            outcomes[outcome] += 1
        if number % 40 == 10:
            await asyncio.to_thread(misbehave, hosts, unreliable[number // 40 % len(unreliable)], rng)

    await asyncio.gather(*(one(number) for number in range(REQUESTS)))
    return outcomes


def misbehave(hosts: Hosts, host: SimulatedOllama, rng: random.Random) -> None:
    """Switch a host to another way of failing, or back."""
    for name in ("reset_before_head", "close_before_head"):
        setattr(host.faults, name, False)
    host.faults.status = host.faults.cut_after_chunks = None
    match rng.randrange(5):
        case 0:
            hosts.kill(host)
            hosts.restart(host)
        case 1:
            host.faults.reset_before_head = True
        case 2:
            host.faults.close_before_head = True
        case 3:
            host.faults.status = 503
        case _:
            host.faults.cut_after_chunks = rng.randrange(5)


CLIENT_TASKS = ("Task", "client connection handler", "timeout watchdog")
"""What mitmproxy runs for each client that is connected; the first is asyncio's name for those without one."""


def without_clients(tasks: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in tasks.items() if name not in CLIENT_TASKS}


def own_connections(proxy: Proxy) -> int:
    """How many connections to the proxy this process has open."""
    connections = psutil.Process().net_connections("tcp")
    return sum(c.status == "ESTABLISHED" and bool(c.raddr) and c.raddr.port == proxy.port for c in connections)


def test_after_a_storm_of_requests_aborts_and_deaths_every_count_is_zero(tmp_path: Path, hosts: Hosts) -> None:
    for name in ("a", "b", "c", "d"):
        hosts.start(name, "llama3.2", "qwen3", timing=TIMING)
    agents = ",".join(f"{host.name}={host.url}" for host in hosts.all)
    quiet = ("--set", "flow_detail=0", "--set", "termlog_verbosity=warn")
    with running_proxy(tmp_path, "--set", f"balancer_agents={agents}", *quiet) as proxy:
        proxy.wait_online("a", "b", "c", "d")
        before = proxy.introspect()["tasks"]
        outcomes = asyncio.run(storm(proxy, hosts, random.Random(7)))
        assert sum(outcomes.values()) == REQUESTS
        assert outcomes["200"] > REQUESTS / 2, outcomes
        assert outcomes["left"] > 10, outcomes

        def settled() -> bool:
            # A cancelled asyncio client may keep a socket until it is collected: the proxy is to hold ours, no more.
            gc.collect()
            state = proxy.introspect()
            return bool(state["contexts"] == state["servers"] == 0 and state["clients"] == own_connections(proxy))

        wait_until(settled, "all connections and requests are over")
        after = proxy.introspect()
        assert set(after["in_flight"].values()) == {0}, after
        assert after["timers"] == after["kept_contexts"] == after["receivers"] == 0
        wait_until(lambda: sum(host.in_flight for host in hosts.all) == 0, "no host works for nobody")
        # The proxy's tasks are those it had before, give or take a round of probes.
        wait_until(lambda: without_clients(proxy.introspect()["tasks"]) == without_clients(before), "no task is left")
        for agent in proxy.agents().values():
            stats = agent["stats"]
            assert stats["requests"] == sum(stats[name] for name in ("succeeded", "failed", "cancelled", "rejected"))
        assert "crashed" not in proxy.log, proxy.log[-3000:]
        assert "Addon error" not in proxy.log, proxy.log[-3000:]
        assert "Traceback" not in proxy.log, proxy.log[-3000:]
