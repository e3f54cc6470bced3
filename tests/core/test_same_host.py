"""Whatever happens to agents that are one host, one of them stands for it, and one that serves if any does."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.leases import Lease
from tests.core.fakes import Clock, address, entries, new_registry, report

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)
M = "m:latest"


class SameHostMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.registry = new_registry(self.clock, slots=1, must_reach=True)
        self.leases: list[Lease] = []
        self.port = 0
        for name in NAMES:
            self.register(name, moves=False)

    def agent(self, name: str) -> Agent:
        agent = self.registry.get(name)
        assert agent
        return agent

    @rule(name=names, moves=st.booleans())
    def register(self, name: str, moves: bool) -> None:
        known = self.registry.get(name)
        self.port += 1
        where = address(self.port) if moves or known is None else known.address
        agent, new = self.registry.register(name, where)
        if new:
            self.registry.inventory.update_models(agent, entries("m"))

    @rule(name=names, key=st.sampled_from((None, 1, 1, 2)))
    def locate(self, name: str, key: int | None) -> None:
        self.registry.located(self.agent(name), key)

    @rule(name=names)
    def reach(self, name: str) -> None:
        self.registry.liveness.reached(self.agent(name))

    @rule(name=names)
    def lose(self, name: str) -> None:
        self.registry.liveness.unreachable(self.agent(name), "refused")

    @rule(name=names, ok=st.booleans())
    def hear(self, name: str, ok: bool) -> None:
        self.registry.update_metrics(name, report(at=self.clock.now, ollama_ok=ok))

    @rule(name=names, drains=st.booleans(), until_registration=st.booleans())
    def drain(self, name: str, drains: bool, until_registration: bool) -> None:
        if drains:
            self.registry.drain(self.agent(name), until_registration=until_registration)
        else:
            self.registry.resume(self.agent(name))

    @rule(name=names)
    def come_anew(self, name: str) -> None:
        self.registry.remove(self.agent(name))
        self.register(name, moves=False)

    @rule()
    def serve(self) -> None:
        agent = self.registry.selection.select(M)
        if agent is not None:
            self.leases.append(self.registry.limiter.take(agent, M))

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.leases:
            self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))).release(Outcome.SUCCEEDED)

    @rule(seconds=st.sampled_from((1, 14, 31)))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        self.registry.expire()

    @invariant()
    def one_stands_for_each_host(self) -> None:
        agents = list(self.registry)
        for agent in agents:
            host = [other for other in agents if other.host_key == agent.host_key] if agent.host_key else [agent]
            [first] = [other for other in host if other.alias_of is None]
            assert all(other.alias_of is first for other in host if other is not first)
            assert first.online or not any(other.online for other in host)
            assert [other for other in host if other.eligible] in ([first], [])
            if first.draining_until_registration:
                assert all(other.draining_until_registration or not other.online for other in host)
        chosen = self.registry.selection.select(M)
        serving = [agent for agent in agents if agent.eligible and M not in agent.full]
        assert (chosen in serving) if serving else chosen is None


TestSameHost = SameHostMachine.TestCase
