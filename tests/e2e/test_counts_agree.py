"""What became of requests, as each view of the balancer tells it: all of them tell the same."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ollama_balancer.simulator import SimulatedOllama, Timing
from tests.e2e.harness import PATIENCE, Hosts, Proxy, environment, running_proxy, wait_until

OUTCOMES = ("succeeded", "failed", "cancelled", "rejected", "refused")
ENDLESS = Timing(load=0, prefill_rate=1e6, decode_rate=50, output_tokens=1_000_000)
CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}]}


def samples(proxy: Proxy, name: str) -> list[tuple[dict[str, str], float]]:
    text = proxy.http.get("/metrics").text
    families = text_string_to_metric_families(text)
    return [
        (sample.labels, sample.value)
        for family in families
        for sample in family.samples
        if sample.name == f"ollama_balancer_{name}"
    ]


def by_api(proxy: Proxy) -> dict[str, int]:
    totals: dict[str, int] = proxy.http.get("/api/balancer").json()["totals"]
    return totals


def by_metrics(proxy: Proxy) -> dict[str, int]:
    ended: Counter[str] = Counter()
    for labels, value in samples(proxy, "requests_total"):
        ended[labels["outcome"]] += int(value)
    [(_, in_flight)] = samples(proxy, "requests_in_flight")
    return with_sum(ended, int(in_flight))


def by_history(proxy: Proxy) -> dict[str, int]:
    minutes = proxy.http.get("/api/history", params={"minutes": 60}).json()["minutes"]
    rows = [row for minute in minutes for row in minute["rows"]]
    ended = Counter({outcome: sum(row[outcome] for row in rows) for outcome in OUTCOMES})
    assert sum(row["requests"] for row in rows) == sum(ended.values())
    return with_sum(ended, by_api(proxy)["in_flight"])


def by_dashboard(proxy: Proxy) -> dict[str, int]:
    data = proxy.http.get("/dashboard/data").json()
    totals: dict[str, int] = data["totals"]
    assert data["in_flight"] == totals["in_flight"]
    return totals


def by_top(proxy: Proxy) -> dict[str, int]:
    program = [sys.executable, "-m", "ollama_balancer.cli.top", "--once", "--balancer", proxy.url]
    shown = subprocess.run(program, env=environment(), capture_output=True, text=True, check=True, timeout=PATIENCE)
    line = next(line for line in shown.stdout.splitlines() if "since start" in line)
    requests, _, rest = line.partition(" requests since start")
    counts = Counter({name.replace(" ", "_"): int(count) for count, name in re.findall(r"(\d+) ([a-z ]+)", rest)})
    return {"requests": int(requests), **{name: counts[name] for name in (*OUTCOMES, "in_flight")}}


def with_sum(ended: Counter[str], in_flight: int) -> dict[str, int]:
    counts = {outcome: ended[outcome] for outcome in OUTCOMES}
    return {"requests": sum(counts.values()) + in_flight, **counts, "in_flight": in_flight}


def all_agree(proxy: Proxy) -> dict[str, int]:
    told = by_api(proxy)
    for view in (by_metrics, by_history, by_dashboard, by_top):
        assert view(proxy) == told, view.__name__
    assert sum(value for _, value in samples(proxy, "rejections_total")) == told["rejected"]
    return told


def agents_add_up(proxy: Proxy) -> None:
    for agent in proxy.agents().values():
        stats = agent["stats"]
        ended = ("succeeded", "failed", "cancelled", "rejected")
        assert stats["requests"] == sum(stats[name] for name in ended) + agent["in_flight"], agent["name"]


class Leaver(threading.Thread):
    """A client that sends a request and leaves when it is told to."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(daemon=True)
        self.client = httpx.Client(base_url=proxy.url, trust_env=False, timeout=PATIENCE)
        self.start()

    def run(self) -> None:
        with suppress(httpx.TransportError, RuntimeError, OSError):
            self.client.post("/api/chat", json=CHAT)

    def leave(self) -> None:
        for connection in self.client._transport._pool.connections:  # type: ignore[attr-defined]
            stream = connection._connection._network_stream
            stream.get_extra_info("socket").shutdown(2)
        self.join(PATIENCE)
        assert not self.is_alive()
        self.client.close()


def waiting(proxy: Proxy) -> int:
    value: int = proxy.http.get("/api/balancer").json()["waiting"]
    return value


