"""The registry against a naive specification, written from the contract, under any sequence of events."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.agent_view import describe_agent
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.liveness import PROBE_GRACE
from ollama_balancer.core.policies import POLICIES
from tests.core.fakes import Clock, address, entries, new_registry, report

NAMES = ("a", "b", "c", "d")
MODELS = ("m1:latest", "m2:latest")
NOBODYS_MODEL = "nope:latest"

names = st.sampled_from(NAMES)
wanted_models = st.sampled_from((None, *MODELS, NOBODYS_MODEL))
excluded_names = st.sets(names, max_size=3)
inventories = st.sets(st.sampled_from(MODELS)).map(sorted)
# Few values, so that equal scores and the bounds at 80 % are met often. Tenths of a percent, as psutil gives them.
cpus = st.sampled_from((0, 100, 799, 800, 801, 950, 1000))
memories = st.sampled_from((0, 100, 333))


@dataclass
class Seen:
    """What the specification knows of an agent. CPU and memory in tenths of a percent."""

    agent: Agent
    port: int
    models: set[str] | None = None
    cpu: int = 0
    memory: int = 0
    active: int = 0
    stamp: int | None = None
    reported_at: float | None = None
    alive_by_report: bool = False
    reachable: bool = True
    probed_at: float | None = None
    draining: bool = False
    until_registration: bool = False
    leases: list[Lease] = field(default_factory=list)

    def fresh(self, now: float, stale_after: float) -> bool:
        return self.reported_at is not None and now < self.reported_at + stale_after

    def online(self, now: float, stale_after: float) -> bool:
        by_probe = self.probed_at is not None and now < self.probed_at + PROBE_GRACE
        return (self.reports(now, stale_after) and self.reachable) or by_probe

    def reports(self, now: float, stale_after: float) -> bool:
        return self.alive_by_report and self.fresh(now, stale_after)

    def forget_life(self) -> None:
        self.alive_by_report = False
        self.probed_at = None

    @property
    def score(self) -> int:
        """In tenths."""
        return self.cpu + self.memory + max(self.active, len(self.leases)) * 100


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(0)
        self.stale_after = 30
        self.registry = new_registry(self.clock, stale_after=self.stale_after)
        self.fleet: dict[str, Seen] = {}
        self.removed: list[Seen] = []
        self.addresses = 0
        self.watched = False
        self.must_reach = False

    # The specification

    def candidates(self, model: str | None, exclude: Collection[Agent]) -> list[Seen]:
        online = [
            seen
            for seen in self.fleet.values()
            if seen.online(self.clock.now, self.stale_after) and not seen.draining and seen.agent not in exclude
        ]
        if model is None:
            return online
        holders = [seen for seen in online if seen.models is not None and model in seen.models]
        return holders or [seen for seen in online if seen.models is None]

    def allowed(self, mode: str, model: str | None, exclude: Collection[Agent]) -> set[Agent]:
        among = self.candidates(model, exclude)
        if mode == "metrics":
            fresh = [seen for seen in among if seen.fresh(self.clock.now, self.stale_after)]
            if any(seen.cpu <= 800 for seen in fresh):
                lowest = min(seen.score for seen in fresh)
                among = [seen for seen in fresh if seen.score == lowest]
        elif mode == "least_requests":
            fewest = min((len(seen.leases) for seen in among), default=0)
            among = [seen for seen in among if len(seen.leases) == fewest]
        return {seen.agent for seen in among}

    def choices(self) -> dict[str, Callable[[str | None, Collection[Agent]], Agent | None]]:
        """Every way to ask, by the mode that it stands for."""
        ways: dict[str, Callable[[str | None, Collection[Agent]], Agent | None]] = {
            "roundrobin": self.registry.select_agent,
            "metrics": self.registry.select_agent_by_metrics,
        }
        if self.registry.mode == "least_requests":
            ways["least_requests"] = self.registry.selection.select
        return ways

    # Events

    @initialize(mode=st.sampled_from(tuple(POLICIES)), watched=st.booleans(), must_reach=st.booleans())
    def begin_with_three(self, mode: str, watched: bool, must_reach: bool) -> None:
        self.must_reach = must_reach
        self.registry = new_registry(self.clock, stale_after=self.stale_after, must_reach=must_reach)
        self.registry.mode = mode
        self.watched = watched
        for name in NAMES[:3]:
            self.register(name, moves=False)
            self.hear_report(name, 100, 0, 0, 0, [MODELS[0]], None)

    @rule(name=names, moves=st.booleans())
    def register(self, name: str, moves: bool) -> None:
        known = self.fleet.get(name)
        if known is None or moves:
            self.addresses += 1
            port = self.addresses
        else:
            port = known.port
        agent, new = self.registry.register(name, address(port))
        assert new == (known is None)
        if known is None:
            self.fleet[name] = Seen(agent, port, reachable=not self.must_reach)
            return
        assert agent is known.agent
        if moves:
            known.port = port
            known.forget_life()
            known.reachable = not self.must_reach
        if known.until_registration:
            known.draining = known.until_registration = False

    @rule(name=names)
    def remove(self, name: str) -> None:
        seen = self.fleet.pop(name, None)
        if seen is not None:
            self.registry.remove(seen.agent)
            self.removed.append(seen)

    @rule(
        name=names,
        cpu=cpus,
        memory=memories,
        active=st.integers(0, 3),
        older=st.sampled_from((0, 0, 0, 0, 50)),
        models=st.none() | inventories,
        ollama_ok=st.sampled_from((None, None, True, False)),
    )
    def hear_report(
        self,
        name: str,
        cpu: int,
        memory: int,
        active: int,
        older: int,
        models: list[str] | None,
        ollama_ok: bool | None,
    ) -> None:
        metrics = report(
            cpu / 10,
            memory / 10,
            active,
            at=self.clock.now - older,
            models=None if models is None else entries(*models),
            ollama_ok=ollama_ok,
        )
        seen = self.fleet.get(name)
        if seen is None:
            try:
                self.registry.update_metrics(name, metrics)
            except KeyError:
                return
            raise AssertionError("a report of an agent that is not there was taken")
        now = self.clock.now
        stamp = int(now) - older
        late = seen.fresh(now, self.stale_after) and seen.stamp is not None and stamp < seen.stamp
        assert self.registry.update_metrics(seen.agent.id, metrics) is not late
        if late:
            return
        seen.cpu, seen.memory, seen.active, seen.stamp, seen.reported_at = cpu, memory, active, stamp, now
        if models is not None:
            seen.models = set(models)
        if ollama_ok is False:
            seen.forget_life()
        else:
            seen.alive_by_report = True

    @rule(name=names, models=inventories)
    def learn_models(self, name: str, models: list[str]) -> None:
        seen = self.fleet.get(name)
        if seen is not None:
            self.registry.inventory.update_models(seen.agent, entries(*models))
            seen.models = set(models)

    @rule(name=names)
    def answer_probe(self, name: str) -> None:
        seen = self.fleet.get(name)
        if seen is not None:
            self.registry.liveness.reached(seen.agent)
            seen.probed_at = self.clock.now
            seen.reachable = True

    @rule(name=names)
    def find_unreachable(self, name: str) -> None:
        seen = self.fleet.get(name)
        if seen is not None:
            self.registry.liveness.unreachable(seen.agent, "refused")
            seen.probed_at = None
            seen.reachable = False

    @rule(name=names, until_registration=st.booleans())
    def drain(self, name: str, until_registration: bool) -> None:
        seen = self.fleet.get(name)
        if seen is not None:
            self.registry.drain(seen.agent, until_registration=until_registration)
            # A drain by a person outlives one until registration, never the other way round.
            seen.until_registration = until_registration and (seen.until_registration or not seen.draining)
            seen.draining = True

    @rule(name=names)
    def resume(self, name: str) -> None:
        seen = self.fleet.get(name)
        if seen is not None:
            self.registry.resume(seen.agent)
            seen.draining = seen.until_registration = False

    @rule(seconds=st.sampled_from((1, 1, 2, 7, 13, 31)))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(seconds=st.sampled_from((5, 30, 60)))
    def change_stale_after(self, seconds: int) -> None:
        self.forget_the_stale()
        self.stale_after = self.registry.stale_after = seconds
        self.forget_the_stale()

    def forget_the_stale(self) -> None:
        """What has run out stays so, even if more time is given later."""
        list(self.registry)
        for seen in self.fleet.values():
            if not seen.fresh(self.clock.now, self.stale_after):
                seen.reported_at = None

    @rule(mode=st.sampled_from(tuple(POLICIES)))
    def change_mode(self, mode: str) -> None:
        self.registry.mode = mode
        assert self.registry.mode == mode

    @rule(name=names)
    def take(self, name: str) -> None:
        seen = self.fleet.get(name)
        if seen is not None:
            seen.leases.append(self.registry.limiter.take(seen.agent))

    @precondition(lambda self: any(seen.leases for seen in self.everybody()))
    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def release(self, data: st.DataObject, outcome: Outcome) -> None:
        seen = data.draw(st.sampled_from([seen for seen in self.everybody() if seen.leases]))
        lease = seen.leases.pop(data.draw(st.integers(0, len(seen.leases) - 1)))
        assert lease.release(outcome)
        assert not lease.release(outcome)

    # Questions

    @rule(model=wanted_models, excluded=excluded_names)
    def choose(self, model: str | None, excluded: set[str]) -> None:
        self.check_choices(model, [seen.agent for name, seen in self.fleet.items() if name in excluded])

    @invariant()
    def any_choice_is_right_at_any_time(self) -> None:
        """In half of the runs; in the others what has run out may pile up before the next question."""
        if self.watched:
            agents = [seen.agent for seen in self.fleet.values()]
            self.check_choices(None, ())
            self.check_choices(MODELS[0], ())
            self.check_choices(MODELS[0], agents[:1])
            self.check_choices(MODELS[0], agents[1:])

    def check_choices(self, model: str | None, exclude: Collection[Agent]) -> None:
        """Each way of choosing gives one that the specification allows, and each of those in its turn."""
        for mode, select in self.choices().items():
            allowed = self.allowed(mode, model, exclude)
            chosen = [select(model, exclude) for _ in range(max(1, len(allowed)))]
            assert len(chosen) == len(set(chosen))
            told = (mode, model, exclude, chosen, allowed)
            assert (set(chosen) == allowed) if allowed else chosen == [None], told

    @rule(model=wanted_models)
    def serve(self, model: str | None) -> None:
        """The mode in force chooses, and the request is in flight."""
        allowed = self.allowed(self.registry.mode, model, ())
        agent = self.registry.selection.select(model)
        assert (agent in allowed) if allowed else agent is None
        if agent is not None:
            self.fleet[agent.name].leases.append(self.registry.limiter.take(agent))

    @rule()
    def look(self) -> None:
        """What is shown of each agent is what the specification says of it."""
        now = self.clock.now
        for name, seen in self.fleet.items():
            agent = self.registry.get(name)
            assert agent is seen.agent
            online = seen.online(now, self.stale_after)
            away = "unreachable" if seen.reports(now, self.stale_after) else "offline"
            assert agent.status == (away if not online else "draining" if seen.draining else "online")
            fresh = seen.fresh(now, self.stale_after)
            assert agent.score == (seen.score / 10 if fresh else None)
            assert describe_agent(agent, now)["stale"] is not fresh
        assert len(self.registry) == len(self.fleet)
        for model in MODELS:
            held = any(seen.models is not None and model in seen.models for seen in self.fleet.values())
            assert self.registry.inventory.has_model(model) is held
        assert self.registry.inventory.may_have_unknown_models() is any(
            seen.models is None for seen in self.fleet.values()
        )

    def everybody(self) -> list[Seen]:
        return [*self.fleet.values(), *self.removed]

    @invariant()
    def in_flight_is_the_number_of_open_leases(self) -> None:
        for seen in self.everybody():
            assert seen.agent.in_flight == len(seen.leases)
        assert self.registry.in_flight == sum(len(seen.leases) for seen in self.fleet.values())

    def teardown(self) -> None:
        for seen in self.everybody():
            for lease in seen.leases:
                lease.release(Outcome.CANCELLED)
            assert seen.agent.in_flight == 0
        assert self.registry.in_flight == 0


RegistryMachine.TestCase.settings = settings(
    derandomize=True, deadline=None, max_examples=250, stateful_step_count=50, database=None
)
TestRegistryKeepsToTheContract = RegistryMachine.TestCase
