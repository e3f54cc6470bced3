"""The alert rules over what a real balancer tells: each alerts when its text is true, and else not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.e2e.harness import ROOT, Hosts, Proxy, free_port, running_proxy, wait_until
from tests.promql import Vector, evaluate, scraped, unreachable

RULES = ROOT / "addon" / "ollama_balancer" / "monitoring" / "alert-rules.yaml"

type Rules = dict[str, str]


@pytest.fixture(scope="module")
def rules() -> Rules:
    """The expressions by the names of the alerts."""
    read = YAML(typ="safe").load(RULES.read_text())
    return {rule["alert"]: rule["expr"] for group in read["groups"] for rule in group["rules"]}


def scrape(proxy: Proxy) -> Vector:
    return scraped(proxy.http.get("/metrics").text)


def raised(expression: str, now: Vector, before: Vector | None = None) -> set[str]:
    """The agents that an alert is raised for; "" for one that names none."""
    return {dict(labels).get("agent", "") for labels in evaluate(expression, now, before)}


def up(proxy: Proxy) -> dict[str, float]:
    """By agent."""
    found = evaluate("ollama_balancer_agent_up", scrape(proxy))
    return {dict(labels)["agent"]: value for labels, value in found.items()}


def test_the_rules_tell_how_to_be_fed() -> None:
    comment = re.findall(r"^#   (.*)$", RULES.read_text(), re.MULTILINE)
    example: dict[str, Any] = YAML(typ="safe").load("\n".join(comment))
    [scrape_of] = example["scrape_configs"]
    assert example["rule_files"] == [RULES.name]
    assert scrape_of["metrics_path"] == "/metrics"
    assert f'job="{scrape_of["job_name"]}"' in RULES.read_text(), "the rules ask for that job"


def test_a_balancer_that_is_dead_or_not_asked_raises_an_alert(tmp_path: Path, rules: Rules) -> None:
    with running_proxy(tmp_path) as proxy:
        alive = scrape(proxy)
    down = rules["OllamaBalancerDown"]
    assert raised(down, alive) == set()
    assert raised(down, unreachable()) == {""}
    assert raised(down, {}) == {""}
    assert raised(rules["OllamaNoAgent"], alive) == {""}, "a fleet without a host serves nobody"


def test_an_agent_is_up_only_while_it_gets_requests_and_a_drain_on_purpose_is_no_alert(
    tmp_path: Path, hosts: Hosts, rules: Rules
) -> None:
    one, two = hosts.start("one"), hosts.start("two")
    arguments = ("--set", f"balancer_agents=one={one.url},two={two.url}", "--set", "balancer_retries=0")
    down, none = rules["OllamaAgentDown"], rules["OllamaNoAgent"]
    with running_proxy(tmp_path, *arguments) as proxy:
        proxy.wait_online("one", "two")
        proxy.register("gone", f"http://127.0.0.1:{free_port()}")
        wait_until(lambda: up(proxy) == {"one": 1, "two": 1, "gone": 0}, "one that was never there is not up")
        assert raised(down, scrape(proxy)) == {"gone"}

        one.faults.status = 502
        for _ in range(3):
            proxy.generate(headers={"X-Balancer-Agent": "one"})
        assert proxy.agents()["one"]["status"] == "ejected"
        assert up(proxy) == {"one": 0, "two": 1, "gone": 0}
        assert raised(down, scrape(proxy)) == {"one", "gone"}
        assert raised(none, scrape(proxy)) == set()

        for name in ("two", "gone"):
            proxy.control("POST", f"/api/agents/{name}/drain")
        assert up(proxy)["two"] == 0
        assert raised(down, scrape(proxy)) == {"one"}, "who was drained is meant to be out, there or not"
        assert raised(none, scrape(proxy)) == {""}
        proxy.control("POST", "/api/agents/one/drain")
        assert raised(none, scrape(proxy)) == raised(down, scrape(proxy)) == set(), "all are meant to be out"


def test_what_callers_do_wrong_is_no_alert_and_what_fails_is_one(tmp_path: Path, hosts: Hosts, rules: Rules) -> None:
    one = hosts.start("one")
    fail = rules["OllamaRequestsFail"]
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={one.url}") as proxy:
        proxy.wait_online("one")

        def ask_wrongly() -> None:
            assert proxy.generate(model="a-typo").status_code == 404
            assert proxy.http.post("/api/chat", json={"model": "llama3.2", "messages": 5}).status_code == 400

        def ask_in_vain() -> None:
            assert proxy.generate(headers={"X-Balancer-Agent": "one"}).status_code >= 500

        one.faults.status = 503
        ask_in_vain()
        one.faults.status = None
        for _ in range(4):
            proxy.generate()
        ask_wrongly()
        before = scrape(proxy)
        for _ in range(10):
            ask_wrongly()
        assert raised(fail, scrape(proxy), before) == set()
        one.faults.status = 503
        ask_in_vain()
        assert raised(fail, scrape(proxy), before) == set(), "one of 21 is less than 5 %"
        ask_in_vain()
        assert raised(fail, scrape(proxy), before) == {""}


def test_a_host_that_reports_no_more_raises_an_alert_unless_it_was_drained(rules: Rules) -> None:
    def told(age: float, draining: int) -> Vector:
        return scraped(
            f'ollama_balancer_host_report_age_seconds{{agent="a"}} {age}\n'
            f'ollama_balancer_agent_draining{{agent="a"}} {draining}\n'
        )

    stale = rules["OllamaReportsStale"]
    assert raised(stale, told(119, 0)) == set()
    assert raised(stale, told(121, 0)) == {"a"}
    assert raised(stale, told(121, 1)) == set()
