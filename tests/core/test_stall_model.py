"""No request waits while a host that could serve it is idle: line, health and loads under any sequence of events.

The hosts are simulated in steps of half a second, in each of which the balancer looks at the line once: they run each
model's requests first in, first out, load one model at a time, freeze while they load, fail, fall silent and come back.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.health import Phase
from ollama_balancer.core.leases import SlotLease
from ollama_balancer.core.observations import AnswerObservation
from ollama_balancer.core.policies import POLICIES
from ollama_balancer.core.policies.adaptive import LONGEST_PATIENCE
from ollama_balancer.core.pools import belongs
from ollama_balancer.core.priority import Priority
from ollama_balancer.core.queue import QueueFullError, RequestQueue
from ollama_balancer.core.scheduler import HEADS, Scheduler
from ollama_balancer.core.tickets import QueueKey, Ticket
from tests.core.fakes import Clock, address, entries, new_registry, report

NAMES = ("a", "b", "c")
MODELS = ("m:latest", "n:latest", "o:latest")
STEP = 0.5
"""Seconds between two looks of the balancer."""

REPORT_STEPS = 10
"""Steps between two reports of a host."""

RETRIES = 2
SILENCE = 30.0
"""Seconds after which a silent host that has the model in memory is given up, as the watchdog does."""

hosts = st.sampled_from(NAMES)


@dataclass(eq=False)
class Call:
    """A request on its way."""

    demand: Demand
    client: str
    seconds: float
    """Of its answer."""
    priority: Priority = Priority.NORMAL
    tried: list[Agent] = field(default_factory=list)
    lease: SlotLease | None = None
    ticket: Ticket | None = None
    left: float = 0.0
    begun: bool = False
    patience: float = 0.0
    awaits_load: bool = False
    idle_since: dict[Agent, float] = field(default_factory=dict)
    """Since when each agent could have had it."""


@dataclass(eq=False)
class Host:
    parallel: int
    fits: int
    load_seconds: float
    memory: dict[str, str] = field(default_factory=dict)
    """Models in memory, with the options that they were loaded with."""
    queue: deque[Call] = field(default_factory=deque)
    running: list[Call] = field(default_factory=list)
    loading: Call | None = None
    load_left: float = 0.0
    frozen: bool = False
    up: bool = True
    failing: bool = False

    def ready(self, call: Call) -> bool:
        return self.memory.get(call.demand.model) == call.demand.runner

    def idle(self) -> bool:
        return self.up and not (self.frozen or self.failing or self.queue or self.running)

    def drop(self, call: Call) -> None:
        """Its caller has gone; a load goes with the request that began it."""
        if call in self.queue:
            self.queue.remove(call)
        if call in self.running:
            self.running.remove(call)
        if self.loading is call:
            self.loading = None

    def step(self) -> Iterator[tuple[Call, str]]:
        """Half a second: what becomes of the requests."""
        if self.frozen:
            return
        for call in list(self.running):
            call.left -= STEP
            if not call.begun and call.demand.streams:
                yield call, "began"
            elif call.left <= 0:
                self.running.remove(call)
                yield call, "ended"
        if self.loading is not None:
            self.load_left -= STEP
            if self.load_left <= 0:
                self.memory[self.loading.demand.model] = self.loading.demand.runner
                self.loading = None
        self._hand_out()

    def _hand_out(self) -> None:
        while self.queue and self.loading is None:
            call = self.queue[0]
            model = call.demand.model
            ours = sum(other.demand.model == model for other in self.running)
            if self.ready(call):
                if ours >= self.parallel:
                    return
                self.running.append(self.queue.popleft())
                continue
            busy = {other.demand.model for other in self.running}
            if model in busy:
                return
            self.memory.pop(model, None)
            while len(self.memory) >= self.fits:
                idle = [other for other in self.memory if other not in busy]
                if not idle:
                    return
                del self.memory[idle[0]]
            self.loading, self.load_left = call, self.load_seconds


class StallMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(0)
        self.registry = new_registry(self.clock, chance=random.Random(1).random)
        self.queue = RequestQueue(self.clock, size=40)
        self.scheduler = Scheduler(self.registry, self.queue)
        self.hosts: dict[Agent, Host] = {}
        self.by_name: dict[str, Agent] = {}
        self.calls: list[Call] = []
        self.steps = 0
        self.tells_slots = self.tells_fits = False

    # The fleet

    @initialize(
        mode=st.sampled_from(("adaptive", "adaptive", "adaptive", *POLICIES)),
        parallel=st.lists(st.sampled_from((1, 1, 2, 4)), min_size=3, max_size=3),
        fits=st.lists(st.sampled_from((1, 1, 2)), min_size=3, max_size=3),
        loads=st.lists(st.sampled_from((2.0, 8.0, 30.0)), min_size=3, max_size=3),
        has=st.lists(st.sets(st.sampled_from(MODELS[:2]), min_size=1), min_size=3, max_size=3),
        tells_slots=st.booleans(),
        tells_fits=st.booleans(),
    )
    def begin(
        self,
        mode: str,
        parallel: list[int],
        fits: list[int],
        loads: list[float],
        has: list[set[str]],
        tells_slots: bool,
        tells_fits: bool,
    ) -> None:
        self.registry.mode = mode
        self.tells_slots, self.tells_fits = tells_slots, tells_fits
        for number, name in enumerate(NAMES):
            agent, _ = self.registry.register(name, address(number + 1))
            self.by_name[name] = agent
            self.hosts[agent] = Host(parallel[number], fits[number], loads[number])
            self.registry.inventory.update_models(agent, entries(*sorted({*has[number], MODELS[2]})))
            self.report(agent)

    def report(self, agent: Agent) -> None:
        host = self.hosts[agent]
        self.registry.update_metrics(
            agent.id,
            report(
                at=self.clock.now,
                loaded_models=entries(*host.memory),
                num_parallel=host.parallel if self.tells_slots else None,
                max_loaded_models=host.fits if self.tells_fits else None,
                ollama_ok=True,
            ),
        )
        if self.registry.liveness.needs_probe(agent):
            self.registry.liveness.reached(agent)

    # What happens

    @rule(
        model=st.sampled_from(MODELS),
        runner=st.sampled_from(("", "", "", "num_ctx=8192")),
        many=st.sampled_from((1, 1, 2, 5)),
        seconds=st.sampled_from((0.5, 2.0, 10.0)),
        streams=st.sampled_from((True, True, False)),
        conversation=st.integers(0, 3),
        client=st.sampled_from("xy"),
        priority=st.sampled_from(Priority),
    )
    def arrive(
        self,
        model: str,
        runner: str,
        many: int,
        seconds: float,
        streams: bool,
        conversation: int,
        client: str,
        priority: Priority,
    ) -> None:
        for number in range(many):
            key = b"%d %b" % (conversation + number, model.encode())
            demand = Demand(model, runner, 600, ((key, 500),), ((key, 600),), streams=streams)
            call = Call(demand, client, seconds, priority)
            self.calls.append(call)
            self.route(call)

    def route(self, call: Call) -> None:
        demand, tried = call.demand, call.tried
        choice = self.scheduler.find(demand, tried)
        if choice.agent is not None:
            lease = self.registry.limiter.take(choice.agent, demand.model, demand, choice.options)
            assert isinstance(lease, SlotLease)
            self.send(call, lease)
            return
        if not self.registry.selection.could_serve(demand.model, tried):
            self.calls.remove(call)
            return

        def notify(lease: object) -> None:
            call.ticket = None
            call.idle_since.clear()
            if lease is None:
                self.calls.remove(call)
            else:
                assert isinstance(lease, SlotLease)
                self.send(call, lease)

        try:
            call.ticket = self.scheduler.join(
                QueueKey(demand.model, tried=frozenset(tried)), call.client, notify, demand, priority=call.priority
            )
        except QueueFullError:
            self.calls.remove(call)

    def send(self, call: Call, lease: SlotLease) -> None:
        agent = lease.agent
        assert agent.available
        assert agent not in call.tried
        call.lease, call.begun, call.left = lease, False, call.seconds
        call.patience, call.awaits_load = self.clock.now, lease.loading
        call.tried.append(agent)
        self.hosts[agent].queue.append(call)

    def fail(self, call: Call, reason: str) -> None:
        lease = call.lease
        assert lease is not None
        self.hosts[lease.agent].drop(call)
        self.registry.ejection.failed(lease, reason)
        lease.release(Outcome.FAILED)
        call.lease = None
        if call.begun or len(call.tried) > RETRIES:
            self.calls.remove(call)
        else:
            self.route(call)

    def end(self, call: Call) -> None:
        lease = call.lease
        assert lease is not None
        if not call.begun:
            lease.began()
        tokens = round(20 * call.seconds)
        self.registry.ejection.succeeded(lease)
        self.registry.limiter.answered(
            lease, AnswerObservation(600, 0.5, tokens, call.seconds, streamed=call.demand.streams)
        )
        lease.release()
        call.lease = None
        self.calls.remove(call)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.calls))
        self.calls.remove(call)
        if call.ticket is not None:
            self.queue.leave(call.ticket)
        if call.lease is not None:
            self.hosts[call.lease.agent].drop(call)
            call.lease.release(Outcome.CANCELLED)

    @rule(name=hosts, event=st.sampled_from(("freeze", "thaw", "fail", "mend", "down", "up", "flap", "unload")))
    def trouble(self, name: str, event: str) -> None:
        agent = self.by_name[name]
        host = self.hosts[agent]
        match event:
            case "freeze" | "thaw":
                host.frozen = event == "freeze"
            case "fail" | "mend":
                host.failing = event == "fail"
            case "down" if host.up:
                host.up = False
                host.memory.clear()
                self.registry.liveness.unreachable(agent, "refused")
                for call in [*host.running, *host.queue]:
                    self.fail(call, "it died")
            case "up":
                host.up = True
            case "flap":
                self.registry.liveness.unreachable(agent, "late")
            case "unload":
                for model in list(host.memory):
                    if not any(call.demand.model == model for call in host.running):
                        del host.memory[model]

    @rule(name=hosts)
    def freeze_when_it_loads(self, name: str) -> None:
        host = self.hosts[self.by_name[name]]
        host.frozen = host.frozen or host.loading is not None

    @rule(name=hosts, event=st.sampled_from(("drain", "resume", "resume")))
    def manage(self, name: str, event: str) -> None:
        getattr(self.registry, event)(self.by_name[name])

    @rule(seconds=st.sampled_from((0.5, 1.0, 3.0, 10.0, 40.0, 150.0)))
    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.step()

    def step(self) -> None:
        self.clock.now += STEP
        self.steps += 1
        for number, (agent, host) in enumerate(self.hosts.items()):
            if host.failing:
                for call in [*host.running, *host.queue]:
                    self.fail(call, "it fails")
            for call, what in host.step():
                agent.heard(self.clock.now)
                if what == "began":
                    call.begun = True
                    assert call.lease is not None
                    call.lease.began()
                else:
                    self.end(call)
            if host.up and (self.steps + number) % REPORT_STEPS == 0:
                self.report(agent)
        self.registry.expire()
        self.scheduler.look()
        self.watch()
        self.check_line()
        self.check_counts()

    def watch(self) -> None:
        """Give up what is silent, as the watchdog does."""
        now = self.clock.now
        for call in list(self.calls):
            lease = call.lease
            if lease is None or call.begun:
                continue
            agent = lease.agent
            if not agent.online:
                if not call.awaits_load:
                    self.fail(call, "it went offline")
            elif now - max(call.patience, agent.heard_at) >= SILENCE:
                if call.demand.model not in self.hosts[agent].memory:
                    call.awaits_load = True
                elif call.awaits_load:
                    call.awaits_load, call.patience = False, now
                else:
                    self.fail(call, "silent")

    # What holds

    def check_line(self) -> None:
        now = self.clock.now
        next_tickets = {ticket for key in self.queue.active_keys() for ticket in self.queue.next_tickets(key, HEADS)}
        for call in self.calls:
            if call.ticket not in next_tickets or call.ticket is None:
                call.idle_since.clear()
                continue
            avoided = self.registry.avoidance.for_demand(call.demand)
            for agent, host in self.hosts.items():
                model = call.demand.model
                able = agent.eligible and agent not in call.tried and model in (agent.models or {})
                warm = agent.loaded_models.get(model)
                idle = able and not agent.running and agent not in avoided
                ready = warm is not None and warm.runner in (None, call.demand.runner)
                assert not (idle and ready), f"{agent.name} is idle and has {model} in memory, {self.about(call)}"
                if idle:
                    since = call.idle_since.setdefault(agent, now)
                    limit = 15.0 if host.idle() and host.ready(call) else LONGEST_PATIENCE + 15
                    assert now - since < limit, f"{agent.name} has been idle for {now - since} s, {self.about(call)}"
                else:
                    call.idle_since.pop(agent, None)

    def about(self, call: Call) -> str:
        assert call.ticket is not None
        return f"{call.demand.model} has waited for {self.clock.now - call.ticket.since} s"

    def check_counts(self) -> None:
        running = Counter((call.lease.agent, call.lease.model) for call in self.calls if call.lease is not None)
        loads = Counter(call.lease.agent for call in self.calls if call.lease is not None and call.lease.loading)
        for agent in self.hosts:
            ours = {model: n for (holder, model), n in running.items() if holder is agent}
            assert agent.running == ours
            assert agent.in_flight == sum(ours.values())
            assert sum(agent.loaders.values()) == loads[agent]
            assert agent.loading.keys() <= agent.loaders.keys()
            assert agent.evicting <= agent.loading.keys()
            assert agent.half_open_lease is None or any(call.lease is agent.half_open_lease for call in self.calls)
            match agent.health.phase:
                case Phase.HEALTHY:
                    closed = False
                case Phase.EJECTED:
                    closed = self.clock.now < agent.health.until or agent.half_open_lease is not None
                case Phase.SLOW_START:
                    at_once = agent.fixed_slots or max((each.limit for each in agent.learners.values()), default=2)
                    closed = bool(agent.loaders) or agent.in_flight >= at_once
            assert agent.closed is closed, f"{agent.name} is {agent.health}"
            full = {model for model, n in ours.items() if n >= agent.slots_for(model)}
            assert agent.full == full, f"{agent.name} runs {ours}, and full is {agent.full}"
        for model, pool in self.registry.fleet.pools.by_policy[self.registry.mode].items():
            assert set(pool.candidates.members) == {agent for agent in self.hosts if belongs(agent, model)}
            assert pool._full == {agent for agent in pool.candidates.members if model in agent.full}

    def teardown(self) -> None:
        """When all hosts are well, everything is served."""
        for agent, host in self.hosts.items():
            host.frozen = host.failing = False
            host.up = True
            self.registry.resume(agent)
        for _ in range(4000):
            if not self.calls:
                break
            self.step()
        assert not self.calls
        assert not len(self.queue)
        for agent in self.hosts:
            assert (agent.in_flight, agent.running, agent.loaders, agent.loading, agent.full) == (0, {}, {}, {}, set())
            assert agent.half_open_lease is None


StallMachine.TestCase.settings = settings(
    derandomize=True, deadline=None, max_examples=20, stateful_step_count=30, database=None
)
TestNoRequestWaitsWhileAHostIsIdle = StallMachine.TestCase
