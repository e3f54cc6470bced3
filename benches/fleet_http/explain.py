"""Why requests had to wait too long: for each one the best choice in hindsight, and what kept it from being made.

A host does the same again when it gets the same requests at the same times. So each host is run once more, with the
late request sent to it at the moment it came, and everything else as it was. The best choice is the host where it has
its first token soonest, of those where it is in time and makes none of the others late.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from benches.fleet_simulation.workload import draw
from ollama_balancer.lab.engine import Engine
from ollama_balancer.lab.hosts import Host, Job, Spec
from ollama_balancer.lab.simulation import IN_TIME
from ollama_balancer.lab.workload import Request

from .hosts import Outage, Visit
from .runs import Run

EVICTED_SECONDS = 120.0
"""A model that was evicted within so many seconds before it was needed again should have stayed."""


class Cause(StrEnum):
    """Of a late answer."""

    OVERLOAD = "no choice for this request alone would have helped"
    EVICTED = "its model was evicted less than two minutes before"
    NOWHERE = "its model was loaded nowhere, and a load takes too long"
    SLOT_FREE = "kept waiting, though a host with its model had a free slot"
    WRONG_HOST = "kept waiting for a host, though another one with its model had a slot sooner"
    LOAD_SOONER = "kept waiting, though a load would have been over sooner"
    WARM_SOONER = "caused a load, though a host with its model would have been sooner"
    SLOW_LOAD = "caused a load, where one on another host would have been sooner"
    NO_SLOT = "sent to a host whose slots were taken"
    READING = "its prompt was read where that took longer, or its beginning was not cached"
    NOT_WHOLE = "in time, but not answered whole"


@dataclass(frozen=True)
class Trace:
    """What happened. Times are seconds from the first moment of the requests' trace."""

    specs: Sequence[Spec]
    requests: Sequence[Request]
    visits: Sequence[Visit]
    first: Mapping[int, float]
    """Of the requests that count, by number: seconds to the first token, or until the client gave up."""
    good: set[int]
    outages: Sequence[Outage] = ()

    @classmethod
    def of(cls, run: Run) -> Trace:
        workload, start = draw(run.case.shape, run.case.seed), run.sent.started
        visits = [
            replace(
                visit,
                arrived=visit.arrived - start,
                cancelled=None if visit.cancelled is None else visit.cancelled - start,
            )
            for visit in run.visits
        ]
        outages = [replace(each, begin=each.begin - start, end=each.end - start) for each in run.outages]
        return cls(workload.hosts, workload.requests, visits, run.sent.first, run.sent.good, outages)

    def outages_of(self, host: int) -> list[Outage]:
        return [outage for outage in self.outages if outage.host == host]


@dataclass
class Moment:
    """A host when a request came."""

    warm: bool
    """Whether it has the model loaded."""
    free: bool
    """Whether it has a slot free for it."""


@dataclass
class Replay:
    """What a host did, or would have done."""

    jobs: dict[int, Job] = field(default_factory=dict)
    """By the request's number, of the last visit."""
    moments: dict[int, Moment] = field(default_factory=dict)
    """By number, of the requests that were asked about."""
    evictions: list[tuple[float, str]] = field(default_factory=list)
    """When it evicted which model."""
    loads: list[tuple[float, float, str]] = field(default_factory=list)
    """From when to when it loaded which model."""

    def first(self, number: int, request: Request) -> float:
        """Seconds from the request's coming to its first token; infinite: it never had one."""
        job = self.jobs.get(number)
        return job.first - request.at if job is not None and job.first else float("inf")


class _Watched(Host):
    """A host that notes what it loads and evicts."""

    def __init__(self, engine: Engine, spec: Spec, name: str, replay: Replay) -> None:
        super().__init__(engine, spec, name)
        self.replay = replay

    def _loaded(self) -> None:
        assert self.loading is not None
        model, seconds = self.loading, self.load_seconds(self.loading) * self.slow
        self.replay.loads.append((self.engine.now - seconds, self.engine.now, model.name))
        super()._loaded()

    def _dispatch(self) -> None:
        before = set(self.runners)
        super()._dispatch()
        self.replay.evictions += [(self.engine.now, name) for name in before - self.runners.keys()]


def replay(
    spec: Spec,
    visits: Iterable[Visit],
    requests: Sequence[Request],
    asked: Mapping[int, float] | None = None,
    outages: Iterable[Outage] = (),
) -> Replay:
    """Have a host get those requests; `asked` are moments to look at it, by the number of the request they are for."""
    engine, result = Engine(), Replay()
    host = _Watched(engine, spec, "", result)

    def submit(visit: Visit, job: Job) -> None:
        result.jobs[visit.request] = job
        if host.up:
            host.submit(job)

    def cancel(job: Job) -> None:
        if not job.finished:
            host.cancel(job)

    def look(number: int) -> None:
        name = requests[number].model.name
        runner = host.runners.get(name)
        free = runner is not None and not runner.waiting and len(runner.running) < spec.parallel
        result.moments[number] = Moment(runner is not None, free)

    for outage in outages:
        engine.after(outage.begin, host.crash)
        engine.after(outage.end, partial(setattr, host, "up", True))
    for number, at in (asked or {}).items():
        engine.after(at, partial(look, number))
    for visit in sorted(visits, key=lambda visit: visit.arrived):
        request = requests[visit.request]
        job = Job(request.model, request.conversation, request.prompt, request.output, _nothing, _nothing)
        engine.after(visit.arrived, partial(submit, visit, job))
        if visit.cancelled is not None:
            engine.after(visit.cancelled, partial(cancel, job))
    engine.run(float("inf"))
    return result


