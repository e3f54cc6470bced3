"""The end of the program loses nothing: what runs is finished, and who had registered is known again."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ollama_balancer.simulator import SimulatedOllama, Timing
from tests.e2e.harness import PATIENCE, ROOT, Hosts, Proxy, free_port, running_proxy, stream_lines, wait_until

SLOW = Timing(load=0, prefill_rate=1e6, decode_rate=15, output_tokens=30, num_parallel=4)
ENDLESS = Timing(load=0, prefill_rate=1e6, decode_rate=10, output_tokens=1_000_000, num_parallel=4)
STATE = "ollama-balancer-agents.json"


class Stream(threading.Thread):
    """A stream that is being read; its first line has come."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(daemon=True)
        self.proxy = proxy
        self.lines: list[dict[str, object]] = []
        self.broken: Exception | None = None
        seen: queue.Queue[bytes] = queue.Queue()
        self.seen = seen
        self.start()
        seen.get(timeout=PATIENCE)

    def run(self) -> None:
        try:
            self.lines = stream_lines(self.proxy, "/api/generate", {"model": "llama3.2", "prompt": "x"}, self.seen)
        except httpx.TransportError as e:
            self.broken = e


@contextmanager
def streaming(
    tmp_path: Path, hosts: Hosts, timing: Timing, *arguments: str, by_script: bool = False
) -> Iterator[tuple[Proxy, Stream]]:
    host = hosts.start("one", timing=timing)
    agents = ("--set", f"balancer_agents=one={host.url}")
    with running_proxy(tmp_path, *agents, *arguments, by_script=by_script) as proxy:
        proxy.wait_online("one")
        yield proxy, Stream(proxy)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_running_stream_is_finished_and_nothing_new_is_taken(
    tmp_path: Path, hosts: Hosts, number: signal.Signals
) -> None:
    with streaming(tmp_path, hosts, SLOW, by_script=True) as (proxy, stream):
        proxy.process.send_signal(number)
        wait_until(lambda: proxy.http.get("/health").status_code == 503, "it says that it is ending")
        refused = proxy.generate()
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert "shutting down" in refused.json()["error"]
        assert proxy.http.get("/api/agents").status_code == 200
        stream.join(PATIENCE)
        assert stream.broken is None
        assert stream.lines[-1]["done"] is True
        assert proxy.process.wait(PATIENCE) == 0
        assert "Shutting down: 1 running requests get up to 30 s" in proxy.log


@pytest.mark.usefixtures("either_way")
def test_what_takes_longer_than_the_timeout_is_cut(tmp_path: Path, hosts: Hosts) -> None:
    with streaming(tmp_path, hosts, ENDLESS, "--set", "balancer_stop_timeout=1") as (proxy, stream):
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(PATIENCE) == 0
        stream.join(PATIENCE)
        assert stream.broken is not None
        assert "Shut down with 1 requests unfinished after 1 s." in proxy.log
        wait_until(lambda: hosts.all[0].in_flight == 0, "the host is told")


def test_asked_twice_it_ends_at_once(tmp_path: Path, hosts: Hosts) -> None:
    with streaming(tmp_path, hosts, ENDLESS, "--set", "balancer_stop_timeout=3600") as (proxy, _):
        proxy.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Shutting down" in proxy.log, "it waits")
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(PATIENCE) == 0


def test_a_request_that_waits_in_the_line_is_served_before_the_end(tmp_path: Path, hosts: Hosts) -> None:
    with streaming(tmp_path, hosts, SLOW, "--set", "balancer_slots=1") as (proxy, stream):
        waiting: list[httpx.Response] = []
        waiter = threading.Thread(target=lambda: waiting.append(proxy.generate()), daemon=True)
        waiter.start()
        wait_until(lambda: proxy.http.get("/api/balancer").json()["waiting"] == 1, "one waits")
        proxy.process.send_signal(signal.SIGTERM)
        waiter.join(PATIENCE)
        stream.join(PATIENCE)
        assert waiting[0].status_code == 200
        assert waiting[0].json()["done"] is True
        assert stream.lines[-1]["done"] is True
        assert proxy.process.wait(PATIENCE) == 0
        assert "2 running requests get up to" in proxy.log


