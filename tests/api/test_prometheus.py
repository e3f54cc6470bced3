"""GET /metrics without a proxy."""

from __future__ import annotations

import asyncio
import platform
import shutil
import subprocess
from typing import Any

import mitmproxy.version
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ollama_balancer import __version__
from ollama_balancer.api.prometheus import PREFIX, Exposition
from ollama_balancer.core.ledger import MAX_SERIES, Entry, Ledger
from ollama_balancer.core.queue import RequestQueue
from ollama_balancer.core.stats import RequestMetrics, RequestSummary
from tests.core.fakes import Clock, fleet, new_registry, report

GPU: dict[str, Any] = {
    "name": 'RTX "4090"\\\n',
    "utilization": 50.0,
    "memory_used": 10,
    "memory_total": 40,
    "temperature": 61.0,
}


class Page:
    def __init__(self) -> None:
        clock = Clock()
        self.registry = new_registry(clock)
        self.metrics = RequestMetrics()
        self.ledger = Ledger(lambda: 0.0)
        self.exposition = Exposition(
            self.registry, RequestQueue(clock), self.metrics, lambda: self.metrics.totals(2), self.ledger
        )

    def page(self, accept: str) -> tuple[bytes, str]:
        return asyncio.run(self.exposition.page(accept))

    def text(self) -> str:
        return self.page("")[0].decode()

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def value(self, series: str, /, **labels: str) -> float | None:
        return self.samples().get((series, frozenset(labels.items())))


@pytest.fixture
def page() -> Page:
    page = Page()
    fleet(page.registry, "gpu-1", "gpu-2")
    figures: dict[str, Any] = {"disk_free": 5, "disk_total": 9, "network_sent": 1.5, "cpu_count": 8}
    figures["load_average"] = [3.0, 2.0, 1.0]
    collectors = [{"name": "cpu", "ok": True, "seconds": 0.5}, {"name": "gpus", "ok": False, "seconds": 5.0}]
    page.registry.update_metrics("gpu-1", report(40, 60, gpus=[GPU], collectors=collectors, **figures))
    for outcome in ("succeeded", "succeeded", "failed"):
        page.metrics.add(
            RequestSummary(
                "gpu-1", "m:latest", "/api/chat", outcome, 2.0, 0.7, 0.3, 42.0, 5, 9, failures=(("gpu-2", "connect"),)
            )
        )
    page.metrics.add(RequestSummary("", "other", "other", "refused", 0.0))
    page.metrics.add(RequestSummary("gpu-2", "m:latest", "/api/chat", "cancelled", 1.0, cancelled_by="client"))
    return page


def test_what_became_of_requests_is_told(page: Page) -> None:
    chat = {"agent": "gpu-1", "model": "m:latest", "route": "/api/chat"}
    assert page.value("requests_total", **chat, outcome="succeeded") == 2
    assert page.value("requests_total", **chat, outcome="failed") == 1
    assert page.value("requests_total", agent="", model="other", route="other", outcome="refused") == 1
    assert page.value("output_tokens_total", agent="gpu-1", model="m:latest") == 27
    assert page.value("upstream_attempt_failures_total", agent="gpu-2", reason="connect") == 3
    assert page.value("cancels_total", reason="client") == 1
    assert page.value("request_duration_seconds_count", model="m:latest") == 2
    assert page.value("request_duration_seconds_sum", model="m:latest") == 4.0
    assert page.value("time_to_first_token_seconds_bucket", model="m:latest", le="0.25") == 0
    assert page.value("time_to_first_token_seconds_bucket", model="m:latest", le="0.5") == 3
    assert page.value("output_tokens_per_second_count", model="m:latest") == 3
    assert page.value("queue_wait_seconds_count") == 3