def _nothing(whole: bool = True) -> None:
    pass


@dataclass(frozen=True)
class Late:
    """A request that was not good, and the best choice for it."""

    number: int
    first: float
    waited: float
    """Seconds before it was sent to a host; all, if it never was."""
    host: int | None
    """Where it was sent last."""
    best: int | None
    best_first: float
    cause: Cause

    def describe(self, requests: Sequence[Request]) -> str:
        request = requests[self.number]
        sent = "never sent" if self.host is None else f"sent to h{self.host} after {self.waited:.1f} s"
        best = "none better" if self.best is None else f"h{self.best} at once: {self.best_first:.1f} s"
        return (
            f"{request.at:7.1f} s  {request.model.name}  first token after {self.first:.1f} s, {sent}; "
            f"best: {best}; {self.cause}"
        )


class Hindsight:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.by_host: dict[int, list[Visit]] = defaultdict(list)
        for visit in trace.visits:
            self.by_host[visit.host].append(visit)
        late = [number for number in trace.first if number not in trace.good]
        asked = {number: trace.requests[number].at for number in late}
        self.replays = [
            replay(spec, self.by_host[number], trace.requests, asked, trace.outages_of(number))
            for number, spec in enumerate(trace.specs)
        ]
        self.late = [self._look_back(number) for number in late]

    def _look_back(self, number: int) -> Late:
        trace = self.trace
        request, first = trace.requests[number], trace.first[number]
        mine = [visit for visit in trace.visits if visit.request == number]
        last = max(mine, key=lambda visit: visit.arrived) if mine else None
        best, best_first = self._best(number, request)
        waited = first if last is None else last.arrived - request.at
        cause = self._cause(number, request, last, best, waited)
        return Late(number, first, waited, None if last is None else last.host, best, best_first, cause)

    def _best(self, number: int, request: Request) -> tuple[int | None, float]:
        best, soonest = None, IN_TIME
        for host, spec in enumerate(self.trace.specs):
            others = [visit for visit in self.by_host[host] if visit.request != number]
            visits = [*others, Visit(number, host, request.at)]
            again = replay(spec, visits, self.trace.requests, outages=self.trace.outages_of(host))
            first = again.first(number, request)
            if first < soonest and again.jobs[number].finished and self._made_late(host, again, number) <= 0:
                best, soonest = host, first
        return best, soonest

    def _made_late(self, host: int, again: Replay, number: int) -> int:
        """How many more of the others on that host would have been late."""
        requests, before = self.trace.requests, self.replays[host]
        others = {visit.request for visit in self.by_host[host]} - {number}
        late = [sum(each.first(other, requests[other]) > IN_TIME for other in others) for each in (again, before)]
        return late[0] - late[1]

    def _cause(self, number: int, request: Request, last: Visit | None, best: int | None, waited: float) -> Cause:
        if self.trace.first[number] <= IN_TIME:
            return Cause.NOT_WHOLE
        name = request.model.name
        if best is None:
            if any(each.moments[number].warm for each in self.replays):
                return Cause.OVERLOAD
            since = request.at - EVICTED_SECONDS
            if any(
                model == name and since <= at <= request.at for each in self.replays for at, model in each.evictions
            ):
                return Cause.EVICTED
            return Cause.NOWHERE
        there = self.replays[best].moments[number]
        if last is None or waited > self.trace.first[number] / 2:
            if not there.warm:
                return Cause.LOAD_SOONER
            return Cause.SLOT_FREE if there.free else Cause.WRONG_HOST
        done = self.replays[last.host]
        job = done.jobs[number]
        loads = [(begin, end, model) for begin, end, model in done.loads if end > last.arrived and begin < job.ready]
        reading = (job.first or request.at + self.trace.first[number]) - (job.ready or last.arrived)
        if job.ready and reading > job.ready - last.arrived:
            return Cause.READING
        if any(model == name for _, _, model in loads):
            return Cause.WARM_SOONER if there.warm else Cause.SLOW_LOAD
        return Cause.NO_SLOT


def explained(results: Mapping[str, Sequence[Run]]) -> str:
    """For each side that has hosts of its own to choose: each late request, and how many there were by their cause."""
    text = []
    for name, runs in results.items():
        if not any(run.visits for run in runs):
            continue
        causes, asked = Counter[Cause](), 0
        lines = []
        for run in runs:
            trace = Trace.of(run)
            asked += len(trace.first)
            hindsight = Hindsight(trace)
            causes.update(late.cause for late in hindsight.late)
            lines += [f"    seed {run.case.seed}: {late.describe(trace.requests)}" for late in hindsight.late]
        text += [f"{name}, late requests and the best choice for each:\n", *lines, "", table(causes, asked)]
    return "\n".join(text)


def table(causes: Counter[Cause], asked: int) -> str:
    lines = ["| cause | requests | points of goodput |", "|---|---|---|"]
    lines += [f"| {cause} | {count} | {100 * count / asked:.2f} |" for cause, count in causes.most_common()]
    return "\n".join([*lines, ""])
