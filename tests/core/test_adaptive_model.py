"""The adaptive mode against recounts and a plain computation of the same costs, under any sequence of events."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent_reporter.wire import ModelEntry
from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.health import Phase
from ollama_balancer.core.leases import Lease, SlotLease
from ollama_balancer.core.observations import AnswerObservation
from ollama_balancer.core.policies import POLICIES
from ollama_balancer.core.policies.adaptive import LONGEST_PATIENCE
from ollama_balancer.core.preloading import Ending
from ollama_balancer.core.priority import Priority
from ollama_balancer.core.queue import QueueFullError, RequestQueue
from ollama_balancer.core.scheduler import Scheduler
from ollama_balancer.core.scoring.agent_estimate import AgentEstimate, Situation
from ollama_balancer.core.scoring.placement_plan import Load
from ollama_balancer.core.tickets import QueueKey, Ticket
from tests.core.fakes import Clock, address, entries, new_registry, report

NAMES = ("a", "b", "c", "d")
MODELS = ("m:latest", "n:latest", "o:latest")
RUNNERS = ("", "num_ctx=8192")
LARGE = 2**53 - 1

names = st.sampled_from(NAMES)
models = st.sampled_from(MODELS)
runners = st.sampled_from(("", "", "", *RUNNERS))
inventories = st.sets(models).map(sorted)
prefix_cache = st.integers(0, 3)
counts = st.none() | st.sampled_from((0, 1, 4, 100, 5_000, LARGE))
sizes = st.sampled_from((None, True, 0, -1, 1e99, 1, 10**10, 2**200))
durations = st.none() | st.sampled_from((0.0, 1e-9, 0.05, 1.0, 30.0, LARGE / 1e9))


class AdaptiveMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(0)
        self.registry = new_registry(self.clock, mode="adaptive", chance=random.Random(1).random)
        self.queue = RequestQueue(self.clock, size=12)
        self.scheduler = Scheduler(self.registry, self.queue)
        self.fleet: dict[str, Agent] = {}
        self.removed: list[Agent] = []
        self.leases: list[SlotLease] = []
        self.preloads: list[Load] = []
        self.tickets: list[Ticket] = []
        self.addresses = 0

    @property
    def everybody(self) -> list[Agent]:
        return [*self.fleet.values(), *self.removed]

    # Events

    @initialize(
        slots=st.sampled_from((0, 1, 1, 2)),
        fits=st.sampled_from((None, 1, 1, 2)),
        loaded=st.none() | st.lists(inventories, min_size=3, max_size=3),
    )
    def begin_with_three(self, slots: int, fits: int | None, loaded: list[list[str]] | None) -> None:
        self.registry.slots = slots
        for number, name in enumerate(NAMES[:3]):
            self.register(name, moves=False)
            self.report(name, list(MODELS), None if loaded is None else loaded[number], None, fits, True)
            self.registry.liveness.reached(self.fleet[name])

    def register(self, name: str, *, moves: bool) -> None:
        known = self.fleet.get(name)
        self.addresses += moves or known is None
        where = address(self.addresses) if moves or known is None else known.address
        self.fleet[name], _ = self.registry.register(name, where)

    @rule(
        name=names,
        event=st.sampled_from(("drain", "resume", "lose", "remove", "register", "move", "slots", "mode")),
        mode=st.sampled_from(("adaptive", *POLICIES)),
        slots=st.sampled_from((0, 1, 2, 5)),
    )
    def disturb(self, name: str, event: str, mode: str, slots: int) -> None:
        """What happens seldom."""
        agent = self.fleet.get(name)
        match event:
            case "slots":
                self.registry.slots = slots
            case "mode":
                self.registry.mode = mode
            case "register" | "move":
                self.register(name, moves=event == "move")
            case "drain" if agent is not None:
                self.registry.drain(agent)
            case "resume" if agent is not None:
                self.registry.resume(agent)
            case "lose" if agent is not None:
                self.registry.liveness.unreachable(agent, "refused")
            case "remove" if agent is not None:
                self.registry.remove(self.fleet.pop(name))
                self.removed.append(agent)

    @rule(
        name=names,
        has=st.none() | inventories,
        loaded=st.none() | inventories,
        num_parallel=st.sampled_from((None, None, 1, 2, 100_000)),
        fits=st.sampled_from((None, 0, 1, 2)),
        ollama_ok=st.sampled_from((None, True, True, False)),
    )
    def report(
        self,
        name: str,
        has: list[str] | None,
        loaded: list[str] | None,
        num_parallel: int | None,
        fits: int | None,
        ollama_ok: bool | None,
    ) -> None:
        more: dict[str, Any] = {"num_parallel": num_parallel, "max_loaded_models": fits, "ollama_ok": ollama_ok}
        if has is not None:
            more["models"] = entries(*has)
        if loaded is not None:
            more["loaded_models"] = entries(*loaded)
        if name in self.fleet:
            self.registry.update_metrics(name, report(at=self.clock.now, **more))

    @rule(name=names, loaded=inventories, sizes=st.lists(sizes, min_size=3, max_size=3))
    def list_memory(self, name: str, loaded: list[str], sizes: list[Any]) -> None:
        listed = [ModelEntry.model_validate({"name": n, "size": size}) for n, size in zip(loaded, sizes, strict=False)]
        if name in self.fleet:
            self.registry.inventory.update_loaded(self.fleet[name], listed)

    @rule(name=names, gpus=st.lists(st.sampled_from((None, 0, 10, 48 * 10**9, 2**53)), max_size=2))
    def report_gpus(self, name: str, gpus: list[int | None]) -> None:
        if name in self.fleet:
            figures = [{"name": "GPU", "memory_total": size} for size in gpus]
            self.registry.update_metrics(name, report(at=self.clock.now, gpus=figures))

    @rule(name=st.none() | names)
    def reach(self, name: str | None) -> None:
        for agent in list(self.fleet.values()):
            if name in (None, agent.name):
                self.registry.liveness.reached(agent)

    @rule(
        seconds=st.sampled_from((0.01, 0.5, 1.0, 5.0, 12.0, 40.0, 700.0)),
        probed=st.sampled_from((True, True, True, False)),
    )
    def wait(self, seconds: float, probed: bool) -> None:
        self.clock.now += seconds
        for agent in list(self.fleet.values()):
            if probed and agent.online:
                self.registry.liveness.reached(agent)

    # Requests

    def demand(self, model: str, runner: str, turns: int, conversation: int) -> Demand:
        said = tuple(
            (b"%d %d %b" % (conversation, turn, model.encode()), 500 * turn + 500) for turn in range(turns + 1)
        )
        return Demand(model, runner, 500 * turns + 600, said, said[-1:], tools=conversation % 2 == 1)

    def granted(self, lease: Lease | None) -> None:
        if lease is not None:
            assert isinstance(lease, SlotLease)
            self.leases.append(lease)

    @rule(
        model=models,
        runner=runners,
        turns=st.integers(0, 2),
        conversation=prefix_cache,
        tried=st.sets(names, max_size=1),
        only=st.sampled_from((None, None, None, None, *NAMES)),
        client=st.sampled_from("xy"),
        priority=st.sampled_from(Priority),
    )
    def ask(
        self,
        model: str,
        runner: str,
        turns: int,
        conversation: int,
        tried: set[str],
        only: str | None,
        client: str,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        demand = self.demand(model, runner, turns, conversation)
        failed = [self.fleet[name] for name in sorted(tried) if name in self.fleet and only is None]
        pin = None if only is None else self.fleet.get(only)
        choice = self.scheduler.find(demand, failed, pin)
        if choice.agent is not None:
            assert choice.agent not in failed
            assert choice.agent.available
            self.granted(self.registry.limiter.take(choice.agent, model, demand, choice.options))
            return
        key = QueueKey(model, pin, frozenset(failed))
        if self.scheduler.is_hopeless(key):
            return
        told: list[Lease | None] = []

        def notify(lease: Lease | None) -> None:
            told.append(lease)
            assert len(told) == 1
            self.granted(lease)

        try:
            self.tickets.append(self.scheduler.join(key, client, notify, demand, priority=priority))
        except QueueFullError:
            assert len(self.queue) == self.queue.size

    @rule(model=models, many=st.integers(2, 6))
    def crowd(self, model: str, many: int) -> None:
        for number in range(many):
            self.ask(model, "", 0, number, set(), None, "x")

    @precondition(lambda self: any(ticket.waiting for ticket in self.tickets))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([ticket for ticket in self.tickets if ticket.waiting]))
        assert self.queue.leave(ticket)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.leases)).began()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def end(self, data: st.DataObject, outcome: Outcome) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        if outcome is Outcome.FAILED:
            self.registry.ejection.failed(lease, "no")
        self.leases.remove(lease)
        assert lease.release(outcome)
        assert not lease.release(outcome)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), tokens=counts, seconds=durations, load=durations, prompt=counts, streamed=st.booleans())
    def serve(
        self,
        data: st.DataObject,
        tokens: int | None,
        seconds: float | None,
        load: float | None,
        prompt: int | None,
        streamed: bool,
    ) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        lease.began()
        self.registry.limiter.answered(lease, AnswerObservation(prompt, seconds, tokens, seconds, load, streamed))
        self.registry.ejection.succeeded(lease)
        self.leases.remove(lease)
        lease.release()

    @rule()
    def preload(self) -> None:
        due = self.registry.preloading.due()
        if due is not None:
            assert due.agent.eligible
            assert not due.agent.running.get(due.model)
            assert due.instead not in due.agent.running
            self.preloads.append(due)

    @precondition(lambda self: self.preloads)
    @rule(data=st.data(), how=st.sampled_from(Ending))
    def end_preload(self, data: st.DataObject, how: Ending) -> None:
        load = data.draw(st.sampled_from(self.preloads))
        self.preloads.remove(load)
        self.registry.preloading.ended(load, how)

    @rule()
    def look(self) -> None:
        self.registry.expire()
        self.scheduler.look()
        if self.registry.mode != "adaptive":
            return
        for key in self.queue.active_keys():
            first = self.queue.first(key)
            assert first is not None
            idle = [agent for agent in self.fleet.values() if self.stands_idle(agent, key, first.demand)]
            others = [agent for agent in self.fleet.values() if agent not in idle and self.has_free_slot(agent, key)]
            assert others or not idle, (key, idle)

    def has_free_slot(self, agent: Agent, key: QueueKey) -> bool:
        """Whether it could be sent what is waited for there."""
        able = key.agent in (None, agent) and agent not in key.tried
        return able and agent.may_have(key.model) and self.registry.selection.has_free_slot(agent, key.model)

    def stands_idle(self, agent: Agent, key: QueueKey, demand: Demand) -> bool:
        """Whether it runs nothing and has in memory what is waited for, and is not avoided."""
        if agent in self.registry.avoidance.for_demand(demand):
            return False
        warm = agent.loaded_models.get(key.model)
        ready = warm.runner in (None, demand.runner) if warm is not None else not agent.memory_known
        listed = agent.models is not None
        return ready and listed and not agent.running and not agent.loading and self.has_free_slot(agent, key)

    # The choice, computed plainly

    def plain(self, demand: Demand, exclude: Collection[Agent], ahead: int, waited: float) -> float | None:
        """What the chosen agent costs; None: it is better to wait."""
        at = Situation(self.registry.learner, self.clock.now, self.queue.count, lambda: 0.5)
        prefix = self.registry.learner.prefix_cache.find(demand)
        able = [a for a in self.fleet.values() if a.eligible and a.models is not None and demand.model in a.models]
        estimates = [AgentEstimate(agent, demand.model, demand.runner) for agent in able]
        for forecast in estimates:
            forecast.refresh(at)
        pace = sum(1 / f.wait for f in estimates if f.full and not f.cold)
        queue = ahead / pace if pace else 0.0

        def cost(f: AgentEstimate) -> float:
            cached = prefix if prefix is not None and prefix.agent is f.agent and not f.cold else None
            unread = demand.tokens - (cached.tokens if cached is not None else 0)
            part = ahead / (ahead + 1)
            total = f.fixed + (1.0 if demand.tools else 0.15) * f.writes + f.per_token * unread - f.shared * part
            total -= f.displacement if cached is not None and cached.gives_way else 0.0
            return total + (queue if f.full else 0.0) + (f.eviction(at) if f.evicts else 0.0)

        costs = {f: cost(f) for f in estimates if f.agent not in exclude}
        assert all(map(math.isfinite, costs.values()))
        if not costs:
            return math.inf
        best = min(costs, key=costs.__getitem__)
        if not best.full:
            return costs[best]
        patience = waited if waited < LONGEST_PATIENCE else math.inf
        return min((costs[f] for f in costs if not f.full and (costs[f] <= patience or f.sole)), default=None)

    @rule(
        model=models,
        runner=runners,
        turns=st.integers(0, 2),
        conversation=prefix_cache,
        excluded=st.sets(names, max_size=2),
        ahead=st.integers(0, 3),
        waited=st.sampled_from((0.0, 10.0, 1000.0, 1000.0)),
    )
    def choose(
        self,
        model: str,
        runner: str,
        turns: int,
        conversation: int,
        excluded: set[str],
        ahead: int,
        waited: float,
    ) -> None:
        """The agent chosen costs what the cheapest does when all are looked into."""
        self.registry.expire()
        if self.registry.mode != "adaptive":
            return
        self.forget_forecasts()
        demand = self.demand(model, runner, turns, conversation)
        exclude = [self.fleet[name] for name in sorted(excluded) if name in self.fleet]
        choice = self.registry.selection.choose(demand, exclude, ahead=ahead, waited=waited)
        expected = self.plain(demand, exclude, ahead, waited)
        if expected is None:
            assert choice.agent is None or choice.agent.models is None
        elif expected == math.inf:
            assert not choice.options
        else:
            assert choice.agent is not None
            assert choice.options[0].agent == choice.agent.name
            assert choice.options[0].cost == pytest.approx(expected, rel=1e-6, abs=1e-6)

    def forget_forecasts(self) -> None:
        """What was learned of one agent changes what is thought of the others."""
        for agent in self.fleet.values():
            agent.epoch += 1

    # Recounts

    @invariant()
    def requests_are_counted_once(self) -> None:
        placement = self.registry.learner.placement
        running = Counter((lease.agent, lease.model) for lease in self.leases)
        loads = Counter(
            [lease.agent for lease in self.leases if lease.loading] + [load.agent for load in self.preloads]
        )
        for agent in self.everybody:
            ours = {model: n for (holder, model), n in running.items() if holder is agent}
            assert agent.running == ours
            assert agent.in_flight == sum(ours.values())
            assert sum(agent.loaders.values()) == loads[agent]
            assert agent.loading.keys() <= agent.loaders.keys()
            assert agent.evicting | agent.restarted <= agent.loading.keys()
            assert agent.full <= ours.keys()
            assert agent.half_open_lease is None or agent.half_open_lease in self.leases
            if not agent.removed and agent.health.phase is Phase.SLOW_START and not agent.running and not agent.loaders:
                assert not agent.closed
        for model in MODELS:
            assert placement.use(model).in_flight == sum(n for (_, other), n in running.items() if other == model)

    @invariant()
    def placement_is_what_a_recount_gives(self) -> None:
        placement = self.registry.learner.placement
        for model in MODELS:
            use = placement.use(model)
            holders = {a for a in self.everybody if a.eligible and a.holds(model) and model in (a.models or {})}
            assert use.slots_by_agent == {agent: agent.slots_for(model) for agent in holders}
            assert set(use.holders) == holders
            assert set(use.free) == {agent for agent in holders if model not in agent.full}
            assert use.slots == sum(use.slots_by_agent.values())
            assert use.average_load(0, self.clock.now) >= 0

    @invariant()
    def the_line_is_what_a_recount_gives(self) -> None:
        waiting = [ticket for ticket in self.tickets if ticket.waiting]
        assert len(self.queue) == len(waiting)
        assert {m: self.queue.count(m) for m in MODELS} == {m: sum(w.key.model == m for w in waiting) for m in MODELS}
        homes = {ticket for oldest_with_affinity in self.queue._by_affinity.values() for ticket in oldest_with_affinity}
        assert homes == {ticket for ticket in waiting if ticket.affinity is not None}

    # The end

    def teardown(self) -> None:
        """Whoever still waits is served once there is time and an agent; and nothing is left when all have ended."""
        self.registry.mode = "adaptive"
        for _ in range(200):
            if not len(self.queue):
                break
            for lease in self.leases:
                lease.release(Outcome.CANCELLED)
            self.leases.clear()
            self.clock.now += 5
            for agent in self.fleet.values():
                self.registry.resume(agent)
                self.registry.liveness.reached(agent)
            self.registry.expire()
            self.scheduler.look()
        self.end_all()
        self.scheduler.look()
        assert not len(self.queue), self.queue.active_keys()
        assert not self.queue._by_affinity
        assert not self.queue._models
        for agent in self.everybody:
            assert (agent.in_flight, agent.running, agent.loaders, agent.full) == (0, {}, {}, set())
            assert (agent.loading, agent.evicting, agent.answering) == ({}, set(), {})
            self.registry.remove(agent)
        for model in MODELS:
            use = self.registry.learner.placement.use(model)
            assert (use.in_flight, use.slots, use.slots_by_agent, len(use.holders), len(use.free)) == (0, 0, {}, 0, 0)

    def end_all(self) -> None:
        while self.leases:
            self.leases.pop().release(Outcome.CANCELLED)
        while self.preloads:
            self.registry.preloading.ended(self.preloads.pop(), Ending.FAILED)


AdaptiveMachine.TestCase.settings = settings(
    derandomize=True, deadline=None, max_examples=250, stateful_step_count=50, database=None
)
TestAdaptiveAgainstRecounts = AdaptiveMachine.TestCase
