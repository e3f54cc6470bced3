"""Takes the documentation's pictures, of small fleets at work: `python -m benches.screenshots [PART ...]`.

Needs Chromium and its driver (Debian: chromium, chromium-driver, fonts-noto-color-emoji).
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from selenium.webdriver.common.by import By

from benches.screenshots import dashboard, terminal
from benches.screenshots.fleet import HOSTS
from ollama_balancer.simulator import SimulatedOllama
from tests.e2e.browser import chromium
from tests.e2e.harness import Hosts, Proxy, wait_until
from tests.e2e.web import PASSWORD, Web, running_mitmweb

FOLDER = Path(__file__).parent

PROMPTS = (
    "Why is the sky blue?",
    "Summarise this meeting in three sentences.",
    "Write a function that reverses a linked list.",
    "What should I cook with leeks and potatoes?",
    "Translate to French: the train is late again.",
)


def ask(proxy: Proxy, model: str, prompt: str, path: str = "/api/chat") -> httpx.Response:
    body: dict[str, Any] = {"model": model, "stream": True, "max_tokens": 200}
    body["messages"] = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": prompt}]
    return httpx.post(proxy.url + path, json=body, timeout=120, trust_env=False)


def work(proxy: Proxy, hosts: dict[str, SimulatedOllama]) -> None:
    """Half a minute of a small team's prompts, one of them to a host that fails."""
    chance = random.Random(7)
    askers = []
    for number in range(14):
        model = chance.choice(["llama3.2", "llama3.2", "qwen3", "gemma3"])
        path = chance.choice(["/api/chat", "/api/chat", "/v1/chat/completions", "/v1/messages"])
        asker = threading.Thread(target=ask, args=(proxy, model, PROMPTS[number % len(PROMPTS)], path))
        asker.start()
        askers.append(asker)
        time.sleep(chance.uniform(0.1, 1.0))
    failing = hosts[ask(proxy, "gemma3", PROMPTS[0]).headers["X-Balancer-Agent"]]
    failing.faults.reset_before_head = True
    for _ in range(2):
        ask(proxy, "gemma3", PROMPTS[0])
    failing.faults.reset_before_head = False
    ask(proxy, "mistral", "Is anybody there?")
    for asker in askers:
        asker.join()


def mitmweb(web: Web, proxy: Proxy, hosts: Hosts, profile: Path) -> None:
    with chromium(profile, 1500, 900) as browser:
        browser.get(f"{web.url}/?token={PASSWORD}")
        work(proxy, dict(zip(HOSTS, hosts.all, strict=True)))
        time.sleep(1)
        browser.save_screenshot(str(FOLDER / "mitmweb.png"))
        browser.set_window_size(1500, 960)
        rows = browser.find_elements(By.CSS_SELECTOR, ".flow-table td.col-comment")
        next(row for row in rows if "next best gpu" in row.text and "llama3.2" in row.text).click()
        time.sleep(0.5)
        browser.find_element(By.XPATH, "//nav//a[normalize-space()='Response']").click()
        time.sleep(1)
        browser.save_screenshot(str(FOLDER / "mitmweb-answer.png"))


def take_mitmweb() -> None:
    hosts = Hosts()
    agents = ",".join(
        f"{name}={hosts.start(name, *models, timing=timing).url}" for name, (models, timing) in HOSTS.items()
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_mitmweb(folder, "--set", f"balancer_agents={agents}") as (proxy, web):
            wait_until(lambda: all(a["status"] == "online" for a in proxy.agents().values()), "the agents are online")
            mitmweb(web, proxy, hosts, folder / "profile")
    hosts.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benches.screenshots", description="Takes the documentation's pictures."
    )
    takers = {"mitmweb": take_mitmweb, "dashboard": dashboard.take, "terminal": terminal.take}
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(takers)}; all if none is named")
    parts = parser.parse_args().parts or list(takers)
    if unknown := [part for part in parts if part not in takers]:
        parser.error(f"{unknown[0]}: there are {', '.join(takers)}")
    for part in parts:
        takers[part]()


if __name__ == "__main__":
    main()
