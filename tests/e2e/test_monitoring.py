"""GET /metrics of a real balancer, and the dashboard and the rules that come with it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from ollama_balancer.simulator import Timing
from tests.e2e.harness import ROOT, Hosts, Proxy, running_proxy, wait_until

MONITORING = ROOT / "addon" / "ollama_balancer" / "monitoring"
ENDLESS = Timing(load=0, prefill_rate=1e6, decode_rate=50, output_tokens=1_000_000)

type Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(proxy: Proxy) -> Series:
    text = proxy.http.get("/metrics").text
    return {
        (sample.name.removeprefix("ollama_balancer_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def requests(series: Series) -> dict[tuple[str, str, str, str], float]:
    told = {}
    for (name, labels), value in series.items():
        if name == "requests_total":
            each = dict(labels)
            told[each["agent"], each["model"], each["route"], each["outcome"]] = value
    return told


def take_in_one_that_breaks_off(proxy: Proxy, hosts: Hosts) -> None:
    """A host that answers probes, and no prompt."""
    dead = hosts.start("dead")
    dead.faults.reset_before_head = True
    proxy.register("dead", dead.url)
    proxy.wait_online("dead")


def test_the_counts_are_those_of_the_traffic_and_no_client_can_make_up_labels(tmp_path: Path, hosts: Hosts) -> None:
    one, slow = hosts.start("one"), hosts.start("slow", "endless", timing=ENDLESS)
    arguments = ("--set", f"balancer_agents=one={one.url},slow={slow.url}", "--set", "balancer_mode=roundrobin")
    with running_proxy(tmp_path, *arguments) as proxy:
        proxy.wait_online("one", "slow")
        for encoding, compressed in (("gzip", True), ("identity", False)):
            answer = proxy.http.get("/metrics", headers={"Accept-Encoding": encoding})
            assert answer.headers["content-type"].startswith("text/plain")
            assert (answer.headers.get("content-encoding") == "gzip") is compressed or len(answer.content) < 8192
        for _ in range(3):
            proxy.generate()
        take_in_one_that_breaks_off(proxy, hosts)
        wait_until(lambda: proxy.generate().headers["X-Balancer-Attempts"] == "2", "one that is tried again")
        endless = {"model": "endless", "messages": [{"role": "user", "content": "x"}]}
        with proxy.http.stream("POST", "/api/chat", json=endless) as response:
            lines = response.iter_lines()
            next(lines)
        wait_until(lambda: slow.in_flight == 0, "the client is gone")
        for number in range(20):
            proxy.generate(model=f"made-up-{number}")
            proxy.http.get(f"/made/up/{number}")
        series = scrape(proxy)
        told = requests(series)
        served = told.pop(("one", "llama3.2:latest", "/api/generate", "succeeded"))
        assert served >= 4
        assert told == {
            ("slow", "endless:latest", "/api/chat", "cancelled"): 1,
            ("", "other", "/api/generate", "rejected"): 20,
            ("", "", "other", "rejected"): 20,
        }
        assert series["upstream_attempt_failures_total", frozenset({("agent", "dead"), ("reason", "broken")})] == 1
        assert series["cancels_total", frozenset({("reason", "client")})] == 1
        assert series["proxy_processing_seconds_total", frozenset()] > 0
        assert series["agents", frozenset({("state", "online")})] == 3

        proxy.control("DELETE", "/api/agents/dead")
        gone = {name: value for (name, labels), value in scrape(proxy).items() if ("agent", "dead") in labels}
        assert gone == {"upstream_attempt_failures_total": 1}, "of a host that is gone only what it has counted is left"
        assert proxy.http.post("/metrics").status_code == 405


def test_the_dashboard_and_the_rules_ask_for_what_there_is(tmp_path: Path, hosts: Hosts) -> None:
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    rules = YAML(typ="safe").load((MONITORING / "alert-rules.yaml").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    with running_proxy(tmp_path, "--set", "balancer_demo=3") as proxy:
        proxy.wait_online("demo-1", "demo-2", "demo-3")
        proxy.report("demo-1", gpus=[{"name": "RTX", "memory_used": 1, "memory_total": 2}])
        proxy.http.post("/api/generate", json={"model": "llama3.2", "prompt": "hi"})
        take_in_one_that_breaks_off(proxy, hosts)
        assert proxy.generate(headers={"X-Balancer-Agent": "dead"}).status_code == 502
        text = proxy.http.get("/metrics").text
    known = set(re.findall(r"^(ollama_balancer_\w+?)(?:\{| )", text, re.MULTILINE))
    known |= set(re.findall(r"^# TYPE (\w+) counter", text, re.MULTILINE))
    asked = {name for expression in expressions for name in re.findall(r"ollama_balancer_\w+", expression)}
    assert asked <= known, asked - known
    labels = set(re.findall(r'[{,](\w+)="', text))
    by = {
        name
        for expression in expressions
        for names in re.findall(r"by \(([\w, ]+)\)", expression)
        for name in re.split(r",\s*", names)
    }
    assert by <= labels


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_takes_the_rules() -> None:
    rules = MONITORING / "alert-rules.yaml"
    checked = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_history_outlives_a_restart(tmp_path: Path, hosts: Hosts) -> None:
    one = hosts.start("one")
    arguments = ("--set", f"balancer_agents=one={one.url}")

    def told(proxy: Proxy) -> tuple[float, float]:
        minutes = proxy.http.get("/api/history", params={"minutes": 5}).json()["minutes"]
        rows = [row for minute in minutes for row in minute["rows"]]
        assert {(row["agent"], row["model"]) for row in rows} <= {("one", "llama3.2:latest")}
        return sum(row["requests"] for row in rows), sum(row["output_tokens"] for row in rows)

    with running_proxy(tmp_path, *arguments) as proxy:
        proxy.wait_online("one")
        for _ in range(3):
            proxy.generate()
        requests, tokens = told(proxy)
        assert requests == 3
        assert tokens > 0
    with running_proxy(tmp_path, *arguments) as proxy:
        proxy.wait_online("one")
        wait_until(lambda: told(proxy) == (3, tokens), "the history is known again")
        proxy.generate()
        assert told(proxy)[0] == 4
    with running_proxy(tmp_path, *arguments) as proxy:
        wait_until(lambda: told(proxy)[0] == 4, "nothing is counted twice")
