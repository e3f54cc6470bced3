"""What a person sees in the terminal of a real mitmdump, and in mitmweb's event log."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import httpx

from tests.e2e.harness import PATIENCE, Hosts, command, free_port, stream_lines, wait_until
from tests.e2e.test_console import Terminal
from tests.e2e.test_failover import two_agents
from tests.e2e.web import running_mitmweb

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
HELLO = [{"role": "user", "content": "hi"}]
TIME = r"\d\d:\d\d:\d\d  "


def test_a_terminal_has_a_coloured_line_for_each_request_and_none_for_connections(tmp_path: Path) -> None:
    port = free_port()
    terminal = Terminal(command(tmp_path, port, "--set", "balancer_demo=2"), tmp_path)
    try:
        terminal.wait_for("More hosts:")
        block = terminal.seen
        assert "Load balancer mode: adaptive" in block
        assert re.search(r"Agents:     demo-1  online +llama3.2, nomic-embed-text, qwen3 \(simulated\)\r\n", block)
        assert re.search(rf"Dashboard:  http://127.0.0.1:{port}/dashboard", block)
        assert "Access:     open to all programs on this machine" in block
        assert "Next:       curl http" in block
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as client:
            answer = client.post("/api/generate", json={"model": "llama3.2", "prompt": "hi", "stream": False}).json()
            assert "simulated" in answer["response"]
            with client.stream("POST", "/api/chat", json={"model": "llama3.2", "messages": HELLO}) as response:
                response.read()
            client.post("/api/chat", json={"model": "x\x1b[2J\n\u202evil", "messages": []})
            client.get("/api/tags")
            client.get("/api/agents")
        terminal.wait_for(f"{answer['eval_count']} tokens", "model 'x [2J  vil' not found")
        shown = terminal.seen
        assert re.search(TIME + r"demo-1 +llama3.2 +200 +\d+ tok/s  in \d\.\d+ s +\d+ tokens  loaded 0.50 s\r\n", shown)
        assert re.search(
            TIME + r"demo-1 +llama3.2 +200  POST /api/chat\r\n|TTFT 0\.\d\d s +\d+ tokens  warm\r\n", shown
        )
        assert not re.search("connect|/api/tags|/api/agents|<<", shown.split("More hosts:")[1].partition("\n")[2])
        raw = terminal._seen.decode("utf-8", "replace")
        assert re.search(r"\x1b\[32m200\x1b\[0m", raw)
        assert set(re.findall(r"\x1b\[[^m]*.", raw)) == set(COLOUR.findall(raw)), "no other escapes than colours"
    finally:
        terminal.process.terminate()
        terminal.process.wait(PATIENCE)


def test_trouble_has_a_second_line_that_says_what_was_tried(tmp_path: Path, hosts: Hosts) -> None:
    with two_agents(tmp_path, hosts) as (proxy, bad, _):
        bad.faults.status = 502
        assert proxy.generate().headers["X-Balancer-Agent"] == "good"
        bad.faults.status = None
        bad.faults.cut_after_chunks = 2
        with suppress(httpx.HTTPError):
            stream_lines(proxy, "/api/generate", {"model": "llama3.2", "prompt": "hi"})
        refused = proxy.http.post("/api/chat", json={}, headers={"Origin": "http://evil.test"})
        assert refused.status_code == 403
        bad.faults.cut_after_chunks, bad.faults.hang = None, True
        with suppress(httpx.ReadTimeout):
            proxy.http.post("/api/generate", json={"model": "llama3.2", "prompt": "hi"}, timeout=0.2)
        wait_until(lambda: "the client left" in proxy.log, "it is said")
        log = proxy.log
    assert re.search(r"\n" + TIME + r"good +llama3.2 +200 .* tokens .*\n {10}tried first: bad \(.*502", log)
    assert re.search(r"\n" + TIME + r"bad +llama3.2 +err  POST /api/generate\n {10}agent bad failed in the middle", log)
    assert re.search(r"\n" + TIME + r"- +- +403  POST /api/chat\n {10}web pages of http://evil.test may not call", log)
    assert "failed before its first byte" not in log
    assert "client connect" not in log
    assert "server connect" not in log
    assert "\x1b" not in log, "a pipe gets no colours"


def test_mitmwebs_event_log_has_the_same_words(tmp_path: Path, hosts: Hosts) -> None:
    agents = f"balancer_agents=one={hosts.start('one').url}"
    with running_mitmweb(tmp_path, "--set", agents) as (proxy, web):
        assert proxy.generate().status_code == 200
        wait_until(lambda: "More hosts" in web.events(), "the overview is there")
        assert re.search(r"one  llama3.2  200  \d+ tok/s  in \d\.\d+ s  \d+ tokens  (loaded|warm)", web.events())
        assert "Agents:     one  online" in web.events()
        assert "client connect" not in web.events()
        assert f"{proxy.url}/dashboard" in proxy.log
