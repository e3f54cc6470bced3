"""Reads what agents and operators say: reports, registrations, addresses, options, fleet files."""

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
from ollama_balancer.settings.fleet import FleetFileError
from ollama_balancer.settings.fleet_file import fleet_of
from ollama_balancer.settings.option_values import static_agents
from tests.api.test_app import METRICS, Api
from tests.core.fakes import fleet
from tests.markdown import DOCS

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


FLEETS = [
    (DOCS / "fleet.yaml").read_bytes(),
    b'agents: {a: {url: "http://user:password@b", slots: 1}, c: {url: dns+http://d}}\noptions: {hosts: [e, f]}\n',
]
YAML_TOKENS = (
    b"&a ", b"*a", b"!!x ", b"%YAML 9.9\n", b"---\n", b"...\n", b"? ", b": ", b"- ", b"[", b"]", b"{", b"}", b"|\n",
    b">-\n", b"'", b'"', b"\\uD800", b"#", b"\t", b"\r", b"\x85", b"\xe2\x80\xa8", b"<<: ", b"@", b"0x",
    b"1e999", b".nan", b"~", b"2024-01-01", b"\xef\xbb\xbf", b"\n", b"  ", b"=",
)  # fmt: skip


def fleet_files(content: bytes) -> None:
    try:
        fleet = fleet_of("f", content)
    except FleetFileError as e:
        findings, message = e.findings, str(e)
    else:
        assert options.read(SimpleNamespace(**DEFAULTS), fleet.options)
        assert all(re.fullmatch(r"[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]{0,63}", name) for name in fleet.agents)
        return
    lines = len(re.split(rb"\r\n?|\n|\xc2\x85|\xe2\x80[\xa8\xa9]", content))
    assert all(0 <= finding.line <= lines for finding in findings)
    assert b"password@" not in content or "password" not in message
    assert len(message) < 2000
