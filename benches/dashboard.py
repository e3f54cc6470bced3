"""What the dashboard costs with 1,000 agents: `python -m benches.dashboard`.

A real mitmdump to which the agents have reported, each with two GPUs and eight models, and whose curves are full. First
GET /dashboard/data is asked for again and again, then the page is open in a headless Chromium. Nothing else goes on,
but that before each refresh the agents that are shown report anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from benches.proxy import ADDON, HERE, Side, cpu_seconds, machine, spread, start_mitmdump
from tests.e2e.browser import CHROMIUM, chromium
from tests.e2e.harness import Hosts, free_port

MODELS = (
    "llama3.2:latest",
    "llama3.3:70b-instruct-q4_K_M",
    "qwen3:latest",
    "qwen2.5-coder:32b",
    "gemma3:27b",
    "deepseek-r1:32b",
    "mistral-small:24b",
    "nomic-embed-text:latest",
)
GPU = "NVIDIA GeForce RTX 4090"
GPU_MEMORY = 24 * 1024**3

QUERIES = {
    "by name": "",
    "by name, page 20": "page=20",
    "by state": "sort=status",
    "by CPU": "sort=cpu",
    "by memory": "sort=memory",
    "by GPU": "sort=gpu",
    "by in flight": "sort=in_flight",
    "found by name: 10": "filter=host-007",
    "found by model: all, by CPU": "filter=nomic-embed&sort=cpu",
    "found: none": "filter=there-is-none",
    "100 rows, by CPU": "size=100&sort=cpu",
    "by name, without curves, as dense rows need": "curves=no",
}

WATCH = """
const measure = performance.measure.bind(performance);
window.refreshes = [];
performance.measure = (name, options) => {
  const made = measure(name, options);
  const work = made.duration;
  document.body.getBoundingClientRect();  // has the browser lay the page out now
  window.refreshes.push([work, performance.now() - options.start]);
  window.refreshed?.();
  return made;
};
"""
"""The page says when it began with an answer; what it has done since is seen right after."""


def report(chance: random.Random) -> dict[str, Any]:
    """What a host with two GPUs might say, as a reporter's collectors find it."""
    entries = [
        {
            "name": name,
            "model": name,
            "modified_at": "2026-01-31T12:00:00.123456789Z",
            "size": 19_851_337_809,
            "digest": "0123456789abcdef" * 4,
            "details": {"format": "gguf", "family": "llama", "parameter_size": "32.8B", "quantization_level": "Q4_K_M"},
        }
        for name in MODELS
    ]
    return {
        "cpu_usage": round(chance.uniform(1, 99), 1),
        "memory_usage": round(chance.uniform(20, 95), 1),
        "active_requests": 0,
        "timestamp": datetime.now(UTC).isoformat(),
        "models": entries,
        "loaded_models": chance.sample(entries, chance.randrange(1, 4)),
        "gpus": [
            {
                "name": GPU,
                "utilization": float(chance.randrange(100)),
                "memory_used": chance.randrange(GPU_MEMORY),
                "memory_total": GPU_MEMORY,
                "temperature": 61.0,
                "power": 287.4,
            }
            for _ in range(2)
        ],
        "ollama_version": "0.33.0",
        "num_parallel": 4,
        "max_loaded_models": 3,
        "ollama_ok": True,
    }


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A host that answers to probes, and to a generate with one line."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, found, length = head.partition(b"content-length:")
            if found:
                await reader.readexactly(int(length.split(b"\r\n")[0]))
            kind = b"application/json"
            if b"/api/version" in head:
                body = b'{"version":"0.33.0"}'
            elif b"/api/generate" in head:
                kind = b"application/x-ndjson"
                body = b'{"model":"m","response":"hi","done":true,"eval_count":30,"eval_duration":500000000}\n'
            else:
                body = json.dumps({"models": [{"name": name} for name in MODELS]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)))
            writer.write(body)
    writer.close()


