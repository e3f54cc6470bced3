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
from ollama_balancer.mitm.addons import BalancerAddon
from ollama_balancer.mitm.flows import context_of
from ollama_balancer.settings import options
from ollama_balancer.storage import token as credentials

TOKEN = "some-token-for-tests"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(credentials.ENVIRONMENT, raising=False)
    monkeypatch.delenv(options.MODE_ENVIRONMENT, raising=False)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[tuple[BalancerAddon, taddons.context]]:
    addon = BalancerAddon()
    with taddons.context(Proxyserver(), addon) as running:
        running.configure(addon, confdir=str(tmp_path), balancer_token=TOKEN)
        addon.balancer.running = True
        yield addon, running


def test_the_mode_can_be_changed_live_and_is_logged(
    context: tuple[BalancerAddon, taddons.context], caplog: pytest.LogCaptureFixture
) -> None:
    addon, running = context
    caplog.set_level(logging.INFO)
    assert addon.balancer.registry.mode == "adaptive"
    running.configure(addon, balancer_mode="roundrobin")
    assert addon.balancer.registry.mode == "roundrobin"
    assert caplog.messages.count("Load balancer mode: roundrobin") == 1
    running.configure(addon, balancer_retries=1)
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
    context: tuple[BalancerAddon, taddons.context], name: str, good: object, bad: object
) -> None:
    addon, running = context
    running.configure(addon, **{name: good})
    before = addon.balancer.settings
    with pytest.raises(exceptions.OptionsError, match=name):
        running.configure(addon, **{name: bad})
    assert getattr(running.options, name) == good
    assert addon.balancer.settings == before
    running.configure(addon, balancer_connect_timeout=7)  # and goes on to work
    assert addon.balancer.settings
    assert addon.balancer.settings.connect_timeout == 7


def test_a_bad_value_at_the_start_is_one_logged_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    addon = BalancerAddon()
    with taddons.context(Proxyserver(), addon) as starting:
        starting.configure(addon, confdir=str(tmp_path), balancer_token=TOKEN)
        caplog.clear()
        starting.configure(addon, balancer_mode="fastest")
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is None
    assert "balancer_mode" in errors[0].message
    assert "roundrobin" in errors[0].message


def test_settings_reach_those_who_keep_to_them(context: tuple[BalancerAddon, taddons.context]) -> None:
    addon, running = context
    running.configure(addon, balancer_stale_after=77, balancer_retries=5, balancer_response_timeout=9000)
    assert addon.balancer.registry.stale_after == 77
    assert addon.balancer.gateway.router.retries == 5
    assert running.options.tcp_timeout > 9000
    assert running.options.connection_strategy == "lazy"


def test_static_agents_come_and_go_with_the_option(context: tuple[BalancerAddon, taddons.context]) -> None:
    addon, running = context
    running.configure(addon, balancer_agents=["a=http://10.0.0.1,b=http://10.0.0.2"])
    assert [(agent.name, agent.source) for agent in addon.balancer.registry] == [
        ("a", Source.STATIC),
        ("b", Source.STATIC),
    ]
    running.configure(addon, balancer_agents=["b=http://10.0.0.3"])
    assert [(agent.name, agent.address.host) for agent in addon.balancer.registry] == [("b", "10.0.0.3")]


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
    context: tuple[BalancerAddon, taddons.context], changes: dict[str, object], why: str
) -> None:
    addon, running = context
    running.configure(addon, balancer_agents=["a=http://10.0.0.1,b=http://10.0.0.2"])
    before = list(addon.balancer.registry)
    revision, settings = addon.balancer.registry.revision, addon.balancer.settings
    with pytest.raises(exceptions.OptionsError, match=why):
        running.configure(addon, **changes)
    assert list(addon.balancer.registry) == before
    assert [agent.address.host for agent in before] == ["10.0.0.1", "10.0.0.2"]
    assert (addon.balancer.registry.revision, addon.balancer.settings) == (revision, settings)
    assert addon.balancer.token
    assert addon.balancer.token.value == TOKEN


def test_a_fleet_that_would_be_too_large_is_refused_before_anybody_leaves(
    context: tuple[BalancerAddon, taddons.context], monkeypatch: pytest.MonkeyPatch
) -> None:
    addon, running = context
    running.configure(addon, balancer_agents=["a=http://10.0.0.1,b=http://10.0.0.2"])
    monkeypatch.setattr(registry, "MAX_AGENTS", 2)
    with pytest.raises(exceptions.OptionsError, match="the fleet has 2 agents, which is the maximum"):
        running.configure(addon, balancer_agents=["c=http://10.0.0.3,d=http://10.0.0.4,e=http://10.0.0.5"])
    assert [agent.name for agent in addon.balancer.registry] == ["a", "b"]
    running.configure(addon, balancer_agents=["c=http://10.0.0.3,d=http://10.0.0.4"])
    assert [agent.name for agent in addon.balancer.registry] == ["c", "d"]


