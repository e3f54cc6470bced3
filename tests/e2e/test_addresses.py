"""A host whose name has several addresses is reached by the one that answers, whoever calls."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.e2e.harness import TOKEN, Hosts, running_proxy, silent_listener, wait_until
from tests.reporter.stubs import ROOT, program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this machine's on Linux alone")

RESOLVER = """
import socket
from agent_reporter import connecting

connecting.MAX_NAMES = 0  # nobody remembers what answered last: each has to find out
_look_up = socket.getaddrinfo

def look_up(host, port, *arguments, **more):
    if host not in ("several.test", b"several.test"):
        return _look_up(host, port, *arguments, **more)
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    return [(*kind, ("127.0.0.2", int(port or 0))), (*kind, ("127.0.0.1", int(port or 0)))]

socket.getaddrinfo = look_up
"""
"""The name has two addresses, the first of which is dead: what a name server would say, without one."""


def test_probes_requests_and_the_fan_out_reach_a_host_whose_first_address_is_dead(tmp_path: Path, hosts: Hosts) -> None:
    script = tmp_path / "resolver.py"
    script.write_text(RESOLVER)
    host = hosts.start("one")
    options = ("-s", str(script), "--set", f"balancer_agents=one=http://several.test:{host.port}")
    with (
        silent_listener("127.0.0.2", host.port),
        running_proxy(tmp_path, *options, "-v", "--set", "balancer_connect_timeout=20") as proxy,
    ):
        proxy.wait_online("one")  # probes
        for _ in range(2):
            answer = proxy.generate()
            assert (answer.status_code, answer.headers["X-Balancer-Attempts"]) == (200, "1"), answer.text
        assert f"server connect several.test:{host.port} (127.0.0.1:{host.port})" in proxy.log
        copied = proxy.http.post("/api/copy", json={"source": "llama3.2", "destination": "other"})
        assert copied.status_code == 200, copied.text
        assert "other:latest" in proxy.agents()["one"]["models"]


def test_the_reporter_reaches_a_balancer_whose_first_address_is_dead(tmp_path: Path, hosts: Hosts) -> None:
    (tmp_path / "sitecustomize.py").write_text(RESOLVER)
    host = hosts.start("one")
    with running_proxy(tmp_path) as proxy, silent_listener("127.0.0.2", proxy.port):
        arguments = ["--balancer", f"http://several.test:{proxy.port}", "--ollama", host.url, "--name", "one"]
        path = f"{tmp_path}:{ROOT}"
        with program(arguments, tmp_path, OLLAMA_BALANCER_TOKEN=TOKEN, PYTHONPATH=path) as reporter:
            proxy.wait_online("one")
            wait_until(lambda: "reporting every" in reporter.err, "it reports")
            assert "does not answer" not in reporter.err
