"""What belongs to mitmproxy works with the balancer: mitmweb, live options, reload, replay, intercept."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import httpx
from mitmproxy import http
from mitmproxy.io import FlowReader

from ollama_balancer.simulator import Timing
from tests.e2e.harness import PATIENCE, ROOT, Hosts, running_proxy, wait_until
from tests.e2e.web import running_mitmweb


def test_mitmweb_shows_the_streamed_answer_and_why_and_takes_a_new_mode_live(tmp_path: Path, hosts: Hosts) -> None:
    agents = ",".join(f"{name}={hosts.start(name).url}" for name in ("one", "two"))
    with running_mitmweb(tmp_path, "--set", f"balancer_agents={agents}", by_script=True) as (proxy, web):
        proxy.wait_online("one", "two")
        answer = proxy.http.post("/api/generate", json={"model": "llama3.2", "prompt": "hi"})
        [flow] = web.flows("/api/generate")
        told = r"→ (one|two) · llama3\.2 · “hi” · 127\.0\.0\.1 · \d+ tok/s · TTFT \d+ ms · adaptive: .*"
        assert re.fullmatch(told, flow["comment"])
        assert flow["marked"] == ""
        assert web.content(flow["id"]) == answer.content

        changed = web.http.put("/options", json={"balancer_mode": "roundrobin"})
        assert changed.status_code == 200, changed.text
        wait_until(lambda: proxy.http.get("/api/balancer").json()["mode"] == "roundrobin", "the mode is changed")
        refused = web.http.put("/options", json={"balancer_mode": "fastest"})
        assert refused.status_code == 400
        assert "it takes one of roundrobin, metrics, least_requests" in refused.text
        assert proxy.http.get("/api/balancer").json()["mode"] == "roundrobin"
        assert proxy.generate().status_code == 200


def test_a_change_of_the_agents_that_anybody_refuses_changes_nothing(tmp_path: Path, hosts: Hosts) -> None:
    a, b = hosts.start("a"), hosts.start("b")
    with running_mitmweb(tmp_path, "--set", f"balancer_agents=a={a.url}, b={b.url}") as (proxy, web):
        proxy.wait_online("a", "b")
        for name in ("a", "b"):
            assert proxy.generate(headers={"X-Balancer-Agent": name}).status_code == 200
        only_a = [f"a={a.url}"]
        for wrong in (
            {"balancer_agents": [*only_a, "c=https://127.0.0.1"]},
            {"balancer_agents": only_a, "balancer_retries": -1},
            {"balancer_agents": only_a, "intercept": "~nonsense"},  # another addon's
            {"balancer_agents": [f"a={b.url}"], "stickycookie": "~nonsense"},
        ):
            assert web.http.put("/options", json=wrong).status_code >= 400
            shown = proxy.agents()
            assert {name: (each["status"], each["url"]) for name, each in shown.items()} == {
                "a": ("online", a.url),
                "b": ("online", b.url),
            }
            assert [each["stats"]["succeeded"] for each in shown.values()] == [1, 1]
        assert "Agent b" not in proxy.log.partition("Agent b (")[2].partition("online")[2]
        assert web.http.put("/options", json={"balancer_agents": only_a}).status_code == 200
        assert list(proxy.agents()) == ["a"]


def test_a_held_prompt_holds_no_agent_and_is_routed_for_what_is_sent(tmp_path: Path, hosts: Hosts) -> None:
    agents = f"a={hosts.start('a', 'llama3.2').url},b={hosts.start('b', 'qwen3').url}"
    arguments = ("--set", f"balancer_agents={agents}", "--set", "intercept=~u generate & ~q")
    with running_mitmweb(tmp_path, *arguments) as (proxy, web):
        proxy.wait_online("a", "b")
        hosts_before = [host.in_flight for host in hosts.all]

        async def ask_and_edit() -> httpx.Response:
            async with httpx.AsyncClient(trust_env=False, verify=False, timeout=PATIENCE) as asker:
                task = asyncio.create_task(
                    asker.post(proxy.url + "/api/generate", json={"model": "llama3.2", "prompt": "x", "stream": False})
                )

                flow_id = await asyncio.to_thread(web.held)
                assert [agent["in_flight"] for agent in proxy.agents().values()] == [0, 0]
                assert [host.in_flight for host in hosts.all] == hosts_before
                edited = {"request": {"content": '{"model": "qwen3", "prompt": "edited", "stream": false}'}}
                assert web.http.put(f"/flows/{flow_id}", json=edited).status_code == 200
                web.act(flow_id, "resume")
                return await task

        response = asyncio.run(ask_and_edit())
        assert response.headers["X-Balancer-Agent"] == "b"
        assert response.json()["model"] == "qwen3"


def test_a_reload_of_the_script_drops_nothing(tmp_path: Path, hosts: Hosts) -> None:
    copy = tmp_path / "addon"
    shutil.copytree(ROOT / "addon", copy, ignore=shutil.ignore_patterns("__pycache__"))
    slow = hosts.start(
        "slow", timing=Timing(load=0, prefill_rate=1e6, decode_rate=15, output_tokens=45, num_parallel=4)
    )
    with running_proxy(tmp_path, "--set", "balancer_demo=1", addon=copy / "balancer.py") as proxy:
        proxy.register("slow", slow.url)
        proxy.wait_online("slow", "demo-1")
        pin = {"X-Balancer-Agent": "slow"}
        body = {"model": "llama3.2", "prompt": "x"}
        with proxy.http.stream("POST", "/api/generate", json=body, headers=pin) as response:
            lines = response.iter_lines()
            next(lines)
            loaded = proxy.log.count("Loading script")
            (copy / "balancer.py").touch()
            wait_until(lambda: proxy.log.count("Loading script") > loaded, "the script is loaded again")
            assert '"done":true' in list(lines)[-1].replace(" ", "")
        assert proxy.agents()["slow"]["stats"]["succeeded"] == 1
        tasks = proxy.introspect()["tasks"]
        assert (tasks["agent prober"], tasks["demo fleet"]) == (1, 1)
        demo = proxy.generate(headers={"X-Balancer-Agent": "demo-1"})
        assert demo.status_code == 200, "the demo's hosts go on too"
        assert proxy.agents()["slow"]["in_flight"] == 0
        assert "Traceback" not in proxy.log


def test_a_saved_prompt_is_replayed_through_the_fleet(tmp_path: Path, hosts: Hosts) -> None:
    saved, replayed = tmp_path / "saved", tmp_path / "replayed"
    old = hosts.start("old")
    agents = ("--set", f"balancer_agents=old={old.url}")
    with running_proxy(tmp_path, *agents, "-w", str(saved), by_script=True) as proxy:
        proxy.wait_online("old")
        assert proxy.generate(prompt="once more").status_code == 200
    hosts.kill(old)
    new = hosts.start("new")
    agents = ("--set", f"balancer_agents=new={new.url}")
    with running_proxy(tmp_path, *agents, "-C", str(saved), "-w", str(replayed)) as proxy:
        wait_until(lambda: new.counts["succeeded"] == 1, "the prompt arrives at the new host")
        wait_until(lambda: proxy.agents()["new"]["in_flight"] == 0, "its lease is given back")
    assert any(b"once more" in request.body for request in new.requests)
    with replayed.open("rb") as f:
        flows = [flow for flow in FlowReader(f).stream() if isinstance(flow, http.HTTPFlow) and flow.is_replay]
    assert any(flow.metadata.get("balancer", {}).get("agent") == "new" for flow in flows)
