"""What https costs on the proxy's own port: `python -m benches.tls [--rounds N]`.

One mitmdump with the balancer and one simulated host; plain http and https (HTTP/1.1, one connection each) take turns
in every round. CPU is that of mitmdump's process.
"""

from __future__ import annotations

import argparse
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import httpx
import psutil

from ollama_balancer.simulator.timing import Timing
from tests.e2e.harness import Hosts, running_proxy
from tests.e2e.test_tls import certificate

REQUESTS = 300
TOKENS = 20_000
CONNECTIONS = 50
FAST = Timing(load=0, prefill_rate=1e9, decode_rate=20_000, output_tokens=TOKENS, num_parallel=8)


def show(client: httpx.Client, url: str) -> int:
    """Requests with small answers."""
    for _ in range(REQUESTS):
        client.post(f"{url}/api/show", json={"model": "llama3.2"}).raise_for_status()
    return REQUESTS


def stream(client: httpx.Client, url: str) -> int:
    """One long streamed answer: its lines, which are mostly a chunk each."""
    body = {"model": "llama3.2", "prompt": "hi", "options": {"num_predict": TOKENS}}
    with client.stream("POST", f"{url}/api/generate", json=body) as answer:
        return sum(1 for _ in answer.iter_lines())


def new_connections(client: httpx.Client, url: str) -> int:
    """Requests that do not keep their connection."""
    for _ in range(CONNECTIONS):
        client.get(f"{url}/api/version", headers={"Connection": "close"}).raise_for_status()
    return CONNECTIONS


WORK: dict[str, Callable[[httpx.Client, str], int]] = {
    "a small request": show,
    "a chunk of a stream": stream,
    "a new connection with a small request": new_connections,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    hosts = Hosts()
    with tempfile.TemporaryDirectory() as folder:
        path = certificate(Path(folder))
        agent = hosts.start("a", "llama3.2", timing=FAST)
        options = ("--set", f"balancer_agents=a={agent.url}", "--set", f"certs=*={path}")
        with running_proxy(Path(folder), *options, by_script=True) as proxy:
            proxy.wait_online("a")
            process = psutil.Process(proxy.process.pid)
            urls = {"http": proxy.url, "https": proxy.url.replace("http://127.0.0.1", "https://localhost")}
            trust = ssl.create_default_context(cafile=path)
            clients = {scheme: httpx.Client(verify=trust, timeout=60) for scheme in urls}
            seconds: dict[tuple[str, str], list[float]] = {}
            for number in range(rounds + 1):
                for what, work in WORK.items():
                    for scheme, url in urls.items():
                        before, began = sum(process.cpu_times()[:2]), time.perf_counter()
                        count = work(clients[scheme], url)
                        took = time.perf_counter() - began
                        if number:  # the first round loads modules
                            cpu = sum(process.cpu_times()[:2]) - before
                            seconds.setdefault((what, scheme), []).append(cpu / count)
                            seconds.setdefault((what, f"{scheme} took"), []).append(took / count)
            print("| microseconds | http | https |\n|---|---|---|")
            for what in WORK:
                for kind, suffix in ((f"{what}: CPU of mitmdump", ""), (f"{what}: time", " took")):
                    cells = [_cell(seconds[what, f"{scheme}{suffix}"]) for scheme in urls]
                    print(f"| {kind} | {' | '.join(cells)} |")
    hosts.stop()


def _cell(values: list[float]) -> str:
    low, middle, high = (1e6 * value for value in (min(values), median(values), max(values)))
    return f"{middle:,.0f} ({low:,.0f}–{high:,.0f})"


if __name__ == "__main__":
    main()
