"""The demo fleet: simulated hosts with real reporters, inside the balancer."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.harness import running_proxy, stream_lines, wait_until


def test_the_demo_answers_the_first_request_and_its_reporters_report(tmp_path: Path) -> None:
    with running_proxy(tmp_path, "--set", "balancer_demo=3", by_script=True) as proxy:
        lines = stream_lines(proxy, "/api/generate", {"model": "llama3.2", "prompt": "hi"})
        assert lines[-1]["done"] is True
        assert "".join(line["response"] for line in lines)
        agents = proxy.agents()
        assert sorted(agents) == ["demo-1", "demo-2", "demo-3"]
        assert {agent["source"] for agent in agents.values()} == {"demo"}
        first = {name: agent["metrics"]["timestamp"] for name, agent in agents.items()}
        wait_until(
            lambda: all(agent["metrics"]["timestamp"] > first[name] for name, agent in proxy.agents().items()),
            "every reporter has reported",
        )
        assert {agent["status"] for agent in proxy.agents().values()} == {"online"}
    assert proxy.process.returncode == 0
    assert "rror" not in proxy.log
