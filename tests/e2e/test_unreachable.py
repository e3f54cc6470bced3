"""Green means that a request would get through: a host that reports and cannot be reached gets none, and is told."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.harness import TOKEN, Hosts, free_port, running_proxy, wait_until
from tests.reporter.stubs import program


def test_a_host_that_reports_and_cannot_be_reached_gets_no_request_and_is_told_why(
    tmp_path: Path, hosts: Hosts
) -> None:
    near, good, port = hosts.start("near"), hosts.start("good"), free_port()
    options = ("--set", f"balancer_agents=good={good.url}", "--set", "balancer_mode=metrics")
    with running_proxy(tmp_path, *options) as proxy:
        arguments = ["--balancer", proxy.url, "--ollama", near.url, "--advertise", f"http://127.0.0.1:{port}"]
        arguments += ["--name", "far", "--interval", "0.2"]
        proxy.wait_online("good")
        proxy.report("good", cpu=90)
        with program(arguments, tmp_path, OLLAMA_BALANCER_TOKEN=TOKEN) as reporter:
            wait_until(lambda: "cannot reach this host's Ollama" in reporter.err, "the reporter is told")
            shown = proxy.agents()["far"]
            assert (shown["status"], shown["stale"]) == ("unreachable", False)
            assert f"cannot connect: connection refused at 127.0.0.1:{port}" in shown["reason"]
            assert shown["reason"] in reporter.err
            assert proxy.http.get("/api/balancer").json()["agents"]["unreachable"] == 1
            for _ in range(3):
                answer = proxy.generate()
                assert (answer.headers["X-Balancer-Agent"], answer.headers["X-Balancer-Attempts"]) == ("good", "1")
            [row] = [row for row in proxy.http.get("/dashboard/data").json()["agents"] if row["name"] == "far"]
            assert (row["status"], row["reason"]) == ("unreachable", shown["reason"])
            reported = len(reporter.err)
            far = hosts.start("far", port=port)
            proxy.wait_online("far")
            wait_until(lambda: "reaches this host's Ollama again" in reporter.err[reported:], "it is told that, too")
            assert proxy.generate(headers={"X-Balancer-Agent": "far"}).status_code == 200
            hosts.kill(far)
            refused = proxy.generate(headers={"X-Balancer-Agent": "far"})
            assert refused.status_code == 502
            assert "connection refused" in refused.text
            assert "Errno" not in refused.text
            # Reports go on. They alone do not bring it back.
            wait_until(lambda: reporter.err.count("cannot reach this host's Ollama") == 2, "it is told again")
            assert proxy.agents()["far"]["status"] == "unreachable"
            hosts.restart(far)
            proxy.wait_online("far")
        assert reporter.err.count("reporting every") == 1
        assert proxy.log.count(") is unreachable: cannot connect") == 2


def test_an_agent_that_is_the_balancer_itself_is_named(tmp_path: Path) -> None:
    port = free_port()
    options = ("--mode", f"regular@{port}", "--set", f"balancer_agents=me=http://127.0.0.1:{port}")
    with running_proxy(tmp_path, *options, "--mode", "regular") as proxy:
        wait_until(lambda: "is the balancer itself or leads back to it" in proxy.log, "it is named", seconds=15)
        assert proxy.agents()["me"]["status"] == "offline"
        assert "is the balancer itself" in proxy.agents()["me"]["reason"]