def test_each_protocol_is_told_in_its_own_words_that_it_ends(tmp_path: Path, hosts: Hosts) -> None:
    with streaming(tmp_path, hosts, ENDLESS) as (proxy, _):
        proxy.process.send_signal(signal.SIGTERM)
        wait_until(lambda: proxy.http.get("/health").status_code == 503, "it says that it is ending")
        chat = {"model": "llama3.2", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
        openai = proxy.http.post("/v1/chat/completions", json=chat)
        anthropic = proxy.http.post("/v1/messages", json=chat)
        everywhere = proxy.http.post("/api/pull", json={"model": "qwen3"})
        upload = proxy.http.post(f"/api/blobs/sha256:{'0' * 64}", content=b"x" * 100_000)
        for refused in (openai, anthropic, everywhere, upload):
            assert refused.status_code == 503
            assert refused.headers["Retry-After"]
        assert "shutting down" in openai.json()["error"]["message"]
        assert anthropic.json()["type"] == "error"
        assert "shutting down" in anthropic.json()["error"]["message"]
        assert "shutting down" in everywhere.json()["error"]
        assert "shutting down" in upload.json()["error"]
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(PATIENCE) == 0


def finishes_what_runs(proxy: Proxy) -> None:
    stream = Stream(proxy)
    proxy.process.send_signal(signal.SIGTERM)
    stream.join(PATIENCE)
    assert stream.broken is None
    assert stream.lines[-1]["done"] is True
    assert proxy.process.wait(PATIENCE) == 0


def test_it_waits_after_a_reload_of_the_script_too(tmp_path: Path, hosts: Hosts) -> None:
    copy = tmp_path / "addon"
    shutil.copytree(ROOT / "addon", copy, ignore=shutil.ignore_patterns("__pycache__"))
    host = hosts.start("one", timing=SLOW)
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}", addon=copy / "balancer.py") as proxy:
        proxy.wait_online("one")
        loaded = proxy.log.count("Loading script")
        (copy / "balancer.py").touch()
        wait_until(lambda: proxy.log.count("Loading script") > loaded, "the script is loaded again")
        finishes_what_runs(proxy)


def test_without_the_addon_the_program_ends_as_ever(tmp_path: Path, hosts: Hosts) -> None:
    copy = tmp_path / "addon"
    shutil.copytree(ROOT / "addon", copy, ignore=shutil.ignore_patterns("__pycache__"))
    host = hosts.start("one", timing=ENDLESS)
    options = ("--set", f"balancer_agents=one={host.url}", "--set", "balancer_stop_timeout=3600")
    with running_proxy(tmp_path, *options, addon=copy / "balancer.py") as proxy:
        proxy.wait_online("one")
        Stream(proxy)
        (copy / "balancer.py").unlink()
        wait_until(lambda: "Removing script" in proxy.log, "the script is gone")
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(PATIENCE) == 0
        assert "Shutting down" not in proxy.log


def test_mitmweb_finishes_what_runs_too(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one", timing=SLOW)
    web = ("--no-web-open-browser", "--web-port", str(free_port()))
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}", *web, tool="mitmweb") as proxy:
        proxy.wait_online("one")
        finishes_what_runs(proxy)


