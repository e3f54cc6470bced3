"""Agents found in DNS: who joins, who leaves, and what a name server that fails changes."""

from __future__ import annotations

import asyncio
import logging
import re
import socket

import pytest

from ollama_balancer.core.address import Address, DnsName
from ollama_balancer.core.agent import Source
from ollama_balancer.core.registry import AgentRegistry
from ollama_balancer.core.static_agents import AgentSpec
from ollama_balancer.hosts import dns_agents
from ollama_balancer.hosts.dns_agents import INTERVAL, MAX_ADDRESSES, MAX_NAMES, DnsAgents
from ollama_balancer.settings.option_values import static_agents
from tests import jumping_loop
from tests.core.fakes import new_registry
from tests.markdown import ROOT

NAME = DnsName("ollama.default.svc", 11434)
AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
NOT_FOUND = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class NameServer:
    """Answers with what the test has put there."""

    def __init__(self) -> None:
        self.answer: list[str] | OSError = []
        self.asked = 0
        self.silent = False

    async def look_up(self, host: str) -> list[str]:
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


class Found:
    """The agents of a name, one look-up after the other."""

    def __init__(self, spec: AgentSpec) -> None:
        self.server = NameServer()
        self.registry: AgentRegistry = new_registry(lambda: 0.0)
        self.dns = DnsAgents(self.registry, self.server.look_up)
        self.dns.apply({"pool": spec})

    def answered(self, answer: list[str] | OSError) -> dict[str, str]:
        """The agents after that answer: their addresses, or that they are draining."""
        self.server.answer = answer
        jumping_loop.run(self.dns.resolve())
        return {agent.name: "draining" if agent.draining else agent.address.url for agent in self.registry}


@pytest.fixture
def found(caplog: pytest.LogCaptureFixture) -> Found:
    caplog.set_level(logging.INFO)
    return Found(AgentSpec(NAME))


def test_each_address_is_an_agent_and_one_that_vanishes_drains_and_is_removed_when_idle(found: Found) -> None:
    a, b, c = (f"10.1.0.{number}" for number in (1, 2, 3))
    assert found.answered([a, b]) == {f"pool-{ip}": f"http://{ip}:11434" for ip in (a, b)}
    first, second = found.registry
    assert first.address == Address(a, 11434)
    assert first.address.authority == "ollama.default.svc:11434"
    lease = found.registry.limiter.take(first, "m")
    assert found.answered([c, b]) == {
        f"pool-{a}": "draining",
        f"pool-{b}": f"http://{b}:11434",
        f"pool-{c}": f"http://{c}:11434",
    }
    assert found.answered([c]) == {f"pool-{a}": "draining", f"pool-{c}": f"http://{c}:11434"}, "who is idle is removed"
    assert second.removed
    assert found.answered([a, c])[f"pool-{a}"] == f"http://{a}:11434", "it is back"
    assert found.registry.get(f"pool-{a}") is first
    found.answered([c])
    lease.release()
    assert found.answered([c]) == {f"pool-{c}": f"http://{c}:11434"}


def test_a_host_that_leaves_dns_goes_on_under_its_reporters_name(found: Found) -> None:
    own, _ = found.registry.register("gpu-1", Address("10.1.0.1", 11434))

    def locate() -> None:
        for agent in found.registry:
            found.registry.located(agent, agent.address.host)

    found.answered(["10.1.0.1", "10.1.0.2"])
    locate()
    assert found.answered(["10.1.0.2"])["gpu-1"] == own.address.url
    found.answered(["10.1.0.1", "10.1.0.2"])
    locate()
    found.dns.apply({"pool": AgentSpec(NAME, drained=True)})
    assert own.draining, "an operator drains hosts"
    found.dns.apply({})
    assert [(agent.name, agent.draining) for agent in found.registry] == [("gpu-1", False)]


