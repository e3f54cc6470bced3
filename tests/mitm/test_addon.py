from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.block import Block
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.test import taddons, tflow, tutils

from ollama_balancer.core import registry
from ollama_balancer.core.agent import Source, agent_id
from ollama_balancer.gateway.context import exchange_of
from ollama_balancer.mitm import options
from ollama_balancer.mitm.addon import Balancer
from ollama_balancer.storage import token as credentials

TOKEN = "some-token-for-tests"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(credentials.ENVIRONMENT, raising=False)
    monkeypatch.delenv(options.MODE_ENVIRONMENT, raising=False)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[tuple[Balancer, taddons.context]]:
    balancer = Balancer()
    with taddons.context(Proxyserver(), balancer) as running:
        running.configure(balancer, confdir=str(tmp_path), balancer_token=TOKEN)
        balancer._running = True
        yield balancer, running


def test_the_mode_can_be_changed_live_and_is_logged(
    context: tuple[Balancer, taddons.context], caplog: pytest.LogCaptureFixture
) -> None:
    balancer, running = context
    caplog.set_level(logging.INFO)
    assert balancer.registry.mode == "adaptive"
    running.configure(balancer, balancer_mode="roundrobin")
    assert balancer.registry.mode == "roundrobin"
    assert caplog.messages.count("Load balancer mode: roundrobin") == 1
    running.configure(balancer, balancer_retries=1)
    assert caplog.messages.count("Load balancer mode: roundrobin") == 1


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("balancer_mode", "least_requests", "fastest"),
        ("balancer_stale_after", 60, 0),
        ("balancer_retries", 1, -1),
        ("balancer_allow_from", ["8.8.8.8"], ["office"]),
        ("balancer_agents", ["a=http://10.0.0.1"], ["a=https://10.0.0.1"]),
        ("balancer_token", "another-token", "short"),
        ("stream_large_bodies", None, "1m"),
    ],
)
def test_a_bad_live_value_is_refused_and_the_old_one_stays(
    context: tuple[Balancer, taddons.context], name: str, good: object, bad: object
) -> None:
    balancer, running = context
    running.configure(balancer, **{name: good})
    before = balancer.settings
    with pytest.raises(exceptions.OptionsError, match=name):
        running.configure(balancer, **{name: bad})
    assert getattr(running.options, name) == good
    assert balancer.settings == before
    running.configure(balancer, balancer_connect_timeout=7)  # and goes on to work
    assert balancer.settings
    assert balancer.settings.connect_timeout == 7


def test_a_bad_value_at_the_start_is_one_logged_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    balancer = Balancer()
    with taddons.context(Proxyserver(), balancer) as starting:
        starting.configure(balancer, confdir=str(tmp_path), balancer_token=TOKEN)
        caplog.clear()
        starting.configure(balancer, balancer_mode="fastest")
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is None
    assert "balancer_mode" in errors[0].message
    assert "roundrobin" in errors[0].message


def test_settings_reach_those_who_keep_to_them(context: tuple[Balancer, taddons.context]) -> None:
    balancer, running = context
    running.configure(balancer, balancer_stale_after=77, balancer_retries=5, balancer_response_timeout=9000)
    assert balancer.registry.stale_after == 77
    assert balancer.router.dispatcher.retries == 5
    assert running.options.tcp_timeout > 9000
    assert running.options.connection_strategy == "lazy"


def test_static_agents_come_and_go_with_the_option(context: tuple[Balancer, taddons.context]) -> None:
    balancer, running = context
    running.configure(balancer, balancer_agents=["a=http://10.0.0.1,b=http://10.0.0.2"])
    assert [(agent.name, agent.source) for agent in balancer.registry] == [
        ("a", Source.STATIC),
        ("b", Source.STATIC),
    ]
    running.configure(balancer, balancer_agents=["b=http://10.0.0.3"])
    assert [(agent.name, agent.address.host) for agent in balancer.registry] == [("b", "10.0.0.3")]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"balancer_agents": ["b=http://10.0.0.3", "c=https://10.0.0.4"]}, "begin with http://"),
        ({"balancer_agents": ["b=http://10.0.0.3", f"{agent_id('b')}=http://10.0.0.4"]}, "another agent's id"),
        ({"balancer_agents": ["b=http://10.0.0.3"], "balancer_token": "short"}, "balancer_token"),
        ({"balancer_agents": ["b=http://10.0.0.3"], "balancer_retries": -1}, "balancer_retries"),
        ({"balancer_agents": ["b=http://10.0.0.3"], "balancer_mode": "fastest"}, "balancer_mode"),
        ({"balancer_token": "another-token", "balancer_agents": ["c=https://10.0.0.4"]}, "begin with http://"),
    ],
)
def test_a_live_change_that_is_refused_changes_nothing(
    context: tuple[Balancer, taddons.context], changes: dict[str, object], why: str
) -> None:
    balancer, running = context
    running.configure(balancer, balancer_agents=["a=http://10.0.0.1,b=http://10.0.0.2"])
    before = list(balancer.registry)
    revision, settings = balancer.registry.revision, balancer.settings
    with pytest.raises(exceptions.OptionsError, match=why):
        running.configure(balancer, **changes)
    assert list(balancer.registry) == before
    assert [agent.address.host for agent in before] == ["10.0.0.1", "10.0.0.2"]
    assert (balancer.registry.revision, balancer.settings) == (revision, settings)
    assert balancer.token
    assert balancer.token.value == TOKEN