def test_connections_without_a_request_hold_up_nothing(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    with running_proxy(
        tmp_path, "--set", f"balancer_agents=one={host.url}", "--set", "balancer_stop_timeout=3600"
    ) as proxy:
        proxy.wait_online("one")
        assert proxy.generate().status_code == 200
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(PATIENCE) == 0


def test_who_had_registered_is_known_after_a_restart(tmp_path: Path, hosts: Hosts) -> None:
    one, two = hosts.start("one"), hosts.start("two")
    with running_proxy(tmp_path) as proxy:
        ids = {name: proxy.register(name, host.url) for name, host in (("one", one), ("two", two))}
        proxy.register("three", "http://127.0.0.1:9")
        proxy.register("four", "http://127.0.0.1:9")
        proxy.control("DELETE", "/api/agents/four")
        proxy.control("POST", "/api/agents/two/drain")
        proxy.control("POST", "/api/agents/three/drain", {"until": "registration"})
    state = tmp_path / STATE
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    with running_proxy(tmp_path, "--set", "balancer_agents=three=http://127.0.0.1:7") as proxy:
        proxy.wait_online("one")
        agents = proxy.agents()
        assert set(agents) == {"one", "two", "three"}
        assert {name: agents[name]["id"] for name in ids} == ids
        wait_until(lambda: proxy.agents()["two"]["status"] == "draining", "it still drains")
        assert (agents["three"]["source"], agents["three"]["url"]) == ("static", "http://127.0.0.1:7")
        assert proxy.generate().headers["X-Balancer-Agent"] == "one"
    assert [agent["name"] for agent in json.loads(state.read_text())["agents"]] == ["one", "two"]


def test_what_has_changed_is_kept_though_the_program_is_killed(tmp_path: Path) -> None:
    with running_proxy(tmp_path) as proxy:
        proxy.register("one", "http://127.0.0.1:9")
        wait_until(lambda: "one" in (tmp_path / STATE).read_text() if (tmp_path / STATE).exists() else False, "written")
        proxy.process.kill()
        proxy.process.wait(PATIENCE)
    with running_proxy(tmp_path) as proxy:
        assert set(proxy.agents()) == {"one"}
        assert "Restored 1 registered agent." in proxy.log


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Invalid JSON"),
        (b'{"version": 1, "agents": [', "Invalid JSON"),
        (b'{"version": 2, "agents": []}', "version"),
        (b'{"version": 1, "agents": [{"name": "x", "url": "ftp://h"}]}', "http://"),
        (b"\xff\xfe\x00", "Invalid JSON"),
    ],
)
def test_a_damaged_file_is_set_aside_with_a_warning(tmp_path: Path, content: bytes, why: str) -> None:
    state = tmp_path / STATE
    state.write_bytes(content)
    with running_proxy(tmp_path) as proxy:
        assert proxy.agents() == {}
        assert (tmp_path / f"{STATE}.damaged").read_bytes() == content
        assert "it was renamed to" in proxy.log
        assert why in proxy.log
        proxy.register("one", "http://127.0.0.1:9")
    assert "one" in state.read_text()


def test_a_file_that_cannot_be_written_is_a_warning_and_no_more(tmp_path: Path, hosts: Hosts) -> None:
    host: SimulatedOllama = hosts.start("one")
    os.mkdir(tmp_path / STATE)
    with running_proxy(tmp_path) as proxy:
        proxy.register("one", host.url)
        proxy.wait_online("one")
        assert proxy.generate().status_code == 200
        assert proxy.log.count(f"cannot be read from {tmp_path / STATE}") == 1


def test_a_disk_that_takes_nothing_for_a_while_is_tried_again(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    state = tmp_path / STATE
    with running_proxy(tmp_path) as proxy:
        proxy.agents()  # then the file has been looked for
        state.mkdir()
        proxy.register("one", host.url)
        wait_until(lambda: f"cannot be saved to {state}" in proxy.log, "the warning")
        proxy.register("two", "http://127.0.0.1:9")
        proxy.wait_online("one")
        assert proxy.generate().status_code == 200
        state.rmdir()
    assert proxy.log.count("cannot be saved") == 1
    assert [agent["name"] for agent in json.loads(state.read_text())["agents"]] == ["one", "two"]
    assert list(tmp_path.glob(f"{STATE}*")) == [state]


def test_nothing_is_stale_because_the_balancer_itself_was_stopped(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    options = ("--set", f"balancer_agents=one={host.url}", "--set", "balancer_stale_after=4")
    with running_proxy(tmp_path, *options) as proxy:
        proxy.wait_online("one")
        proxy.report("one")
        proxy.process.send_signal(signal.SIGSTOP)
        threading.Event().wait(5)  # longer than the report counts
        proxy.process.send_signal(signal.SIGCONT)
        assert not proxy.agents()["one"]["stale"]
