"""What has happened, over a restart."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from ollama_balancer.storage.events import FILE_NAME
from tests.e2e.harness import Hosts, Proxy, running_proxy, wait_until


def happened(proxy: Proxy, query: str = "") -> list[tuple[str, str | None]]:
    answer = proxy.control("GET", f"/api/events{query}")
    assert answer.status_code == 200, answer.text
    return [(event["kind"], event["agent"] or event["key"]) for event in answer.json()["events"]]


def test_changes_of_state_are_kept_over_a_restart_with_their_reasons(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("gpu-1")
    with running_proxy(tmp_path) as proxy:
        proxy.register("gpu-1", host.url)
        proxy.wait_online("gpu-1")
        proxy.control("POST", "/api/agents/gpu-1/drain")
        proxy.control("POST", "/api/agents/gpu-1/resume")
        for _ in range(3):
            assert proxy.control("DELETE", "/api/agents/gpu-1", token="wrong-secret-token").status_code == 401
        hosts.kill(host)
        wait_until(
            lambda: ("offline", "gpu-1") in happened(proxy) or ("unreachable", "gpu-1") in happened(proxy), "it is gone"
        )
        assert happened(proxy)[:5] == [
            ("started", None),
            ("registered", "gpu-1"),
            ("drained", "gpu-1"),
            ("resumed", "gpu-1"),
            ("key refused", None),
        ]
        refused = proxy.control("GET", "/api/events").json()["events"][4]
        assert refused["count"] == 3
        assert "127.0.0.1" in refused["reason"]
        page = proxy.control("GET", "/api/events?limit=2").json()
        assert [event["kind"] for event in page["events"]][-1] in ("offline", "unreachable")
        assert proxy.http.get(page["next"]).json()["events"] == []
        before = happened(proxy)
        wrong = proxy.http.get("/api/events?limit=0")
        assert (wrong.status_code, wrong.json()["error"].split(":")[0]) == (400, "limit")
    file = tmp_path / FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "wrong-secret-token" not in file.read_text()
    with running_proxy(tmp_path) as proxy:
        again = happened(proxy, "?limit=1000")
        assert again[: len(before) + 2] == [*before, ("stopped", None), ("started", None)]
    stored = json.loads(file.read_text())
    assert [event["kind"] for event in stored["events"]][-1] == "stopped"
