"""One simulation: the balancer's core in front of simulated hosts."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from agent_reporter.wire import AgentMetrics, GpuMetrics, ModelEntry

from ..core.address import Address
from ..core.agent import Agent
from ..core.agent_records import Outcome
from ..core.demand import Demand
from ..core.leases import Lease
from ..core.observations import AnswerObservation
from ..core.preloading import Ending
from ..core.queue import QueueFullError, RequestQueue
from ..core.registry import AgentRegistry
from ..core.scheduler import Scheduler
from ..core.tickets import QueueKey, Ticket
from ..ollama.names import canonical_name
from .engine import Engine, Event
from .hosts import Host, Job, Model, Runner
from .workload import Request, Workload

REPORT_SECONDS = 10.0
PROBE_SECONDS = 5.0
"""Between two probes of a host without a reporter."""

POLL_SECONDS = 0.5
QUERY_SECONDS = 0.05
RETRIES = 2
PATIENCE = 60.0
"""Seconds for which a client waits for the first token, unless given."""

IN_TIME = 10.0
"""Seconds within which a first token is good."""

UP_SECONDS = 3600.0
"""Mean time between failures of a host."""

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(eq=False)
class Call:
    """A request on its way."""

    request: Request
    demand: Demand
    tried: list[Agent] = field(default_factory=list)
    lease: Lease | None = None
    job: Job | None = None
    ticket: Ticket | None = None
    first: float | None = None
    done: bool = False
    give_up_event: Event | None = None


@dataclass
class Result:
    """What became of the requests that came after the warm-up; times in seconds."""

    asked: int = 0
    good: int = 0
    """First token in time, and served whole."""
    outcomes: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    """Until the first token; of those that had none, until they were given up."""
    total: list[float] = field(default_factory=list)
    """Of those that were served whole."""
    loads: int = 0
    clients: Counter[str] = field(default_factory=Counter)
    good_of: Counter[str] = field(default_factory=Counter)
    agents: Counter[str] = field(default_factory=Counter)
    """By name, of how many requests each was the last to get them."""

    @property
    def goodput(self) -> float:
        """Percent."""
        return 100 * self.good / self.asked if self.asked else 0.0

    @property
    def loads_per_thousand(self) -> float:
        return 1000 * self.loads / self.asked if self.asked else 0.0

    @property
    def fairness(self) -> float:
        """Jain's index of the clients' parts of good answers: 1 where all have the same. NaN: too few to tell."""
        parts = [self.good_of[client] / asked for client, asked in self.clients.items() if asked >= 20]
        squares = sum(part * part for part in parts)
        return sum(parts) ** 2 / (len(parts) * squares) if squares else float("nan")


class Simulation:
    """`patience` is for how many seconds a client waits for the first token.

    Without `reporters` the balancer knows of a host what its probes find, /api/tags and /api/ps, and what answers show.
    """

    def __init__(
        self,
        workload: Workload,
        mode: str,
        seed: int,
        *,
        reporters: bool = True,
        reports_slots: bool = True,
        patience: float = PATIENCE,
    ) -> None:
        self.workload = workload
        self.patience = patience
        self.engine = engine = Engine()
        self.rng = random.Random(f"{seed} troubles")  # of its own, so that all modes meet the same ones
        chance = random.Random(f"{seed} choices").random
        self.registry = AgentRegistry(engine, mode=mode, chance=chance, canonical_name=canonical_name)
        self.queue = RequestQueue(engine)
        self.scheduler = Scheduler(self.registry, self.queue)
        self.registry.fleet.on_load = lambda agent: self.engine.after(QUERY_SECONDS, partial(self._query, agent))
        self.result = Result()
        self.reports_slots = reports_slots
        self._contact, self._interval = (self._report, REPORT_SECONDS) if reporters else (self._probe, PROBE_SECONDS)
        self.hosts: dict[Agent, Host] = {}
        self.models = models = {model.name: model for model in workload.models}
        for number, spec in enumerate(workload.hosts):
            address = Address(f"10.0.{number // 250}.{number % 250 + 1}", 11434)
            agent, _ = self.registry.register(spec.name or f"h{number}", address)
            has = models if spec.rates is None else spec.rates
            self.registry.inventory.update_models(agent, [_entry(models[name]) for name in has])
            host = self.hosts[agent] = Host(engine, spec, agent.name)
            host.runners = {name: Runner(models[name]) for name in spec.loaded}
            self._contact(agent)
            engine.after(self.rng.uniform(0, self._interval), partial(self._contact_regularly, agent))
            if workload.failures:
                engine.after(self.rng.expovariate(1 / UP_SECONDS), partial(self._inject_failure, agent))
        self._calls_ahead = iter(workload.requests)

    def run(self) -> Result:
        workload = self.workload
        self._next_call()
        self.engine.after(POLL_SECONDS, self._tick)
        self.engine.run(workload.warm_up)
        before = sum(host.loads for host in self.hosts.values())
        self.engine.run(workload.warm_up + workload.seconds + 2 * self.patience)
        self.result.loads = sum(host.loads for host in self.hosts.values()) - before
        return self.result

    # Requests

    def _next_call(self) -> None:
        request = next(self._calls_ahead, None)
        if request is not None:
            self.engine.after(request.at - self.engine.now, lambda: self._arrive(request))

    def _arrive(self, request: Request) -> None:
        self._next_call()
        self._ask(request)

    def _ask(self, request: Request) -> None:
        key = request.conversation.to_bytes(16)
        demand = request.demand or Demand(
            request.model.name,
            tokens=request.prompt,
            prefixes=((key, request.known),) if request.known else (),
            new_prefixes=((key, request.prompt + request.output),),
        )
        call = Call(request, demand)
        call.give_up_event = self.engine.after(self.patience, lambda: self._give_up(call))
        self._route(call)

    def _route(self, call: Call) -> None:
        model = call.demand.model
        agent = self.scheduler.find(call.demand, call.tried).agent
        if agent is not None:
            self._send(call, self.registry.limiter.take(agent, model, call.demand))
            return
        tried = frozenset(call.tried)
        if not self.registry.selection.could_serve(model, tried):
            self._end(call, "refused")
            return

        def notify(lease: Lease | None) -> None:
            call.ticket = None
            if lease is None:
                self._end(call, "refused")
            else:
                self._send(call, lease)

        try:
            call.ticket = self.scheduler.join(QueueKey(model, tried=tried), call.request.client, notify, call.demand)
        except QueueFullError:
            self._end(call, "queue full")

    def _send(self, call: Call, lease: Lease) -> None:
        call.lease = lease
        agent = lease.agent
        call.tried.append(agent)
        host = self.hosts[agent]
        request = call.request
        if not host.up:
            self.engine.after(0.0, lambda: self._failed(call, lease, "refused", connected=False))
            return
        call.job = Job(
            request.model,
            request.conversation,
            request.prompt,
            request.output,
            began=lambda: self._first_token(call, lease),
            ended=lambda whole: self._finished(call, lease, whole),
            known=request.known,
        )
        host.submit(call.job)

    def _first_token(self, call: Call, lease: Lease) -> None:
        if not call.done and call.lease is lease:
            call.first = self.engine.now
            lease.agent.heard(self.engine.now)
            lease.began()

    def _finished(self, call: Call, lease: Lease, whole: bool) -> None:
        if call.done or call.lease is not lease or call.job is None:
            return
        job = call.job
        if not whole:
            self._failed(call, lease, "the host failed", connected=True)
            return
        answer = AnswerObservation(
            prompt_tokens=job.prompt,
            prompt_seconds=job.first - job.ready,
            output_tokens=job.output,
            output_seconds=job.finished - job.first,
            load_seconds=max(0.02, job.ready - job.arrived),
        )
        self.registry.limiter.answered(lease, answer)
        self.registry.ejection.succeeded(lease)
        lease.release(Outcome.SUCCEEDED, self.engine.now - call.request.at)
        self._end(call, "served")

    def _failed(self, call: Call, lease: Lease, reason: str, *, connected: bool) -> None:
        if call.done or call.lease is not lease:
            return
        self.registry.ejection.failed(lease, reason)
        lease.release(Outcome.FAILED)
        call.lease = call.job = None
        if not connected:
            self.registry.liveness.unreachable(lease.agent, reason)
        if call.first is None and len(call.tried) <= RETRIES:
            self._route(call)
        else:
            self._end(call, "failed")

    def _give_up(self, call: Call) -> None:
        """The client gives up waiting."""
        if call.done or call.first is not None:
            return
        if call.ticket is not None:
            self.queue.leave(call.ticket)
        lease, job = call.lease, call.job
        self._end(call, "gave up")
        if lease is not None:
            if job is not None:
                self.hosts[lease.agent].cancel(job)
            lease.release(Outcome.CANCELLED)

    def _end(self, call: Call, outcome: str) -> None:
        call.done = True
        if call.give_up_event is not None:
            call.give_up_event.cancel()
        request, result = call.request, self.result
        if request.at < self.workload.warm_up:
            return
        now = self.engine.now
        first = (call.first if call.first is not None else now) - request.at
        result.asked += 1
        result.outcomes[outcome] += 1
        result.clients[request.client] += 1
        result.first.append(first)
        if call.tried:
            result.agents[call.tried[-1].name] += 1
        if outcome == "served":
            result.total.append(now - request.at)
            if first <= IN_TIME:
                result.good += 1
                result.good_of[request.client] += 1

    # The fleet

    def _tick(self) -> None:
        """The periodic work of the balancer."""
        self.registry.expire()
        self.scheduler.look()
        self._preload()
        self.engine.after(POLL_SECONDS, self._tick)

    def _preload(self) -> None:
        due = self.registry.preloading.due()
        if due is None:
            return
        agent, model, instead = due

        def ended(whole: bool) -> None:
            self.registry.preloading.ended(due, Ending.LOADED if whole else Ending.FAILED)

        host = self.hosts[agent]
        if host.up:
            if instead is not None:
                host.unload(instead)
                self.registry.inventory.unloaded(agent, instead)
            host.submit(Job(self.models[model], 0, 1, 1, began=lambda: None, ended=ended))
        else:
            ended(whole=False)

    def _contact_regularly(self, agent: Agent) -> None:
        if self.hosts[agent].up:
            self._contact(agent)
        self.engine.after(self._interval, lambda: self._contact_regularly(agent))

    def _probe(self, agent: Agent) -> None:
        self.hosts[agent].unload_idle()
        self._query(agent)
        self.registry.liveness.reached(agent)

    def _query(self, agent: Agent) -> None:
        """The balancer asks a host that has loaded a model what it has in memory."""
        host = self.hosts[agent]
        if host.up:
            self.registry.inventory.update_loaded(agent, _loaded(host))

    def _report(self, agent: Agent) -> None:
        host = self.hosts[agent]
        host.unload_idle()
        spec = host.spec
        running = host.running
        sized = spec.memory < math.inf
        gpus = [GpuMetrics(name=f"the GPU of {agent.name}", memory_total=round(spec.memory))] if sized else None
        self.registry.update_metrics(
            agent.id,
            AgentMetrics(
                cpu_usage=min(100.0, 5 + 85.0 * running / max(1, spec.parallel)),
                memory_usage=min(100.0, 20 + 70.0 * len(host.runners) / spec.fits),
                active_requests=0,
                timestamp=START + timedelta(seconds=self.engine.now),
                loaded_models=_loaded(host),
                num_parallel=spec.parallel if self.reports_slots else None,
                max_loaded_models=spec.fits if self.reports_slots and not sized else None,
                gpus=gpus,
                ollama_ok=True,
            ),
        )
        if self.registry.liveness.needs_probe(agent):
            self.registry.liveness.reached(agent)

    def _inject_failure(self, agent: Agent) -> None:
        """Crash or slow down the host for a while."""
        host = self.hosts[agent]
        seconds = self.rng.uniform(30, 120)
        if self.rng.random() < 0.5:
            host.crash()

            def recover() -> None:
                host.up = True
                self._contact(agent)
        else:
            host.change_pace(4.0)

            def recover() -> None:
                host.change_pace(1.0)

        self.engine.after(seconds, recover)
        self.engine.after(seconds + self.rng.expovariate(1 / UP_SECONDS), lambda: self._inject_failure(agent))


def _loaded(host: Host) -> list[ModelEntry]:
    return [_entry(runner.model) for runner in host.runners.values()]


def _entry(model: Model) -> ModelEntry:
    sized = {"size": round(model.size)} if model.size else {}
    return ModelEntry.model_validate({"name": model.name, **sized})
