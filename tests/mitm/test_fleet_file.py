"""What the fleet file does to a balancer: each of its settings, and each way in which the file changes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.test import taddons, tflow, tutils

from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent
from ollama_balancer.mitm import fleet_file
from ollama_balancer.mitm.addons import BalancerAddon
from ollama_balancer.mitm.flows import context_of
from ollama_balancer.mitm.shared_stream import NAMED_HOST
from ollama_balancer.settings.fleet_file import AgentEntry, FleetFile, Options
from ollama_balancer.settings.options import MODE_ENVIRONMENT, TABLE
from tests import jumping_loop

TOKEN = "some-token-for-tests"


class Fixture:
    """A balancer with a fleet file, whose time is not the machine's."""

    def __init__(self, folder: Path, running: taddons.context, addon: BalancerAddon) -> None:
        self.path = folder / "fleet.yaml"
        self.running = running
        self.addon = addon
        self.balancer = addon.balancer

    def start(self, text: str) -> None:
        self.path.write_text(text)
        self.running.configure(self.addon, balancer_config=str(self.path))
        self.balancer.running = True

    def write(self, text: str) -> None:
        """As many editors do."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, self.path)
        self.look()

    def look(self) -> None:
        async def look() -> None:
            configuration = self.addon.configuration
            await configuration.fleet_file.look(configuration.use_fleet)
            await asyncio.sleep(0)  # agents come after all have accepted

        jumping_loop.run(look())

    @property
    def agents(self) -> list[str]:
        return [agent.name for agent in self.balancer.registry]

    def agent(self, name: str) -> Agent:
        agent = self.balancer.registry.get(name)
        assert agent
        return agent


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Fixture]:
    monkeypatch.delenv(MODE_ENVIRONMENT, raising=False)
    caplog.set_level(logging.INFO)
    addon = BalancerAddon()
    with taddons.context(Proxyserver(), addon) as running:
        running.configure(addon, confdir=str(tmp_path), balancer_token=TOKEN)
        yield Fixture(tmp_path, running, addon)


def at_use(name: str) -> Callable[[BalancerAddon], object]:
    """Read from the settings whenever it is needed."""
    return lambda addon: getattr(addon.balancer.settings, name)


def client_of(addon: BalancerAddon) -> object:
    """Who a request comes from that a proxy on this machine passes on."""
    flow = tflow.tflow(req=tutils.treq(path=b"/api/chat"))
    flow.request.headers["x-forwarded-for"] = "203.0.113.7"
    addon.requests.requestheaders(flow)
    context = context_of(flow)
    assert context
    return context.caller.address


def status_for_host(addon: BalancerAddon) -> object:
    """The status that a request for another name gets over loopback; None: it is let in."""
    flow = tflow.tflow(req=tutils.treq(path=b"/api/chat"))
    flow.client_conn.sockname = ("127.0.0.1", 8080)
    flow.request.headers["host"] = vars(flow.request)[NAMED_HOST] = "proxy.test"
    addon.requests.requestheaders(flow)
    return flow.response.status_code if flow.response else None


OPTIONS: dict[str, tuple[object, Callable[[BalancerAddon], object], object]] = {
    "mode": ("roundrobin", lambda addon: addon.balancer.registry.mode, "roundrobin"),
    "demo": (2, at_use("demo"), 2),
    "stale_after": (77, lambda addon: addon.balancer.registry.stale_after, 77),
    "connect_timeout": (7, lambda addon: addon.balancer.gateway.timeouts.connect, 7),
    "response_timeout": (78, lambda addon: addon.balancer.gateway.timeouts.response, 78),
    "stream_idle_timeout": (79, lambda addon: addon.balancer.gateway.watchdog.idle_seconds, 79),
    "retries": (9, lambda addon: addon.balancer.gateway.router.retries, 9),
    "preload": (False, lambda addon: addon.balancer.registry.preloading.on, False),
    "slots": (3, lambda addon: addon.balancer.registry.slots, 3),
    "queue_size": (11, lambda addon: addon.balancer.gateway.router.queue.size, 11),
    "queue_timeout": (12, lambda addon: addon.balancer.gateway.timeouts.queue, 12),
    "stop_timeout": (13, at_use("stop_timeout"), 13),
    "keep_flows": (14, lambda addon: addon.balancer.flows.keep, 14),
    "body_limit": ("5k", at_use("body_limit"), 5 * 1024),
    "memory": ("512m", lambda addon: addon.balancer.budget.limit, 512 * 1024**2),
    "show_control": (True, lambda addon: addon.balancer.flows.show_control, True),
    "relay": (False, at_use("relay"), False),
    "relay_selector": (False, at_use("relay_selector"), False),
    "lean": (False, lambda addon: addon.balancer.hooks and addon.balancer.hooks.on, False),
    "announce": (True, at_use("announce"), True),
    "hosts": (["proxy.test"], status_for_host, None),
    "allow_from": (
        ["203.0.113.0/24"],
        lambda addon: [str(network) for network in addon.balancer.networks.allowed],
        ["203.0.113.0/24"],
    ),
    "access": ("keys", lambda addon: addon.balancer.access.needs_key, True),
    "access_log": ("-", lambda addon: addon.configuration.access_log.target, "-"),
    "store": ("/dev/null/flows", lambda addon: addon.balancer.stored.on, True),
    "store_days": (3, at_use("store_days"), 3),
    "store_size": ("5g", at_use("store_size"), 5 * 1024**3),
    "trusted_proxies": ("127.0.0.1", client_of, "203.0.113.7"),
    "origins": ("https://a.test", lambda addon: addon.balancer.allows("https://a.test"), True),
}
"""A value of each option, where its effect shows, and what is there then."""

AGENTS: dict[str, tuple[dict[str, object], Callable[[Agent], object], object]] = {
    "url": ({"url": "http://10.0.0.2:1"}, lambda agent: agent.address.url, "http://10.0.0.2:1"),
    "slots": ({"slots": 5}, lambda agent: agent.slots_for("m"), 5),
    "drained": ({"drained": True}, lambda agent: agent.draining, True),
}


def test_the_effect_of_every_setting_is_tested() -> None:
    assert set(FleetFile.model_fields) == {"agents", "options"}
    assert set(OPTIONS) == set(Options.model_fields)
    assert set(OPTIONS) == {name.removeprefix("balancer_") for name, row in TABLE.items() if not row.not_in_file}
    assert set(AGENTS) == set(AgentEntry.model_fields)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_the_file_is_used_and_taken_back_with_it(
    fleet: Fixture, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[bool] = []
    monkeypatch.setattr(
        fleet.addon.configuration.announcement, "update", lambda token, wanted: announced.append(wanted)
    )
    value, effect, expected = OPTIONS[name]
    before = effect(fleet.addon)
    assert before != expected
    given = json.dumps({"options": {name: value}})  # which YAML is, too
    if TABLE[f"balancer_{name}"].at_start:
        fleet.start(given)
        assert effect(fleet.addon) == expected
        return
    fleet.start("options: {}")
    fleet.write(given)
    assert effect(fleet.addon) == expected
    assert fleet.running.options.default(f"balancer_{name}") == getattr(fleet.running.options, f"balancer_{name}")
    if name == "announce":
        assert announced[-1]
    fleet.write("options: {}")
    assert effect(fleet.addon) == before
    if name == "announce":
        assert not announced[-1]


@pytest.mark.parametrize("name", AGENTS)
def test_every_setting_of_an_agent_is_used_and_taken_back_with_it(fleet: Fixture, name: str) -> None:
    entry, effect, expected = AGENTS[name]
    plain = {"agents": {"a": {"url": "http://10.0.0.1"}}}
    fleet.start(json.dumps(plain))
    agent = fleet.agent("a")
    before = effect(agent)
    assert before != expected
    fleet.write(json.dumps({"agents": {"a": plain["agents"]["a"] | entry}}))
    assert fleet.agent("a") is agent
    assert effect(agent) == expected
    fleet.write(json.dumps(plain))
    assert effect(agent) == before


def test_agents_come_and_go_with_the_file_and_what_runs_on_them_finishes(fleet: Fixture) -> None:
    fleet.running.configure(fleet.addon, balancer_agents=["z=http://10.0.0.9"])
    fleet.start("agents:\n  a: {url: http://10.0.0.1}\n  b: {url: http://10.0.0.2, slots: 0}\noptions: {slots: 7}")
    assert fleet.agents == ["z", "a", "b"]
    assert [fleet.agent(name).fixed_slots for name in fleet.agents] == [7, 7, 0]
    a = fleet.agent("a")
    lease = fleet.balancer.registry.limiter.take(a, "m")
    fleet.write("agents:\n  c: {url: http://10.0.0.3}\n")
    assert fleet.agents == ["z", "c"]
    assert a.removed and a.in_flight == 1
    lease.release()
    assert a.in_flight == 0
    fleet.running.configure(fleet.addon, balancer_config="")
    assert fleet.agents == ["z"]


def test_a_drain_of_the_file_ends_with_it_and_an_operators_does_not(fleet: Fixture) -> None:
    drained, plain = "agents: {a: {url: http://10.0.0.1, drained: true}}", "agents: {a: {url: http://10.0.0.1}}"
    registry = fleet.balancer.registry
    fleet.start(drained)
    a = fleet.agent("a")
    assert a.draining
    fleet.write(drained + "\noptions: {retries: 1}")
    assert a.draining
    registry.resume(a)  # an operator
    fleet.write(drained + "\noptions: {retries: 3}")
    assert not a.draining, "what the file said before is not said again"
    fleet.write(plain)
    registry.drain(a)
    for text in (drained, plain):
        fleet.write(text)
        assert a.draining, "an operator's drain is not the file's to end"
    registry.resume(a)
    fleet.write(drained)
    registry.drain(a)
    fleet.write(plain)
    assert a.draining, "the operator's came second"


def test_a_change_of_slots_ends_no_drain(fleet: Fixture) -> None:
    fleet.start("agents: {a: {url: http://10.0.0.1}}")
    a = fleet.agent("a")
    fleet.balancer.registry.drain(a, until_registration=True)  # its reporter has ended
    fleet.write("agents: {a: {url: http://10.0.0.1, slots: 4}}")
    assert a.fixed_slots == 4
    assert a.draining


def test_an_agent_that_reports_stays_when_the_file_no_longer_names_it(fleet: Fixture) -> None:
    registry = fleet.balancer.registry
    a, _ = registry.register("a", Address("10.0.0.1", 11434))
    fleet.start("agents: {a: {url: http://10.0.0.1, slots: 4, drained: true}}")
    assert (a.fixed_slots, a.draining) == (4, True)
    fleet.write("agents: {}")
    assert fleet.agents == ["a"]
    assert (a.fixed_slots, a.draining) == (0, False)
    fleet.write("agents: {other-name: {url: http://10.0.0.1}}")
    for each in registry:
        registry.located(each, "the same host")
    fleet.write("agents: {other-name: {url: http://10.0.0.1, drained: true}}")
    assert a.draining
    fleet.write("agents: {}")
    assert not a.draining


def test_what_is_set_elsewhere_wins_even_where_it_is_the_default(
    fleet: Fixture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = fleet.balancer.gateway.router
    fleet.running.configure(fleet.addon, balancer_retries=2)
    fleet.start("options: {retries: 5, mode: metrics}")
    assert router.retries == 2
    assert fleet.balancer.registry.mode == "metrics"
    fleet.write("options: {retries: 6, mode: roundrobin}")
    assert (router.retries, fleet.balancer.registry.mode) == (2, "roundrobin")
    unused = "Not used from the fleet file, as --set, config.yaml or a change in mitmproxy wins: retries."
    assert unused in caplog.messages
    with pytest.raises(exceptions.OptionsError):
        fleet.running.configure(fleet.addon, balancer_mode="fastest")
    assert (router.retries, fleet.balancer.registry.mode) == (2, "roundrobin"), "what was refused was not set"
    fleet.running.configure(fleet.addon, balancer_mode="adaptive")  # a change while it runs
    fleet.write("options: {mode: metrics}")
    assert fleet.balancer.registry.mode == "adaptive"


def test_the_file_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE_ENVIRONMENT, "least_requests")
    addon = BalancerAddon()
    with taddons.context(Proxyserver(), addon) as running:
        running.configure(addon, confdir=str(tmp_path), balancer_token=TOKEN)
        fixture = Fixture(tmp_path, running, addon)
        fixture.start("options: {mode: metrics}")
        assert addon.balancer.registry.mode == "metrics"
        fixture.write("agents: {}")
        assert addon.balancer.registry.mode == "least_requests"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "agents: {b: {url: http://10.0.0.2}}\noptions: {retries: many}",
            ":2: options.retries: 'many' is not accepted; it",
        ),
        (
            "agents:\n  b: {url: http://10.0.0.2}\n  z: {url: http://10.0.0.1}",
            ":3: agents.z: balancer_agents has an agent",
        ),
        ("agents: {b: {url: http://10.0.0.2}}\noptions: {demo: 3}", ":2: options.demo: it is read at the start only"),
        ("agents: {}\noptions:\n  retries: 1\n  access_log: /none/x", ":4: options.access_log: balancer_access_log: "),
        ("agents: {}\nmodels: {}", ":2: models: is not supported yet; accepted here: agents, options"),
        ("agents: {b: {url: http://10.0.0", ":1: it is not YAML"),
        ("", ":1: it is empty"),
    ],
)
def test_a_change_is_applied_whole_or_not_at_all(
    fleet: Fixture, caplog: pytest.LogCaptureFixture, text: str, says: str
) -> None:
    fleet.running.configure(fleet.addon, balancer_agents=["z=http://10.0.0.9"])
    fleet.start("agents: {a: {url: http://10.0.0.1}}\noptions: {retries: 4}")
    before, settings = list(fleet.balancer.registry), fleet.balancer.settings
    caplog.clear()
    fleet.write(text)
    fleet.look()
    [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    begin = f"The fleet file is not applied, and what was applied before stays: {fleet.path}{says}"
    assert line.message.startswith(begin)
    assert (list(fleet.balancer.registry), fleet.balancer.settings) == (before, settings)
    fleet.running.configure(fleet.addon, balancer_queue_size=5)  # goes on with what was accepted
    assert fleet.agents == ["z", "a"]
    fleet.write("agents: {b: {url: http://10.0.0.2}}")
    assert fleet.agents == ["z", "b"]
    assert "removed a" in caplog.text and "added b" in caplog.text and "changed the options retries" in caplog.text
    happened = [event for event in fleet.balancer.events if event.kind.startswith("config ")]
    assert [event.kind for event in happened] == ["config refused", "config reloaded"]
    assert "the log says what is wrong" in happened[0].reason
    assert "added b; removed a" in happened[1].reason


def test_a_live_change_of_an_option_that_does_not_fit_the_file_is_refused(fleet: Fixture) -> None:
    fleet.start("agents: {a: {url: http://10.0.0.1}}")
    with pytest.raises(
        exceptions.OptionsError, match=r"fleet.yaml:1: agents.a: balancer_agents has an agent of that name"
    ):
        fleet.running.configure(fleet.addon, balancer_agents=["a=http://10.0.0.9"])
    assert fleet.agent("a").address.host == "10.0.0.1"
    bad = fleet.path.with_name("bad.yaml")
    bad.write_text("agents: {b: {}}")
    with pytest.raises(exceptions.OptionsError, match=r"bad.yaml:1: agents.b.url: is missing"):
        fleet.running.configure(fleet.addon, balancer_config=str(bad))
    assert fleet.agents == ["a"]
    fleet.write("agents: {c: {url: http://10.0.0.3}}")
    assert fleet.agents == ["c"]


def test_the_file_is_followed_through_links_and_while_it_is_away(
    fleet: Fixture, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def text(name: str) -> str:
        return f"agents: {{{name}: {{url: http://10.0.0.1}}}}"

    for version in ("1", "2"):  # as Kubernetes mounts a ConfigMap
        (tmp_path / version).mkdir()
        (tmp_path / version / "fleet.yaml").write_text(text(f"v{version}"))
    (tmp_path / "data").symlink_to("1")
    fleet.path.symlink_to("data/fleet.yaml")
    fleet.running.configure(fleet.addon, balancer_config=str(fleet.path))
    fleet.balancer.running = True
    assert fleet.agents == ["v1"]
    (tmp_path / "data.new").symlink_to("2")
    os.replace(tmp_path / "data.new", tmp_path / "data")
    fleet.look()
    assert fleet.agents == ["v2"]

    (tmp_path / "data").unlink()
    for _ in range(3):
        fleet.look()
    assert [message for message in caplog.messages if "it is gone" in message] == [
        f"The fleet file is not applied, and what was applied before stays: {fleet.path}: it is gone"
    ]
    assert fleet.agents == ["v2"]
    (tmp_path / "data").symlink_to("2")
    fleet.look()
    assert f"Fleet file {fleet.path} is again as it was applied." in caplog.messages

    fleet.write(text("whole"))  # no link any more
    assert fleet.agents == ["whole"]
    fleet.path.write_text(text("half")[:20])
    fleet.look()
    assert fleet.agents == ["whole"]
    fleet.path.write_text(text("half"))
    fleet.look()
    assert fleet.agents == ["half"]


def test_a_file_that_is_being_written_is_not_read(fleet: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.start("agents: {a: {url: http://10.0.0.1}, b: {url: http://10.0.0.2}}")
    fleet.look()
    stat = fleet_file._signature_of
    writes = iter(["agents: {}\n", "agents: {a: {url: http://10.0.0.1}}\n"])

    def growing(path: str) -> Any:
        if (text := next(writes, None)) is not None:
            fleet.path.write_text(text)
        return stat(path)

    monkeypatch.setattr(fleet_file, "_signature_of", growing)
    fleet.look()
    assert fleet.agents == ["a", "b"]
    fleet.look()
    assert fleet.agents == ["a"]