def test_a_fleet_that_would_be_too_large_is_refused_before_anybody_leaves(
    context: tuple[Balancer, taddons.context], monkeypatch: pytest.MonkeyPatch
) -> None:
    balancer, running = context
    running.configure(balancer, balancer_agents=["a=http://10.0.0.1,b=http://10.0.0.2"])
    monkeypatch.setattr(registry, "MAX_AGENTS", 2)
    with pytest.raises(exceptions.OptionsError, match="the fleet has 2 agents, which is the most"):
        running.configure(balancer, balancer_agents=["c=http://10.0.0.3,d=http://10.0.0.4,e=http://10.0.0.5"])
    assert [agent.name for agent in balancer.registry] == ["a", "b"]
    running.configure(balancer, balancer_agents=["c=http://10.0.0.3,d=http://10.0.0.4"])
    assert [agent.name for agent in balancer.registry] == ["c", "d"]


def test_the_environment_gives_the_default_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(options.MODE_ENVIRONMENT, "least_requests")
    balancer = Balancer()
    with taddons.context(Proxyserver(), balancer) as running:
        running.configure(balancer, confdir=str(tmp_path), balancer_token=TOKEN)
        assert balancer.registry.mode == "least_requests"


def test_a_token_is_made_in_the_confdir(tmp_path: Path) -> None:
    balancer = Balancer()
    with taddons.context(Proxyserver(), balancer) as running:
        running.configure(balancer, confdir=str(tmp_path))
        assert balancer.token
        assert balancer.token.file == tmp_path / credentials.FILE_NAME


def test_the_token_is_taken_out_of_the_flow(context: tuple[Balancer, taddons.context]) -> None:
    balancer, _ = context
    flow = tflow.tflow(req=tutils.treq(path=b"/api/chat"))
    flow.request.headers["authorization"] = f"bearer  {TOKEN}"
    balancer.requestheaders(flow)
    assert "authorization" not in flow.request.headers


def test_another_services_key_is_kept_out_of_the_flow_and_for_the_agent(
    context: tuple[Balancer, taddons.context],
) -> None:
    balancer, _ = context
    flow = tflow.tflow(req=tutils.treq(path=b"/api/chat"))
    flow.request.headers["authorization"] = "Bearer someone-elses"
    balancer.requestheaders(flow)
    assert "authorization" not in flow.request.headers
    exchange = exchange_of(flow)
    assert exchange
    caller = exchange.caller
    assert caller.credentials == ((b"authorization", b"Bearer someone-elses"),)
    assert "someone" not in repr(caller)
    assert not caller.authorized


def test_connect_is_refused(context: tuple[Balancer, taddons.context]) -> None:
    balancer, _ = context
    flow = tflow.tflow()
    balancer.http_connect(flow)
    assert flow.response
    assert flow.response.status_code == 403


def test_the_mode_command_shows_and_changes_the_mode(context: tuple[Balancer, taddons.context]) -> None:
    balancer, running = context
    assert running.command(balancer.addons[0].mode) == "adaptive"
    assert running.command(balancer.addons[0].mode, "roundrobin") == "roundrobin"
    assert running.options.balancer_mode == "roundrobin"


def test_a_static_agent_named_like_anothers_id_is_refused_with_the_options_name(
    context: tuple[Balancer, taddons.context],
) -> None:
    balancer, running = context
    balancer._running = True
    taken = agent_id("a")
    with pytest.raises(exceptions.OptionsError, match=r"balancer_agents: .*another agent's id"):
        running.configure(balancer, balancer_agents=["a=http://10.0.0.1", f"{taken}=http://10.0.0.2"])
    assert [agent.name for agent in balancer.registry] == []


LOAD = """
import asyncio
import sys
from mitmproxy import options
from mitmproxy.tools import dump

async def load():
    master = dump.DumpMaster(options.Options(confdir={confdir!r}), with_termlog=False, with_dumper=False)
    sys.path.insert(0, {addon!r})
    from ollama_balancer.mitm.addon import balancer
    master.addons.add(balancer())
    print(*sorted(name for name in ("starlette", "pydantic", "httpx", "prometheus_client") if name in sys.modules))

asyncio.run(load())
"""


def test_what_takes_long_to_load_is_not_loaded_with_the_addon(tmp_path: Path) -> None:
    script = LOAD.format(confdir=str(tmp_path), addon=str(Path(__file__).parents[2] / "addon"))
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "\n"


def test_the_decision_on_public_addresses_is_the_balancers_and_follows_the_option(tmp_path: Path) -> None:
    balancer, proxyserver = Balancer(), Proxyserver()
    with taddons.context(Block(), proxyserver, balancer) as running:
        assert running.options.block_global
        running.configure(balancer, confdir=str(tmp_path), balancer_token=TOKEN)
        assert not running.options.block_global
        client = tflow.tclient_conn()
        client.peername = ("8.8.8.8", 1)
        proxyserver.connections[client.id] = SimpleNamespace(client=client)  # type: ignore[assignment]
        balancer.client_connected(client)
        assert balancer.strangers == {client.id}
        running.configure(balancer, balancer_allow_from=["8.8.8.0/24"])
        assert balancer.strangers == set()
        running.configure(balancer, balancer_allow_from=[])
        assert balancer.strangers == {client.id}
        balancer.client_disconnected(client)
        assert balancer.strangers == set()