def test_the_fleet_and_its_hosts_are_told_as_they_are_now(page: Page) -> None:
    page.registry.limiter.take(next(iter(page.registry)))
    assert page.value("agents", state="online") == 2
    assert page.value("agents", state="ejected") == 0
    assert page.value("agent_requests_in_flight", agent="gpu-1") == 1
    assert page.value("agent_up", agent="gpu-2") == 1
    assert page.value("waiting_requests") == 0
    assert page.value("host_cpu_usage_ratio", agent="gpu-1") == 0.4
    assert page.value("host_cpu_usage_ratio", agent="gpu-2") is None
    gpu = {"agent": "gpu-1", "gpu": "0", "name": GPU["name"]}
    assert page.value("host_gpu_utilization_ratio", **gpu) == 0.5
    assert page.value("host_gpu_memory_total_bytes", **gpu) == 40
    assert "power_watts{" not in page.text()
    assert page.value("host_load1", agent="gpu-1") == 3.0
    assert page.value("host_cpus", agent="gpu-1") == 8
    assert page.value("host_models_disk_free_bytes", agent="gpu-1") == 5
    assert page.value("host_models_disk_size_bytes", agent="gpu-1") == 9
    assert page.value("host_network_transmit_bytes_per_second", agent="gpu-1") == 1.5
    assert page.value("host_network_receive_bytes_per_second", agent="gpu-1") is None
    assert page.value("host_collector_success", agent="gpu-1", collector="cpu") == 1
    assert page.value("host_collector_success", agent="gpu-1", collector="gpus") == 0


def test_a_collector_that_a_report_names_twice_is_one_series(page: Page) -> None:
    twice = [{"name": "cpu", "ok": ok, "seconds": 0.5} for ok in (True, False)]
    page.registry.update_metrics("gpu-2", report(40, 60, collectors=twice))
    assert page.text().count('host_collector_success{agent="gpu-2"') == 1


def test_the_versions_in_use_are_one_series(page: Page) -> None:
    versions = {"version": __version__, "mitmproxy": mitmproxy.version.VERSION, "python": platform.python_version()}
    assert page.value("build_info", **versions) == 1


def test_of_an_agent_that_is_removed_the_counts_stay_and_no_gauge_does(page: Page) -> None:
    def sums() -> dict[str, float]:
        totals: dict[str, float] = {}
        for (name, _), value in page.samples().items():
            if name.endswith("_total"):
                totals[name] = totals.get(name, 0) + value
        return totals

    before = sums()
    page.registry.remove(next(iter(page.registry)))
    assert sums() == before | {"agent_ejections_total": 0}
    gauges = {name for name, labels in page.samples() if ("agent", "gpu-1") in labels}
    assert gauges == {name for name in gauges if name.endswith("_total")}


def test_a_rejection_is_counted_by_its_status(page: Page) -> None:
    page.metrics.add(RequestSummary("gpu-1", "m:latest", "/api/chat", "rejected", 0.1, status=400))
    assert page.value("rejections_total", status="400") == 1
    assert page.value("requests_in_flight") == 2


def test_the_format_is_the_one_that_is_asked_for(page: Page) -> None:
    body, content_type = page.page("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    plain, content_type = page.page("*/*")
    assert content_type.startswith("text/plain; version=")
    assert b"# HELP ollama_balancer_requests_total " in plain


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_finds_nothing_wrong(page: Page) -> None:
    checked: Any = subprocess.run(
        ["promtool", "check", "metrics"], input=page.text(), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_keys_are_told_apart_by_name_up_to_a_bound(page: Page) -> None:
    for number in range(MAX_SERIES + 10):
        page.ledger.add(Entry(f"key-{number}", "m", "a", "succeeded", 3, 4, 1.0, 0.0))
    assert page.value("key_requests_total", key="key-0", outcome="succeeded") == 1
    assert page.value("key_requests_total", key="(other)", outcome="succeeded") == 10
    assert page.value("key_prompt_tokens_total", key="(other)") == 30
    assert page.value("key_output_tokens_total", key=f"key-{MAX_SERIES - 1}") == 4
    keys = {labels for name, labels in page.samples() if name == "key_output_tokens_total"}
    assert len(keys) == MAX_SERIES + 1
