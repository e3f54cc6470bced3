"""The dashboard of a fleet at work for a minute, in which one host dies and another is drained."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from selenium.webdriver.chrome.webdriver import WebDriver

from benches.screenshots.png import smaller
from ollama_balancer.simulator import SimulatedModel, SimulatedOllama, Timing
from tests.e2e.browser import chromium
from tests.e2e.harness import Hosts, Proxy, running_proxy

FOLDER = Path(__file__).parent
SECONDS = 66

SIZES = {"llama3.2": 2.0, "qwen3": 5.2, "gemma3": 8.1, "deepseek-r1:32b": 19.9, "nomic-embed-text": 0.3}
"""GB."""

HOSTS: dict[str, tuple[tuple[str, ...], Timing, list[tuple[str, float]]]] = {
    "gpu-1": (
        ("llama3.2", "qwen3", "gemma3", "deepseek-r1:32b", "nomic-embed-text"),
        Timing(load=1.5, decode_rate=95, prefill_rate=3000, num_parallel=4, max_loaded=3),
        [("NVIDIA GeForce RTX 4090", 24.0)] * 2,
    ),
    "gpu-2": (
        ("llama3.2", "qwen3", "gemma3"),
        Timing(load=2, decode_rate=60, prefill_rate=1500, num_parallel=2, max_loaded=2),
        [("NVIDIA RTX A4000", 16.0)],
    ),
    "gpu-3": (
        ("qwen3", "gemma3"),
        Timing(load=2, decode_rate=60, prefill_rate=1500, num_parallel=2, max_loaded=2),
        [("NVIDIA RTX A4000", 16.0)],
    ),
    "mac-studio": (
        ("llama3.2", "gemma3", "deepseek-r1:32b"),
        Timing(load=3, decode_rate=35, prefill_rate=800, num_parallel=2, max_loaded=2),
        [],
    ),
    "old-xeon": (("llama3.2",), Timing(load=3, decode_rate=12, prefill_rate=200), []),
}
"""Models, pace, and GPUs with their memory in GiB."""


class Fleet:
    """Simulated hosts, each of which tells the balancer every second how it is."""

    def __init__(self, proxy: Proxy, hosts: Hosts) -> None:
        self.proxy = proxy
        self.hosts = hosts
        self.alive: dict[str, SimulatedOllama] = {}
        self.over = threading.Event()
        self._chance = random.Random(3)
        for number, (name, (models, timing, _)) in enumerate(HOSTS.items()):
            kinds = [SimulatedModel(model, size=int(SIZES[model] * 1e9)) for model in models]
            host = SimulatedOllama(models=kinds, timing=timing, name=name, seed=number)
            hosts.run(host.start())
            hosts.all.append(host)
            self.alive[name] = host
            proxy.register(name, host.url)
            self._report(name, host)

    def kill(self, name: str) -> None:
        self.hosts.kill(self.alive.pop(name))

    def report(self) -> None:
        while not self.over.wait(1):
            for name, host in list(self.alive.items()):
                with suppress(httpx.HTTPError):
                    self._report(name, host)

    def _report(self, name: str, host: SimulatedOllama) -> None:
        chance, (models, timing, gpus) = self._chance, HOSTS[name]
        loaded = [entry["name"] for entry in host.ps_entries()]
        size = sum(SIZES[model.removesuffix(":latest")] for model in loaded) * 1.15 + 0.6
        work = (host.load_cpu() - 4) / 92
        self.proxy.report(
            name,
            cpu=round(min(100, 5 + work * (30 if gpus else 90) + chance.uniform(0, 6)), 1),
            memory=round(min(97, 22 + (0.6 if gpus else 2.2) * size + chance.uniform(0, 1)), 1),
            models=list(models),
            loaded_models=[{"name": model} for model in loaded],
            gpus=[
                {
                    "name": gpu,
                    "utilization": round(min(100, work * 90 + chance.uniform(2, 9))),
                    "memory_used": int(min(memory * 0.97, size / len(gpus)) * 2**30),
                    "memory_total": int(memory * 2**30),
                    "temperature": 38.0 + round(work * 30),
                }
                for gpu, memory in gpus
            ],
            num_parallel=timing.num_parallel,
            ollama_ok=True,
        )


def work(fleet: Fleet, seconds: float) -> list[threading.Thread]:
    """What some teams ask for, more of it and less; those who ask still wait for their answers when it returns."""
    chance = random.Random(11)
    askers = []
    start = time.monotonic()

    def ask(model: str, words: int) -> None:
        body: dict[str, Any] = {"model": model, "prompt": "why " * words, "options": {"num_predict": 100 + words}}
        with suppress(httpx.HTTPError):
            httpx.post(f"{fleet.proxy.url}/api/generate", json=body, timeout=120, trust_env=False)

    def pause() -> float:
        passed = (time.monotonic() - start) / seconds
        return chance.expovariate(2.0 if 0.3 < passed < 0.55 else 6.0)

    def send() -> None:
        model = chance.choice(["llama3.2"] * 5 + ["qwen3"] * 4 + ["gemma3"] * 4 + ["deepseek-r1:32b"])
        asker = threading.Thread(target=ask, args=(model, chance.randrange(20, 250)), daemon=True)
        asker.start()
        askers.append(asker)

    killed = drained = False
    while (passed := time.monotonic() - start) < seconds:
        if passed > seconds * 0.8 and not drained:
            fleet.proxy.control("POST", "/api/agents/gpu-3/drain")
            drained = True
        if passed > seconds * 0.9 and not killed:
            fleet.kill("old-xeon")
            killed = True
        send()
        time.sleep(pause())
    for _ in range(20):
        send()
    time.sleep(2.2)
    return askers


def show(browser: WebDriver, *, dark: bool) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    time.sleep(0.3)


def take(folder: Path = FOLDER, width: int = 1280, height: int = 1000) -> None:
    hosts = Hosts()
    arguments = ("-s", str(FOLDER / "quick_curves.py"), "--set", "balancer_stale_after=5")
    with tempfile.TemporaryDirectory() as name, running_proxy(Path(name), *arguments) as proxy:
        fleet = Fleet(proxy, hosts)
        reporter = threading.Thread(target=fleet.report)
        reporter.start()
        with chromium(Path(name) / "profile", width, height) as browser:
            browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            browser.get(f"{proxy.url}/dashboard")
            askers = work(fleet, SECONDS)
            pictures = {}
            for dark in (False, True):
                show(browser, dark=dark)
                pictures["dark" if dark else "light"] = browser.get_screenshot_as_png()
        for kind, picture in pictures.items():
            (folder / f"dashboard-{kind}.png").write_bytes(smaller(picture))
        for asker in askers:
            asker.join()
        fleet.over.set()
        reporter.join()
    hosts.stop()
