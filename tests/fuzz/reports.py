"""Reads what agents and operators say: reports, registrations, addresses, options."""

from __future__ import annotations

import contextlib
import json
import re
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from agent_reporter.limits import MAX_VALUES
from agent_reporter.wire import AgentMetrics, AgentRegistration
from ollama_balancer.core.address import Address
from ollama_balancer.settings import options
from ollama_balancer.settings.option_values import static_agents
from tests.api.test_app import METRICS, Api
from tests.core.fakes import fleet

REPORTS = [
    json.dumps(
        METRICS
        | {
            "gpus": [{"name": "card", "utilization": 5, "memory_used": 1, "memory_total": 2}],
            "models": [{"name": "m", "size": 1, "details": {"family": "x"}}],
            "loaded_models": [{"name": "m"}],
            "load_average": [0.1, 2, 3],
            "collectors": [{"name": "cpu", "ok": True, "seconds": 0.1}],
            "avg_response_time_ms": 12.5,
            "num_parallel": 2,
        }
    ).encode(),
    json.dumps(METRICS).encode(),
    b'{"name":"gpu-2","url":"http://127.0.0.1:1","port":5,"instance":"x"}',
    b'{"until":"registration"}',
]


def reports(body: bytes) -> None:
    api = Api()
    fleet(api.registry, "a")
    for method, path, taken in (
        ("POST", "/api/agents/a/metrics", {204}),
        ("POST", "/api/agents", {200, 201, 409}),
        ("POST", "/api/agents/a/drain", {200}),
    ):
        answer = api.call(method, path, body)
        assert answer.status_code in taken | {400}, (path, answer.status_code, answer.text)
        if answer.status_code == 400:
            assert 0 < len(answer.json()["error"].encode()) < 10_000
    for path in ("/api/agents", "/api/agents/a", "/api/balancer", "/dashboard/data", "/metrics"):
        assert api.call("GET", path).status_code == 200
    for model in (AgentMetrics, AgentRegistration):
        with contextlib.suppress(ValueError):
            json.loads(model.model_validate_json(body).model_dump_json())
    assert body.count(b",") <= MAX_VALUES


def urls(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError as e:
        message = str(e)
        assert len(message) < 1000
        return
    assert Address.parse(address.url) == address
    parts = urlsplit(address.url)
    assert (parts.hostname, parts.port, parts.scheme) == (address.host, address.port, "http")
    assert not re.search(r"[\s/?#@]", address.text)


ENTRIES = [
    b"http://10.0.0.1:11434", b"gpu-1=http://gpu-1:80", b"http://user:password@host:1", b"a=http://[::1]:5/",
    b"10.0.0.0/8", b"*", b"https://*.example.com:*", b"512m", b"fe80::/10", b"balancer.lan", b"100", b"4g",
]  # fmt: skip
ENTRY_TOKENS = (
    b":",
    b"/",
    b"@",
    b"=",
    b",",
    b" ",
    b"[",
    b"]",
    b"*",
    b"http://",
    b"65536",
    b"\xc3\xa9",
    b"\x00",
    b"%",
    b"-",
    b".",
    b"m",
    b"/33",
)
DEFAULTS: dict[str, Any] = {name: row.default for name, row in options.TABLE.items()} | {"stream_large_bodies": None}


def agent_options(texts: list[bytes]) -> None:
    values = [text.decode("utf-8", "replace") for text in texts]
    for name, default in DEFAULTS.items():
        value: Any = values if isinstance(default, list) else (values or [""])[0]
        if not isinstance(default, (list, str)) or name == "balancer_token":
            continue
        try:
            read = options.read(SimpleNamespace(**DEFAULTS | {name: value}))
        except ValueError as e:
            message = str(e)
            assert name in message
            assert name != "balancer_agents" or "password" not in message
            assert len(message) < 2000
            continue
        for agent, address in read.agents:
            assert static_agents([f"{agent}={address.url}"]) == ((agent, address),)