def test_an_answer_that_fails_or_is_empty_changes_nothing_and_is_logged_once(
    found: Found, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert found.answered(NOT_FOUND) == {}
    known = found.answered(["10.1.0.1"])
    failures: list[list[str] | OSError] = [AGAIN, AGAIN, [], []]
    for failure in failures:
        assert found.answered(failure) == known
    found.answered(["10.1.0.1"])
    assert [message for message in caplog.messages if "Agent" not in message] == [
        "ollama.default.svc cannot be resolved (Name or service not known), so dns+http://ollama.default.svc:11434 has "
        "no agents yet: check the name in balancer_agents or the fleet file, and that this machine's name servers know "
        "it. Trying again every 5 s.",
        "ollama.default.svc is resolved; addresses: 1.",
        "ollama.default.svc cannot be resolved (Temporary failure in name resolution): its known hosts stay (1). "
        "Trying again every 5 s.",
        "ollama.default.svc cannot be resolved (it has no address): its known hosts stay (1). Trying again every 5 s.",
        "ollama.default.svc is resolved; addresses: 1.",
    ]


def test_slots_and_drains_of_the_name_are_those_of_its_agents() -> None:
    found = Found(AgentSpec(NAME, 3, drained=True))
    assert found.answered(["10.1.0.1"]) == {"pool-10.1.0.1": "draining"}
    [agent] = found.registry
    assert agent.fixed_slots == 3
    lease = found.registry.limiter.take(agent, "m")
    found.answered(["10.1.0.2"])
    assert set(found.answered(["10.1.0.1", "10.1.0.2"]).values()) == {"draining"}
    found.dns.apply({"pool": AgentSpec(NAME, 5)})
    assert not any(agent.draining for agent in found.registry)
    assert agent.fixed_slots == 5
    found.registry.drain(agent)  # an operator
    found.answered(["10.1.0.2"])
    found.dns.apply({"pool": AgentSpec(NAME, 6)})
    assert found.answered(["10.1.0.1", "10.1.0.2"])["pool-10.1.0.1"] == "draining"
    assert agent.fixed_slots == 6
    lease.release()


def test_agents_of_a_name_that_is_no_longer_given_leave_at_once_and_others_stay() -> None:
    found = Found(AgentSpec(NAME))
    found.answered(["10.1.0.1"])
    [agent] = found.registry
    lease = found.registry.limiter.take(agent, "m")
    found.dns.apply({"other": AgentSpec(NAME)})
    assert agent.removed and agent.in_flight == 1
    lease.release()
    assert list(found.answered(["10.1.0.1"])) == ["other-10.1.0.1"]
    found.dns.apply({})
    assert found.answered(["10.1.0.1"]) == {}


def test_an_agent_that_an_operator_removed_comes_back_when_its_address_does(found: Found) -> None:
    found.answered(["10.1.0.1", "10.1.0.2"])
    found.registry.remove(next(iter(found.registry)))
    assert list(found.answered(["10.1.0.1", "10.1.0.2"])) == ["pool-10.1.0.2"]
    found.answered(["10.1.0.2"])
    assert list(found.answered(["10.1.0.1", "10.1.0.2"])) == ["pool-10.1.0.2", "pool-10.1.0.1"]


def test_an_agent_that_is_there_already_is_left_alone(found: Found, caplog: pytest.LogCaptureFixture) -> None:
    agent, _ = found.registry.register("pool-10.1.0.1", Address("10.9.9.9", 1), Source.STATIC)
    for _ in range(2):
        assert found.answered(["10.1.0.1", "10.1.0.2"]) == {
            "pool-10.1.0.1": "http://10.9.9.9:1",
            "pool-10.1.0.2": "http://10.1.0.2:11434",
        }
    assert caplog.text.count("10.1.0.1 is left out of the agents of ollama.default.svc: there is an agent called") == 1
    found.registry.remove(agent)
    assert found.answered(["10.1.0.1"])["pool-10.1.0.1"] == "http://10.1.0.1:11434"


def test_addresses_and_names_are_bounded(found: Found, caplog: pytest.LogCaptureFixture) -> None:
    many = [f"10.1.{number // 256}.{number % 256}" for number in range(MAX_ADDRESSES + 1)]
    known = found.answered(many[-1:])
    for _ in range(2):
        agents = found.answered(many)
    assert len(agents) == MAX_ADDRESSES
    assert known.items() <= agents.items()
    assert caplog.text.count(f"{MAX_ADDRESSES + 1} addresses, of which {MAX_ADDRESSES} are used") == 1
    specs = {f"n{number}": AgentSpec(DnsName(f"n{number}", 1)) for number in range(MAX_NAMES + 1)}
    with pytest.raises(ValueError, match=f"more than {MAX_NAMES} names"):
        found.dns.check(specs)


def test_names_are_resolved_every_5_s_and_a_name_server_that_is_silent_delays_no_other() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        server, silent = NameServer(), NameServer()
        silent.silent = True

        async def look_up(host: str) -> list[str]:
            return await (silent if host == "silent" else server).look_up(host)

        server.answer = ["10.1.0.1"]
        registry = new_registry(loop.time)
        dns = DnsAgents(registry, look_up)
        probed = []

        async def probe(agent: object) -> None:
            probed.append(agent)

        dns.on_new = probe
        dns.apply({"pool": AgentSpec(NAME)})
        running = asyncio.create_task(dns.run())
        await dns.first_round.wait()
        assert loop.time() == 0
        assert probed == list(registry)
        await asyncio.sleep(3 * INTERVAL - 1)
        assert server.asked == 3
        server.answer = ["10.1.0.2"]
        await asyncio.sleep(INTERVAL)
        assert [agent.name for agent in registry] == ["pool-10.1.0.2"]
        dns.apply({"pool": AgentSpec(NAME), "s": AgentSpec(DnsName("silent", 1))})
        asked = server.asked
        server.answer = ["10.1.0.3"]
        await asyncio.sleep(0.1)
        assert [agent.name for agent in registry] == ["pool-10.1.0.3"]
        await asyncio.sleep(4 * INTERVAL)
        assert server.asked - asked == 5
        assert silent.asked == 1, "one look-up of a name at a time"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    jumping_loop.run(test())


def test_names_are_looked_up_as_the_system_does() -> None:
    assert asyncio.run(dns_agents.look_up("localhost")) == ["127.0.0.1"]
    with pytest.raises(socket.gaierror):
        asyncio.run(dns_agents.look_up("no-such-name.invalid"))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("dns+http://ollama.default.svc:11434", "ollama"),
        ("DNS+http://gpu", "gpu"),
        ("dns+http://a-name-of-more-than-24-letters.test", "a-name-of-more-than-24-l"),
    ],
)
def test_the_first_label_names_the_agents(url: str, name: str) -> None:
    assert DnsName.parse(url).prefix == name


def test_the_manifest_of_kubernetes_names_the_hosts_by_dns() -> None:
    manifest = (ROOT / "addon" / "deploy" / "kubernetes" / "balancer.yaml").read_text()
    [value] = re.findall(r"balancer_agents=([^\s\"]+)", manifest)
    assert static_agents([value]) == (("ollama", DnsName("ollama", 11434)),)