def address(number: int) -> str:
    """Of that host: a socket of its own, or all would be one host."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


class Fleet:
    """Agents of one server that listens at many addresses of this machine, one for each: 127.0.0.0/8 has many."""

    def __init__(self, port: int, token: str, host_port: int, count: int) -> None:
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        self._token = {"Authorization": f"Bearer {token}"}
        self._chance = random.Random(5)
        self.names = [f"host-{number:04}" for number in range(count)]
        for number, name in enumerate(self.names):
            self._post("/api/agents", {"name": name, "url": f"http://{address(number)}:{host_port}"})
            self.report(name)
        for number in range(60):
            model = MODELS[number % len(MODELS)]
            self.http.post("/api/generate", json={"model": model, "prompt": "hi"}).raise_for_status()

    def report(self, name: str) -> None:
        self._post(f"/api/agents/{name}/metrics", report(self._chance))

    def _post(self, path: str, body: dict[str, Any]) -> None:
        self.http.post(path, json=body, headers=self._token).raise_for_status()


@contextmanager
def running(count: int) -> Iterator[tuple[Side, Fleet]]:
    hosts, token = Hosts(), secrets.token_urlsafe(24)
    host_port = free_port()
    server = hosts.run(asyncio.start_server(serve, [address(number) for number in range(count)], host_port))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-dashboard-")))
        arguments = ("-s", str(ADDON), "-s", str(HERE / "filled_curves.py"), "--set", "balancer_stale_after=86400")
        side = start_mitmdump(stack, folder, "balancer", *arguments, token=token, asked="/api/balancer")
        fleet = Fleet(side.port, token, host_port, count)
        time.sleep(16)  # until the curves have begun and the last probe is over
        data = fleet.http.get("/dashboard/data").json()
        assert data["found"] == count, data["found"]
        assert all(len(agent["curve"]["in_flight"]) >= 60 - 1 for agent in data["agents"])
        assert len(data["decisions"]) == 50
        yield side, fleet
    hosts.loop.call_soon_threadsafe(server.close)
    hosts.stop()


def answers(side: Side, fleet: Fleet, rounds: int, requests: int) -> list[list[str]]:
    """CPU and latency of GET /dashboard/data, for each way to ask; the ways take turns."""
    cpu: dict[str, list[float]] = {name: [] for name in QUERIES}
    took: dict[str, list[float]] = {name: [] for name in QUERIES}
    rows = []
    for _ in range(rounds):
        for name, query in QUERIES.items():
            before = cpu_seconds(side)
            for _ in range(requests):
                start = time.perf_counter()
                fleet.http.get(f"/dashboard/data?{query}").raise_for_status()
                took[name].append((time.perf_counter() - start) * 1e3)
            cpu[name].append((cpu_seconds(side) - before) / requests * 1e3)
    for name, query in QUERIES.items():
        sizes = []
        for coding in ("identity", "gzip"):
            answer = fleet.http.get(f"/dashboard/data?{query}", headers={"Accept-Encoding": coding})
            sizes.append(f"{int(answer.headers['content-length']) / 1e3:.1f}")
        rows.append([name, spread(cpu[name], 1), *percentiles(took[name]), *sizes])
    return rows


def percentiles(values: list[float]) -> list[str]:
    return [f"{median(values):.1f}", f"{quantiles(values, n=20, method='inclusive')[18]:.1f}", f"{max(values):.1f}"]


def in_browser(side: Side, fleet: Fleet, refreshes: int, folder: Path, look: str) -> list[list[str]]:
    """What the page does with an answer: the median, the 95th percentile and the longest, in milliseconds.

    `look` is "dense" or "full", the kind of rows.
    """
    rows = []
    with chromium(folder, 1400, 900) as browser:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        browser.execute_cdp_cmd("Performance.enable", {})

        def metrics() -> dict[str, float]:
            return {m["name"]: m["value"] for m in browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]}

        def next_refresh(act: str = "") -> tuple[float, float, float]:
            """Work, work and layout, and all that the page's thread did, from before `act` until it is idle again."""
            before = metrics()["TaskDuration"]
            browser.execute_async_script(f"window.refreshed = arguments[0]; {act}")
            time.sleep(0.2)
            work, laid_out = browser.execute_script("return window.refreshes.at(-1)")
            return work, laid_out, (metrics()["TaskDuration"] - before) * 1e3

        def looking() -> float:
            """What the looking itself costs the page's thread."""
            before = metrics()["TaskDuration"]
            browser.execute_async_script("arguments[0]()")
            time.sleep(0.2)
            browser.execute_script("return window.refreshes.at(-1)")
            return (metrics()["TaskDuration"] - before) * 1e3

        def report_anew() -> None:
            for name in fleet.names[:50]:
                fleet.report(name)

        browser.get(f"http://127.0.0.1:{side.port}/dashboard?rows={look}")
        while not browser.execute_script("return window.refreshes.length"):
            time.sleep(0.05)
        kinds: dict[str, list[tuple[float, float, float]]] = {
            f"a refresh, {look} rows": [],
            f"another page of agents, {look} rows": [],
        }
        of_refresh, of_page = kinds.values()
        alone = []
        for _ in range(refreshes):
            report_anew()
            of_refresh.append(next_refresh())
            alone.append(looking())
        for number in range(refreshes):
            button = "previous" if number % 2 else "next"
            of_page.append(next_refresh(f"document.getElementById('{button}').click()"))
        assert len(browser.execute_script("return [...document.querySelectorAll('#agents > tr')]")) == 50
        for kind, figures in kinds.items():
            for at, part in enumerate(("parse, DOM", "parse, DOM, style, layout", "the page's thread in all")):
                rows.append([kind, part, *percentiles([each[at] for each in figures])])
        rows.append(["no refresh: what looking costs", "the page's thread in all", *percentiles(alone)])
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.dashboard", description=__doc__)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5, help="of requests over all ways to ask")
    parser.add_argument("--requests", type=int, default=50, help="in a round, of each way")
    parser.add_argument("--refreshes", type=int, default=40, help="of the page, and as many turns of it")
    chosen = parser.parse_args()
    with running(chosen.agents) as (side, fleet):
        idle = cpu_seconds(side)
        time.sleep(5)
        idle = (cpu_seconds(side) - idle) / 5 * 100
        asked = answers(side, fleet, chosen.rounds, chosen.requests)
        shown = []
        for look in ("full", "dense"):
            with tempfile.TemporaryDirectory(prefix="bench-dashboard-") as folder:
                shown += in_browser(side, fleet, chosen.refreshes, Path(folder), look)
    browser = subprocess.run([str(CHROMIUM), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{machine()}, {browser}")
    print(f"`python -m benches.dashboard`: {chosen.agents:,} agents, of which a page shows 50\n")
    print(f"GET /dashboard/data, {chosen.rounds} rounds of {chosen.requests} requests one after the other; ", end="")
    print(f"idle, mitmdump took {idle:.1f} % of a core:\n")
    head = ["asked for", "CPU, ms (lowest–highest round)", "latency p50, ms", "p95", "max", "kB", "kB gzipped"]
    print(table(head, asked), end="\n\n")
    print(f"The page in Chromium, {chosen.refreshes} of each:\n")
    print(table(["what", "time of", "p50, ms", "p95", "max"], shown))


if __name__ == "__main__":
    main()
