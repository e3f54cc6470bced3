"""How the memory of mitmweb goes over many requests: `python -m benches.soak`.

Starts a real mitmweb with the balancer and one simulated host, sends it streamed answers of about 50 kB, some at a
time, and prints the resident memory of the mitmweb process as it goes on. The list keeps `balancer_keep_flows`; its
memory grows until that many are there, and should be flat from then on.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from ollama_balancer.simulator import Timing
from tests.e2e.harness import Hosts
from tests.e2e.web import running_mitmweb

AT_ONCE = 8
ANSWER_TOKENS = 500
HOST = Timing(load=0, prefill_rate=1e9, decode_rate=1e9, output_tokens=ANSWER_TOKENS, num_parallel=AT_ONCE)


async def send(url: str, count: int) -> list[int]:
    """So many requests, some at a time; the sizes of their answers."""
    sizes: list[int] = []
    todo = iter(range(count))

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
            for number in todo:
                body = {"model": "llama3.2", "prompt": f"soak {number}", "options": {"num_predict": ANSWER_TOKENS}}
                response = await http.post("/api/generate", json=body)
                assert response.status_code == 200, response.text
                sizes.append(len(response.content))

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description="The memory of mitmweb with the balancer over many requests.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--keep", type=int, default=1_000, help="balancer_keep_flows")
    arguments = parser.parse_args()
    step = max(1, arguments.requests // 10)
    hosts = Hosts()
    try:
        host = hosts.start("one", timing=HOST)
        with tempfile.TemporaryDirectory() as folder:
            options = ("--set", f"balancer_agents=one={host.url}", "--set", f"balancer_keep_flows={arguments.keep}")
            with running_mitmweb(Path(folder), *options, "--set", "termlog_verbosity=warn") as (proxy, web):
                proxy.wait_online("one")
                process = psutil.Process(proxy.process.pid)
                print(f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}")
                print(f"{arguments.requests} requests, {AT_ONCE} at a time, balancer_keep_flows={arguments.keep}")
                print(f"{'requests':>9} {'memory MB':>10} {'flows':>6} {'requests/s':>11} {'answer kB':>10}")
                print(f"{0:9} {process.memory_info().rss / 1e6:10.1f} {0:6}")
                for done in range(step, arguments.requests + 1, step):
                    started = time.perf_counter()
                    sizes = asyncio.run(send(proxy.url, step))
                    pace = step / (time.perf_counter() - started)
                    memory, flows = process.memory_info().rss / 1e6, len(web.flows())
                    size = statistics.median(sizes) / 1e3
                    print(f"{done:9} {memory:10.1f} {flows:6} {pace:11.0f} {size:10.1f}", flush=True)
    finally:
        hosts.stop()


if __name__ == "__main__":
    main()
