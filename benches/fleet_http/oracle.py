"""Where each request does best, for who knows all that is going on, and which models are asked for how much.

The oracle sees what every host does, how fast it is, what fits in it and how long each answer will be; of the requests
to come it knows nothing, but for one thing that a second oracle is given: each model is loaded where it is to stay
before the first request comes. To judge a host for a request it copies the host, gives the copy the request and runs it
until all there are served. A request is kept back as long as its best host would only have it wait: what comes in
between is known when its turn is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benches.fleet_simulation.workload import power
from ollama_balancer.lab.engine import Engine, Event
from ollama_balancer.lab.hosts import Host, Job, Model, Spec
from ollama_balancer.lab.workload import Request

IN_TIME = 10.0
"""Seconds within which a first token is good."""

MISSED = 1000.0
"""Seconds that a first token counts for that comes too late: more than all else."""

ANSWER_WEIGHT = 0.15
"""What a second of answering counts against a second before the first token."""

MOST = 8
"""Requests that are looked at together; the others come after them anyway."""

SHORTEST = 0.001
"""Seconds between two looks at the same requests."""


@dataclass(frozen=True)
class Goal:
    """What the oracle makes as small as it can."""

    in_time: float = IN_TIME
    answer_weight: float = ANSWER_WEIGHT


@dataclass(frozen=True)
class Outlook:
    """What would become of one host. `costs` are of all requests there, in seconds."""

    costs: dict[Job, float]
    at_once: bool
    """Whether the last of them gets its slot, or has its model loaded, now."""
    slot: float
    """When the last of them gets its slot."""


class Oracle:
    """Takes requests as a host does, by `submit` and `cancel`, and has them served by hosts, each with its models."""

    def __init__(self, engine: Engine, hosts: Mapping[Host, Sequence[Model]], goal: Goal = Goal()) -> None:
        self.engine = engine
        self.hosts = hosts
        self.goal = goal
        self.held: list[Job] = []
        """Not sent to a host yet."""
        self._arrived: dict[Job, float] = {}
        self._where: dict[Job, Host] = {}
        self._outlooks: dict[Host, Outlook] = {}
        """Of the hosts as they are: they hold until something is sent there, or cancelled."""
        self._alarm: Event | None = None
        for host in hosts:
            self._load_models(host)

    def _load_models(self, host: Host) -> None:
        for model in self.hosts[host]:
            self._send(self._load(model), host)

    def _load(self, model: Model) -> Job:
        """The shortest request there is: to have the model loaded."""
        job = Job(model, 0, 1, 1, began=lambda: None, ended=lambda whole: self._forget(job))
        self._arrived[job] = self.engine.now
        return job

    def submit(self, job: Job) -> None:
        self._arrived[job] = self.engine.now
        self.held.append(job)
        tell = job.ended

        def ended(whole: bool) -> None:
            self._forget(job)
            tell(whole)
            self._place()

        job.ended = ended
        self._place()

    def cancel(self, job: Job) -> None:
        """The client has hung up."""
        host = self._where.get(job)
        if host is not None:
            host.cancel(job)
            self._outlooks.pop(host, None)
        elif job in self.held:
            self.held.remove(job)
        self._forget(job)
        self._place()

    def lost(self, host: Host) -> None:
        """The host is down, and its jobs have failed."""
        self._outlooks.pop(host, None)
        self._place()

    def back(self, host: Host) -> None:
        """The host is up again, with nothing loaded."""
        self._load_models(host)
        self._place()

    def _forget(self, job: Job) -> None:
        self._arrived.pop(job, None)
        self._where.pop(job, None)

    def _place(self) -> None:
        """Send each request that is held to the host where it does best, if that serves it at once."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        now = self.engine.now
        planned: dict[Host, list[Job]] = {}
        outlooks: dict[Host, Outlook] = {}
        soonest = math.inf
        up = [host for host in self.hosts if host.up]
        for job in self._in_order()[:MOST] if up else ():
            best: tuple[float, Host, Outlook] | None = None
            for host in [host for host in up if job.model in self.hosts[host]] or up:
                before = outlooks.get(host) or self._outlook(host)
                after = self._look_ahead(host, [*planned.get(host, ()), job])
                more = sum(cost - before.costs.get(each, 0.0) for each, cost in after.costs.items())
                if best is None or more < best[0]:
                    best = more, host, after
            assert best is not None
            _, host, outlook = best
            if outlook.at_once:
                self.held.remove(job)
                self._send(job, host)
            else:
                planned.setdefault(host, []).append(job)
                soonest = min(soonest, outlook.slot, host.load_until if host.loading is not None else math.inf)
            outlooks[host] = outlook
        if soonest < math.inf:
            self._alarm = self.engine.after(max(SHORTEST, soonest - now), self._place)

    def _in_order(self) -> list[Job]:
        """First those that may still be in time, and of them those that have waited longest."""
        late = self.engine.now - self.goal.in_time
        return sorted(self.held, key=lambda job: (self._arrived[job] < late, self._arrived[job]))

    def _send(self, job: Job, host: Host) -> None:
        self._where[job] = host
        self._outlooks.pop(host, None)
        host.submit(job)

    def _outlook(self, host: Host) -> Outlook:
        outlook = self._outlooks.get(host)
        if outlook is None:
            outlook = self._outlooks[host] = self._look_ahead(host, [])
        return outlook

    def _look_ahead(self, host: Host, more: Sequence[Job]) -> Outlook:
        """Have a copy of the host serve all that is there, and then these requests."""
        engine = Engine()
        engine.now = self.engine.now
        copy, jobs = host.copy(engine)
        at_once = False
        for job in more:
            jobs[job] = added = job.copy()
            copy.submit(added)
            loads = copy.loading is not None and copy.queue[0] is added
            at_once = loads or added.read > 0
        engine.run(math.inf)
        slot = jobs[more[-1]].ready if more else math.inf
        return Outlook({job: self._cost(job, served) for job, served in jobs.items()}, at_once, slot)

    def _cost(self, job: Job, served: Job) -> float:
        first = served.first - self._arrived[job]
        missed = MISSED if first > self.goal.in_time else 0.0
        return first + self.goal.answer_weight * (served.finished - served.first) + missed


def placed(specs: Sequence[Spec], requests: Iterable[Request]) -> list[list[Model]]:
    """Which models each host is best to keep in memory, for what is asked for on the whole.

    Each host gets as many as it holds; the next place, of the fastest hosts first, is the model's that has the least
    for what it is asked.
    """
    demand: dict[Model, float] = {}
    for request in requests:
        model = request.model
        work = (request.prompt - request.known) / model.prefill + request.output / model.pace
        demand[model] = demand.get(model, 0.0) + work
    powers = [power(spec) for spec in specs]
    places: list[list[Model]] = [[] for _ in specs]

    def supply(model: Model) -> float:
        return sum(powers[n] / len(models) for n, models in enumerate(places) if model in models)

    for number in range(max(spec.fits for spec in specs)):
        for n in sorted(range(len(specs)), key=lambda n: -powers[n]):
            free = [model for model in demand if model not in places[n]]
            if number < specs[n].fits and free:
                places[n].append(min(free, key=lambda model: supply(model) / demand[model]))
    return places
