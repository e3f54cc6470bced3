"""The dashboard in a real Chromium."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ollama_balancer.api.paths import DASHBOARD
from ollama_balancer.core.access import SECRET, Key, Right
from ollama_balancer.core.events import Event, EventKind
from ollama_balancer.core.ledger import FIELDS, Place
from ollama_balancer.storage.events import FILE_NAME as EVENTS_FILE
from ollama_balancer.storage.events import EventFile
from ollama_balancer.storage.keys import FILE_NAME, KeyStore
from ollama_balancer.storage.usage import FILE_NAME as USAGE_FILE
from ollama_balancer.storage.usage import UsageFile
from tests.e2e.browser import chromium, console_errors, needs_chromium
from tests.e2e.dashboard import (
    accessibility_problems,
    color,
    confirm,
    cut_off,
    press,
    resize,
    row,
    seen,
    text_of,
)
from tests.e2e.harness import TOKEN, Hosts, free_port, running_proxy

pytestmark = [pytest.mark.browser, needs_chromium]

HOSTILE = "<img src=x onerror=alert(1)>"


def test_a_fleet_at_work_is_shown_live_and_run_from_the_page(tmp_path: Path, hosts: Hosts) -> None:
    one, two = hosts.start("gpu-a"), hosts.start("gpu-b")
    arguments = ("--set", f"balancer_agents=gpu-a={one.url},gpu-b={two.url}", "--set", "balancer_stale_after=5")
    with running_proxy(tmp_path, *arguments) as proxy, chromium(tmp_path / "profile") as browser:
        proxy.wait_online("gpu-a", "gpu-b")
        gpu = {"name": HOSTILE, "utilization": 50.0, "memory_used": 1, "memory_total": 2}
        loaded = [{"name": HOSTILE}, {"name": "llama3.2"}]
        browser.get(f"{proxy.url}/dashboard")
        seen(browser, lambda: "online" in row(browser, "gpu-a"), "the agents")

        def hostile_names() -> int:
            # A list that may be older than the host's last answer is not taken.
            proxy.report("gpu-b", models=["llama3.2"], loaded_models=loaded, gpus=[gpu])
            return row(browser, "gpu-b").count(HOSTILE)

        seen(browser, lambda: hostile_names() == 2, "the model's and the GPU's name, as text")
        assert browser.find_elements(By.CSS_SELECTOR, "#agents img") == []
        assert "2 of 2" in text_of(browser, "#tiles")
        secret = "a-prompt-that-nobody-sees-here"
        threads = [threading.Thread(target=proxy.generate, args=("llama3.2", secret)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen(browser, lambda: text_of(browser, "#decisions").count("succeeded") == 3, "the requests, without a reload")
        assert "adaptive: " in text_of(browser, "#decisions")
        assert proxy.http.post("/api/chat", json={"model": "llama3.2", "messages": 5}).status_code == 400
        assert proxy.http.get("/api/tags").status_code == 200
        seen(browser, lambda: "rejected 400" in text_of(browser, "#decisions"), "what the caller did wrong")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#decisions tr")) == 4, "a list is no row"
        totals = "5 since start: 4 succeeded, 1 rejected"
        seen(browser, lambda: text_of(browser, "#totals") == totals, "all that ended")
        assert secret not in browser.page_source + proxy.http.get("/dashboard/data").text
        assert browser.find_elements(By.CSS_SELECTOR, "#agents img") == []
        assert accessibility_problems(browser) == []

        press(browser, "Drain gpu-a")
        assert text_of(browser, "#question") == "Drain gpu-a? It gets no new requests; running ones finish."
        assert accessibility_problems(browser) == []
        confirm(browser, "not-the-token")
        seen(browser, lambda: "not the balancer's token" in text_of(browser, "#refusal"), "the refusal")
        confirm(browser, TOKEN)
        seen(browser, lambda: "draining" in row(browser, "gpu-a"), "it drains")
        assert console_errors(browser) != [], "the browser notes the refusal"
        press(browser, "Resume gpu-a")
        browser.find_element(By.ID, "yes").click()  # the token is known by now
        seen(browser, lambda: "online" in row(browser, "gpu-a"), "it is back")

        hosts.kill(one)
        seen(browser, lambda: "offline" in row(browser, "gpu-a"), "the death is seen")
        press(browser, "Remove gpu-a")
        browser.find_element(By.ID, "yes").click()
        seen(browser, lambda: not row(browser, "gpu-a"), "it is gone")
        assert list(proxy.agents()) == ["gpu-b"]
        assert console_errors(browser) == []


def test_bars_and_curves_show_what_was_reported_and_nothing_is_cut_off(tmp_path: Path, hosts: Hosts) -> None:
    models = ["llama3.2:latest", *(f"a-model-with-a-long-name-{number}:70b-instruct-q4_K_M" for number in range(7))]
    host = hosts.start("two-gpus", *models)  # as a probe may find them, too
    arguments = ("--set", f"balancer_agents=two-gpus={host.url}")
    with running_proxy(tmp_path, *arguments) as proxy, chromium(tmp_path / "profile") as browser:
        gpus = [
            {"name": "RTX 4090", "utilization": busy, "memory_used": 6 << 30, "memory_total": 25_757_220_864}
            | {"temperature": 61.0 if busy is None else 91.4}
            for busy in (99.0, None)
        ]
        loaded = [{"name": name} for name in models[:4]]
        proxy.report("two-gpus", cpu=96.4, memory=81.0, models=models, loaded_models=loaded, gpus=gpus, num_parallel=4)
        proxy.generate("llama3.2", options={"num_predict": 5})
        browser.get(f"{proxy.url}/dashboard")
        seen(browser, lambda: "2 × RTX 4090" in row(browser, "two-gpus"), "the GPUs")
        shown = row(browser, "two-gpus")
        for text in ("96 %", "81 %", "99 %", "91 °C", "6.0 / 24 GiB", "8 on disk", "/ 4 per model"):
            assert text in shown
        assert models[-1] not in shown
        browser.find_element(By.CSS_SELECTOR, "#agents summary").click()
        assert models[-1] in row(browser, "two-gpus")
        bars = browser.find_elements(By.CSS_SELECTOR, "#agents [role=meter]:not([hidden])")
        told = {bar.get_attribute("aria-label"): bar.get_attribute("aria-valuenow") for bar in bars}
        assert told == {
            "CPU of two-gpus": "96",
            "memory of two-gpus": "81",
            "GPU 0 of two-gpus, busy": "99",
            "GPU 0 of two-gpus, memory": "25",
            "GPU 1 of two-gpus, memory": "25",
        }
        busy = color(browser, "CPU of two-gpus")
        assert color(browser, "GPU 0 of two-gpus, busy") == busy != color(browser, "memory of two-gpus"), "busy is well"
        assert text_of(browser, ".hot") == "91 °C"
        curves = browser.find_elements(By.CSS_SELECTOR, "#agents svg")
        assert [curve.text.split() for curve in curves] == [["4", "0"], ["100%", "0"]]
        labels = [str(curve.get_attribute("aria-label")) for curve in curves]
        assert labels[0].startswith("requests in flight on two-gpus, the last ")
        for width in (360, 390, 768, 1000, 1280, 1500, 1920, 2560):
            resize(browser, width)
            assert cut_off(browser) == [], width
            over = browser.execute_script(
                "return [document.documentElement, ...document.querySelectorAll('.scroll')]"
                ".map((box) => box.scrollWidth - box.clientWidth)"
            )
            assert over == [0, 0, 0], width
            assert accessibility_problems(browser) == []
        assert console_errors(browser) == []


def test_a_host_that_drains_and_dies_can_be_resumed(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("gone")
    with (
        running_proxy(tmp_path, "--set", f"balancer_agents=gone={host.url}") as proxy,
        chromium(tmp_path / "profile") as browser,
    ):
        proxy.wait_online("gone")
        proxy.control("POST", "/api/agents/gone/drain")
        hosts.kill(host)
        browser.get(f"{proxy.url}/dashboard")
        seen(browser, lambda: "offline" in row(browser, "gone"), "the death")
        press(browser, "Resume gone")
        confirm(browser, TOKEN)
        seen(browser, lambda: "Drain" in row(browser, "gone"), "it no longer drains")


def test_the_page_takes_nothing_from_elsewhere_and_reading_needs_no_token(tmp_path: Path) -> None:
    with running_proxy(tmp_path) as proxy:
        for path in {*DASHBOARD} - {"/dashboard/data"}:
            answer = proxy.http.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert proxy.http.get("/dashboard/nothing").status_code == 404
        assert proxy.http.post("/dashboard").status_code == 405


def test_where_calls_need_a_key_the_page_asks_for_one(tmp_path: Path, hosts: Hosts) -> None:
    agent = hosts.start("gpu-1")
    secret = KeyStore(tmp_path / FILE_NAME).add(Key("screen", frozenset((Right.READ,))))
    options = ("--set", f"balancer_agents=gpu-1={agent.url}")
    with running_proxy(tmp_path, *options) as proxy, chromium(tmp_path / "profile") as browser:
        browser.get(f"{proxy.url}/dashboard")
        seen(browser, lambda: "right read" in text_of(browser, "#question"), "the question for a key")
        assert row(browser, "gpu-1") == ""
        confirm(browser, "ob_" + "A" * 43)
        seen(browser, lambda: "not known" in text_of(browser, "#refusal"), "the refusal")
        confirm(browser, secret)
        seen(browser, lambda: "online" in row(browser, "gpu-1"), "the fleet")
        assert text_of(browser, "#live") == "Live"


def test_the_tokens_of_each_key_are_drawn_by_day_and_what_has_happened_is_listed(tmp_path: Path, hosts: Hosts) -> None:
    rows: dict[Place, list[float]] = {}
    today = int(time.time()) // 86_400
    for key, tokens in (("alice", {today - 1: 400, today: 1600}), ("bob", {today - 20: 5, today - 3: 200})):
        for day, count in tokens.items():
            figures = {"succeeded": 1, "prompt_tokens": count - 5, "output_tokens": 5}
            rows[Place(day * 24, 1, key, HOSTILE, "gpu-1")] = [float(figures.get(name, 0)) for name in FIELDS]
    UsageFile(tmp_path / USAGE_FILE).add(rows)
    ejected = Event(7, time.time() - 60, EventKind.EJECTED, "gpu-1", None, f"3 failures: {HOSTILE}", 4, 1e9)
    EventFile(tmp_path / EVENTS_FILE).save([ejected])
    secret = KeyStore(tmp_path / FILE_NAME).add(Key("screen", frozenset((Right.READ,))))
    with running_proxy(tmp_path) as proxy, chromium(tmp_path / "profile") as browser:
        browser.get(f"{proxy.url}/dashboard")
        seen(browser, lambda: "right read" in text_of(browser, "#question"), "the question for a key")
        confirm(browser, secret)
        seen(browser, lambda: text_of(browser, "#live") == "Live", "the fleet")
        seen(browser, lambda: browser.find_element(By.ID, "happened").is_displayed(), "that something happened")
        seen(browser, lambda: browser.find_element(By.ID, "usage").is_displayed(), "that something was used")
        browser.find_element(By.CSS_SELECTOR, "#usage summary").click()
        seen(browser, lambda: text_of(browser, "#keys").split() == ["alice", "2,000", "bob", "200"], "the keys")
        svgs = browser.find_elements(By.CSS_SELECTOR, "#keys svg")
        assert [svg.get_attribute("aria-label") for svg in svgs] == [
            "tokens of alice by day: today 1600, maximum 1600",
            "tokens of bob by day: today 0, maximum 200",
        ]
        bars = [
            [float(str(bar.get_attribute("height"))) for bar in svg.find_elements(By.TAG_NAME, "rect")] for svg in svgs
        ]
        assert [len(each) for each in bars] == [2, 1]
        browser.find_element(By.CSS_SELECTOR, "#happened summary").click()
        seen(browser, lambda: "ejected" in text_of(browser, "#events"), "the events")
        started, told = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#events li")]
        assert "had ended without being stopped" in started
        assert f"gpu-1\n3 failures: {HOSTILE} (4 times since " in told
        assert (bars[0][1] / bars[0][0], bars[0][1] / bars[1][0]) == pytest.approx((4, 8), rel=0.05)
        for width in (390, 1280, 1920):
            resize(browser, width)
            page = "document.documentElement"
            assert browser.execute_script(f"return {page}.scrollWidth - {page}.clientWidth") == 0
            assert accessibility_problems(browser) == []
        assert [problem for problem in console_errors(browser) if "401" not in problem] == []


def test_keys_are_added_switched_and_removed_on_the_page(tmp_path: Path) -> None:
    with running_proxy(tmp_path, "--set", "balancer_access=open") as proxy, chromium(tmp_path / "profile") as browser:

        def told() -> dict[str, Any]:
            keys = proxy.control("GET", "/api/keys").json()["keys"]
            return {key["name"]: key["disabled"] for key in keys}

        proxy.register("gpu-1", "http://127.0.0.1:9")
        browser.get(f"{proxy.url}/dashboard")
        seen(browser, lambda: browser.find_element(By.ID, "access").is_displayed(), "the keys")
        browser.find_element(By.CSS_SELECTOR, "#access summary").click()
        name = browser.find_element(By.ID, "key-name")
        name.send_keys("alice", Keys.ENTER)
        seen(browser, lambda: "right operate" in text_of(browser, "#access-said"), "the refusal")
        browser.find_element(By.ID, "operator").send_keys(TOKEN)
        name.send_keys("alice", Keys.ENTER)
        seen(browser, lambda: "cannot be seen again" in text_of(browser, "#key-secret"), "the secret")
        secret = text_of(browser, "#key-secret").split()[0]
        assert SECRET.fullmatch(secret.encode())
        assert KeyStore(tmp_path / FILE_NAME).load().find(secret.encode(), time.time())
        press(browser, "Disable alice")
        seen(browser, lambda: "disabled" in text_of(browser, "#key-rows"), "the key is disabled")
        assert told() == {"alice": True}
        press(browser, "Enable alice")
        seen(browser, lambda: "valid" in text_of(browser, "#key-rows"), "the key is valid")
        press(browser, "Rotate alice")
        seen(browser, lambda: text_of(browser, "#key-secret")[:46] not in ("", secret), "another secret")
        browser.find_element(By.ID, "join-code").click()
        seen(browser, lambda: text_of(browser, "#join-shell"), "the line that joins a host")
        line, code = text_of(browser, "#join-shell").rsplit(" ", 1)
        assert line == f"curl -fsS {proxy.url}/join | sh -s --"
        assert text_of(browser, "#join-powershell").endswith(f"/join.ps1))) {code}")
        joined = proxy.http.post("/api/join", json={"name": "b"}, headers={"Authorization": f"Bearer {code}"})
        assert joined.status_code == 201
        for width in (390, 1280):
            resize(browser, width)
            page = "document.documentElement"
            assert browser.execute_script(f"return {page}.scrollWidth - {page}.clientWidth") == 0
            assert accessibility_problems(browser) == []
        proxy.control("DELETE", "/api/keys/host@b")
        press(browser, "Remove alice")
        browser.switch_to.alert.accept()
        seen(browser, lambda: "no keys" in text_of(browser, "#access-said"), "there is no key")
        assert told() == {}
        assert [problem for problem in console_errors(browser) if "401" not in problem] == []


def test_why_a_host_gets_nothing_is_shown(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    agents = f"balancer_agents=one={host.url},again={host.url},far=http://127.0.0.1:{free_port()}"
    with running_proxy(tmp_path, "--set", agents) as proxy, chromium(tmp_path / "profile") as browser:
        proxy.report("far")
        browser.get(f"{proxy.url}/dashboard")
        seen(browser, lambda: "unreachable" in row(browser, "far"), "that it cannot be reached")
        assert "connection refused" in row(browser, "far")
        seen(browser, lambda: "same host" in row(browser, "again").lower(), "that it is a host under another name")
        assert console_errors(browser) == []