def test_the_environment_gives_the_default_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(options.MODE_ENVIRONMENT, "least_requests")
    addon = BalancerAddon()
    with taddons.context(Proxyserver(), addon) as running:
        running.configure(addon, confdir=str(tmp_path), balancer_token=TOKEN)
        assert addon.balancer.registry.mode == "least_requests"


def test_a_token_is_made_in_the_confdir(tmp_path: Path) -> None:
    addon = BalancerAddon()
    with taddons.context(Proxyserver(), addon) as running:
        running.configure(addon, confdir=str(tmp_path))
        assert addon.balancer.token
        assert addon.balancer.token.file == tmp_path / credentials.FILE_NAME


def test_the_token_is_taken_out_of_the_flow(context: tuple[BalancerAddon, taddons.context]) -> None:
    addon, _ = context
    flow = tflow.tflow(req=tutils.treq(path=b"/api/chat"))
    flow.request.headers["authorization"] = f"bearer  {TOKEN}"
    addon.requests.requestheaders(flow)
    assert "authorization" not in flow.request.headers


def test_another_services_key_is_kept_out_of_the_flow_and_for_the_agent(
    context: tuple[BalancerAddon, taddons.context],
) -> None:
    addon, _ = context
    flow = tflow.tflow(req=tutils.treq(path=b"/api/chat"))
    flow.request.headers["authorization"] = "Bearer someone-elses"
    addon.requests.requestheaders(flow)
    assert "authorization" not in flow.request.headers
    found = context_of(flow)
    assert found
    caller = found.caller
    assert caller.credentials == ((b"authorization", b"Bearer someone-elses"),)
    assert "someone" not in repr(caller)
    assert not caller.authorized


def test_connect_is_refused(context: tuple[BalancerAddon, taddons.context]) -> None:
    addon, _ = context
    flow = tflow.tflow()
    addon.requests.http_connect(flow)
    assert flow.response
    assert flow.response.status_code == 403


def test_the_mode_command_shows_and_changes_the_mode(context: tuple[BalancerAddon, taddons.context]) -> None:
    addon, running = context
    assert running.command(addon.commands.mode) == "adaptive"
    assert running.command(addon.commands.mode, "roundrobin") == "roundrobin"
    assert running.options.balancer_mode == "roundrobin"


def test_a_static_agent_named_like_anothers_id_is_refused_with_the_options_name(
    context: tuple[BalancerAddon, taddons.context],
) -> None:
    addon, running = context
    addon.balancer.running = True
    taken = agent_id("a")
    with pytest.raises(exceptions.OptionsError, match=r"balancer_agents: .*another agent's id"):
        running.configure(addon, balancer_agents=["a=http://10.0.0.1", f"{taken}=http://10.0.0.2"])
    assert [agent.name for agent in addon.balancer.registry] == []


LOAD = """
import asyncio
import sys
from mitmproxy import options
from mitmproxy.tools import dump

async def load():
    master = dump.DumpMaster(options.Options(confdir={confdir!r}), with_termlog=False, with_dumper=False)
    sys.path.insert(0, {addon!r})
    from ollama_balancer.mitm.addons import the_addon
    master.addons.add(the_addon())
    print(*sorted(name for name in ("starlette", "pydantic", "httpx", "prometheus_client") if name in sys.modules))

asyncio.run(load())
"""


@pytest.mark.e2e
def test_what_takes_long_to_load_is_not_loaded_with_the_addon(tmp_path: Path) -> None:
    script = LOAD.format(confdir=str(tmp_path), addon=str(Path(__file__).parents[2] / "addon"))
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "\n"


def test_the_decision_on_public_addresses_is_the_balancers_and_follows_the_option(tmp_path: Path) -> None:
    addon, proxyserver = BalancerAddon(), Proxyserver()
    with taddons.context(Block(), proxyserver, addon) as running:
        assert running.options.block_global
        running.configure(addon, confdir=str(tmp_path), balancer_token=TOKEN)
        assert not running.options.block_global
        client = tflow.tclient_conn()
        client.peername = ("8.8.8.8", 1)
        proxyserver.connections[client.id] = SimpleNamespace(client=client)  # type: ignore[assignment]
        addon.connections.client_connected(client)
        assert addon.balancer.blocked_clients == {client.id}
        running.configure(addon, balancer_allow_from=["8.8.8.0/24"])
        assert addon.balancer.blocked_clients == set()
        running.configure(addon, balancer_allow_from=[])
        assert addon.balancer.blocked_clients == {client.id}
        addon.connections.client_disconnected(client)
        assert addon.balancer.blocked_clients == set()
