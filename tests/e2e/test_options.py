"""Options at the start: what is accepted, what is refused and how."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import PATIENCE, Hosts, refused_start, running_proxy, wait_until


@pytest.mark.parametrize("mode", ["roundrobin", "metrics", "least_requests", "adaptive"])
def test_the_start_up_log_names_the_mode_of_the_environment(tmp_path: Path, mode: str) -> None:
    with running_proxy(tmp_path, env={"LOAD_BALANCER_MODE": mode}) as proxy:
        wait_until(lambda: f"Load balancer mode: {mode}" in proxy.log, "the mode is logged")
        assert proxy.http.get("/api/balancer").json()["mode"] == mode


def test_the_option_wins_over_the_environment_and_adaptive_is_the_default(tmp_path: Path) -> None:
    option = ("--set", "balancer_mode=least_requests")
    with running_proxy(tmp_path, *option, env={"LOAD_BALANCER_MODE": "roundrobin"}) as proxy:
        wait_until(lambda: "Load balancer mode: least_requests" in proxy.log, "the mode is logged")
    with running_proxy(tmp_path) as proxy:
        wait_until(lambda: "Load balancer mode: adaptive" in proxy.log, "the mode is logged")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("balancer_mode=fastest", "it takes one of roundrobin, metrics, least_requests, adaptive"),
        ("balancer_agents=gpu-1", "it takes http://host:port or name=http://host:port"),
        ("balancer_agents=https://gpu-1:443", "begin with http://"),
        ("balancer_stale_after=0", "whole number from 1"),
        ("balancer_retries=-1", "whole number from 0"),
        ("balancer_retries=many", "integer"),
        (
            "balancer_agent=http://127.0.0.1:1",
            "there is no such option; did you mean balancer_agents? The balancer's options are balancer_access, ",
        ),
        ("balancer_token=short", "8 to 512 visible ASCII characters"),
        ("balancer_allow_from=office", "it takes addresses and networks such as 203.0.113.7"),
        ("stream_large_bodies=1m", "cannot be used with the balancer"),
    ],
)
def test_a_bad_value_is_refused_at_the_start_with_its_name(tmp_path: Path, setting: str, says: str) -> None:
    status, output = refused_start(tmp_path, "--set", setting)
    assert status != 0
    assert setting.partition("=")[0] in output
    assert says in output
    assert "Traceback" not in output
    assert "Load balancer mode" not in output


@pytest.mark.parametrize(
    ("arguments", "stray"),
    [
        (["balancer_agents=a=http://127.0.0.1:1,", "b=http://127.0.0.1:2"], "b=http://127.0.0.1:2"),
        (["balancer_agents=http://127.0.0.1:1", ",http://127.0.0.1:2"], ",http://127.0.0.1:2"),
        (["balancer_agents=a=http://127.0.0.1:1,", "b=https://127.0.0.1:2"], "b=https://127.0.0.1:2"),
        (["balancer_origins=https://a.test,", "https://b.test"], "https://b.test"),
    ],
)
def test_the_rest_of_a_list_that_a_blank_cuts_off_is_refused(tmp_path: Path, arguments: list[str], stray: str) -> None:
    status, output = refused_start(tmp_path, "--set", *arguments)
    assert status != 0
    assert f"{arguments[0].partition('=')[0]}: {stray!r} is not part of the option" in output
    assert "or quote it: --set 'NAME=ONE, TWO'" in output
    assert "Traceback" not in output
    assert "Load balancer mode" not in output


def test_a_list_in_one_argument_may_have_blanks_and_a_filter_of_flows_stays_one(tmp_path: Path) -> None:
    agents = "balancer_agents=a=http://127.0.0.1:1, b=http://127.0.0.1:2 ,c=http://127.0.0.1:3"
    with running_proxy(tmp_path, "--set", agents, "~u http://127.0.0.1:1 | ~d example.test") as proxy:
        assert list(proxy.agents()) == ["a", "b", "c"]


def test_an_unknown_mode_in_the_environment_is_refused(tmp_path: Path) -> None:
    status, output = refused_start(tmp_path, env={"LOAD_BALANCER_MODE": "fastest"}, by_script=True)
    assert status != 0
    assert "$LOAD_BALANCER_MODE" in output
    assert "roundrobin, metrics, least_requests" in output


def test_it_starts_from_any_directory_with_no_agent_and_says_what_to_do_next(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with running_proxy(tmp_path, "--set", "balancer_demo=0", cwd=elsewhere) as proxy:
        wait_until(lambda: "--set balancer_agents=http://HOST:11434" in proxy.log, "it says what to do")
        if proxy.agents():
            pytest.skip("an Ollama runs on this machine")
        response = proxy.generate()
        assert response.status_code == 503
        assert "ollama-agent-reporter" in response.json()["error"]


def test_an_ollama_on_this_machine_is_taken_in_when_nothing_is_configured(tmp_path: Path, hosts: Hosts) -> None:
    try:
        hosts.start("here", port=11434)
    except OSError:
        pytest.skip("port 11434 is taken on this machine")
    with running_proxy(tmp_path) as proxy:
        assert proxy.generate().headers["X-Balancer-Agent"] == "local"
        assert proxy.agents()["local"]["source"] == "local"


def test_the_log_offers_clients_only_an_address_that_they_can_reach(tmp_path: Path) -> None:
    offer = re.compile(r"Clients: .*set OLLAMA_HOST=(\S+), or use it")
    with running_proxy(tmp_path, "--set", "balancer_demo=0") as proxy:
        wait_until(lambda: "mitmproxy listens on this machine only" in proxy.log, "it is said")
        assert offer.findall(proxy.log) == [proxy.url]
        assert "Clients:    on this machine, " in proxy.log
    with running_proxy(tmp_path, "--listen-host", "0.0.0.0") as proxy:
        [url] = wait_until(lambda: offer.findall(proxy.log), "it is offered")
        assert url != proxy.url
        assert "this machine only" not in proxy.log
        if "THIS-HOST" not in url:
            assert httpx.get(f"{url}/health", trust_env=False, timeout=PATIENCE).status_code in (200, 503)


def test_a_token_file_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ollama-balancer-token").mkdir()
    status, output = refused_start(tmp_path, by_script=True)
    assert status != 0
    assert "ollama-balancer-token" in output
    assert "$OLLAMA_BALANCER_TOKEN" in output
    assert "Traceback" not in output