def cancel_in_the_queue(proxy: Proxy, host: SimulatedOllama, count: int) -> None:
    """One host with one slot, which is taken; then that one leaves as well."""
    host.faults.hang = True
    first = Leaver(proxy)
    wait_until(lambda: host.in_flight == 1, "the host has the first")
    others = [Leaver(proxy) for _ in range(count)]
    wait_until(lambda: waiting(proxy) == count, "the others wait")
    told = all_agree(proxy)
    assert told["in_flight"] == 1, "who waits is not in flight"
    for other in others:
        other.leave()
    wait_until(lambda: waiting(proxy) == 0, "nobody waits")
    first.leave()
    wait_until(lambda: host.in_flight == 0, "the host has nothing")
    host.faults.hang = False


def leave_in_the_middle(proxy: Proxy) -> None:
    body = {"model": "endless", "prompt": "x"}
    with proxy.http.stream("POST", "/api/generate", json=body) as response:
        next(response.iter_lines())


def test_all_views_agree_after_all_that_can_become_of_a_request(tmp_path: Path, hosts: Hosts) -> None:
    one = hosts.start("one")
    slow = hosts.start("slow", "endless", timing=ENDLESS)
    arguments = ("--set", f"balancer_agents=one={one.url}", "--set", "balancer_slots=1")
    with running_proxy(tmp_path, *arguments) as proxy, ExitStack() as stack:
        proxy.wait_online("one")
        expected: Counter[str] = Counter()

        def did(outcome: str, count: int = 1) -> None:
            expected[outcome] += count
            wait_until(lambda: by_api(proxy)[outcome] == expected[outcome], f"{expected[outcome]} {outcome}")

        for _ in range(4):
            proxy.generate()
        did("succeeded", 4)
        for _ in range(2):  # streamed
            assert proxy.http.post("/api/chat", json=CHAT).status_code == 200
        did("succeeded", 2)
        assert proxy.http.post("/api/chat", json=CHAT | {"messages": 5}).status_code == 400
        assert proxy.generate(model="no-such-model").status_code == 404
        assert proxy.http.get("/no/such/path").status_code == 404
        assert proxy.generate(headers={"X-Balancer-Agent": "nobody"}).status_code == 404
        assert proxy.http.request("DELETE", "/api/delete", json={"model": "no-such-model"}).status_code == 404
        assert proxy.generate(headers={"Origin": "http://elsewhere.example"}).status_code == 403
        did("rejected", 6)
        for path in ("/api/tags", "/v1/models", "/api/ps", "/api/version", "/"):
            assert proxy.http.get(path).status_code == 200
        did("succeeded", 5)

        cancel_in_the_queue(proxy, one, 3)
        did("cancelled", 4)

        proxy.register("slow", slow.url)
        proxy.wait_online("slow")
        leave_in_the_middle(proxy)
        did("cancelled")

        two = hosts.start("two")
        proxy.register("two", two.url)
        proxy.wait_online("two")
        one.faults.status = 503
        answers = [proxy.generate() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert max(answer.headers["X-Balancer-Attempts"] for answer in answers) == "2"
        did("succeeded", 3)
        assert proxy.generate(headers={"X-Balancer-Agent": "one"}).status_code >= 500
        did("failed")
        one.faults.status = None

        told = all_agree(proxy)
        agents_add_up(proxy)
        failed = {labels["agent"]: value for labels, value in samples(proxy, "upstream_attempt_failures_total")}
        by_agent = samples(proxy, "requests_total")
        ended = {labels["agent"]: value for labels, value in by_agent if labels["outcome"] == "failed"}
        stats = proxy.agents()["one"]["stats"]
        assert stats["failed"] == failed["one"] + ended.get("one", 0)
        assert stats["rejected"] == 2

        # What it has counted stays, what runs there is in flight until it ends, and a new host of that name adds to it.
        running = stack.enter_context(
            proxy.http.stream("POST", "/api/generate", json={"model": "endless", "prompt": "x"})
        )
        lines = running.iter_lines()
        next(lines)
        for name in ("one", "slow"):
            proxy.control("DELETE", f"/api/agents/{name}")
        assert all_agree(proxy) == told | {"requests": told["requests"] + 1, "in_flight": 1}
        running.close()
        did("cancelled")
        assert proxy.generate(model="endless").status_code == 404
        did("rejected")
        proxy.control("POST", "/api/agents/two/drain")
        assert proxy.generate().status_code == 503
        did("refused")
        told = all_agree(proxy)
        assert told == with_sum(expected, 0)

        rows = proxy.http.get("/dashboard/data").json()["decisions"]
        assert all(row["agent"] or row["outcome"] != "succeeded" for row in rows), "a listing is no row"
        assert {row["status"] for row in rows if row["outcome"] == "rejected"} == {400, 404}
        assert len(rows) == sum(expected.values()) - 5 - 1, "nor is what another page was not let do"
