"""A host that runs a few requests at once, as the balancer sees it over a network: in simulated time."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.leases import Lease
from ollama_balancer.lab.engine import Engine
from tests.core.fakes import entries, fleet, new_registry

MODEL = "m:latest"
LOOK_SECONDS = 0.5
SLOWDOWN = 0.4
TOKENS_A_SECOND = 800


@dataclass(frozen=True)
class Traffic:
    """Times in seconds."""

    rate: float | None = None
    """Requests for a second, at random; None: there are always some that wait."""
    prefill: tuple[float, float] = (0.05, 0.3)
    """From, to; most are short."""
    decode: tuple[float, float] = (1.0, 10.0)
    streamed: float = 1.0
    """The part of the requests whose answers stream."""
    jitter: float = 0.002
    """How long a message takes on average; one in fifty takes twenty times as long."""
    cut: float = 0.0
    """The part of the requests that fail or are given up halfway."""


@dataclass(eq=False)
class _Job:
    lease: Lease
    prefill: float
    decode: float
    streams: bool
    cut: bool
    left: float = 0.0
    begun: bool = False
    over: bool = False


class SlotHost:
    """A host that runs a model's requests first in, first out, so many at once."""

    def __init__(self, parallel: int, traffic: Traffic, seed: int) -> None:
        self.engine = engine = Engine()
        self.rng = random.Random(seed)
        self.registry = new_registry(engine, chance=self.rng.random)
        self.agent = fleet(self.registry, "a")[0]
        self.registry.inventory.update_loaded(self.agent, entries("m"))
        self.parallel = parallel
        self.traffic = traffic
        self.waiting = 0
        self.asked = 0
        self.served = 0
        self.queue: deque[_Job] = deque()
        self.running: list[_Job] = []
        self.registry.fleet.on_slot_free = lambda agent, model: self._serve()
        self.sent = 0
        self._since = self._above = self._crowded_since = 0.0
        self._passed = 0.0
        self._tick = 0
        engine.after(LOOK_SECONDS, self._look)

    @property
    def learned(self) -> int:
        return self.agent.slots or 1

    def watch(self) -> None:
        """Measure from now on."""
        self._since, self._above = self.engine.now, 0.0

    @property
    def above(self) -> float:
        """The part of the time in which more requests were at the host than it runs at once."""
        return self._above / (self.engine.now - self._since)

    def run(self, requests: int) -> None:
        """Until so many more have been served."""
        until = self.served + requests
        if self.traffic.rate is not None and self.asked == 0:
            self._arrive()
        while self.served < until:
            if self.traffic.rate is None:
                self.waiting = 100
                self._serve()
            self.engine.run(self.engine.next_due or 0.0)

    def _arrive(self) -> None:
        assert self.traffic.rate is not None
        self.asked += 1
        self.waiting += 1
        self._serve()
        self.engine.after(self.rng.expovariate(self.traffic.rate), self._arrive)

    def _look(self) -> None:
        self.registry.liveness.reached(self.agent)
        self.registry.expire()
        self._serve()
        self.engine.after(LOOK_SECONDS, self._look)

    def _serve(self) -> None:
        while self.waiting and self.registry.selection.has_free_slot(self.agent, MODEL):
            self.waiting -= 1
            self._send()

    def _send(self) -> None:
        rng, traffic = self.rng, self.traffic
        streams = rng.random() < traffic.streamed
        low, high = traffic.prefill
        prefill = low + (high - low) * rng.random() ** 3
        tokens = round(prefill * TOKENS_A_SECOND * rng.uniform(0.7, 1.4))
        lease = self.registry.limiter.take(self.agent, MODEL, Demand(MODEL, tokens=tokens, streams=streams))
        job = _Job(
            lease,
            prefill,
            rng.uniform(*traffic.decode),
            streams,
            rng.random() < traffic.cut,
        )
        self._count(1)
        if job.cut:
            self.engine.after(rng.uniform(0, 2 * traffic.decode[1]), lambda: self._cut(job))
        self.engine.after(self._delay(), lambda: self._arrived(job))

    def _delay(self) -> float:
        mean = self.traffic.jitter * (20 if self.rng.random() < 0.02 else 1)
        return self.rng.expovariate(1 / mean) if mean else 0.0

    def _count(self, by: int) -> None:
        if self.sent > self.parallel:
            self._above += self.engine.now - max(self._since, self._crowded_since)
        self._crowded_since = self.engine.now
        self.sent += by

    def _cut(self, job: _Job) -> None:
        if not job.over:
            self._finish(job, self.rng.choice((Outcome.FAILED, Outcome.CANCELLED)))
            self.engine.after(self._delay(), lambda: self._gone(job))

    def _gone(self, job: _Job) -> None:
        if job in self.queue:
            self.queue.remove(job)
        if job in self.running:
            self._advance()
            self.running.remove(job)
        self._plan()

    def _finish(self, job: _Job, outcome: Outcome) -> None:
        if not job.over:
            job.over = True
            self._count(-1)
            self.served += 1
            job.lease.release(outcome)

    # The host

    def _arrived(self, job: _Job) -> None:
        if not job.over:
            self._advance()
            self.queue.append(job)
            self._plan()

    def _factor(self) -> float:
        return 1 + SLOWDOWN * (len(self.running) - 1)

    def _advance(self) -> None:
        done = (self.engine.now - self._passed) / self._factor() if self.running else 0.0
        self._passed = self.engine.now
        for job in self.running:
            job.left -= done

    def _plan(self) -> None:
        self._advance()
        while self.queue and len(self.running) < self.parallel:
            job = self.queue.popleft()
            job.left = job.prefill
            self.running.append(job)
        self._tick += 1
        tick = self._tick
        if self.running:
            soonest = min(job.left for job in self.running) * self._factor()
            self.engine.after(max(0.0, soonest), lambda: self._phase_over(tick))

    def _phase_over(self, tick: int) -> None:
        if tick != self._tick:
            return
        self._advance()
        for job in list(self.running):
            if job.left > 1e-9:
                continue
            if not job.begun:
                job.begun = True
                job.left = job.decode
                if job.streams:
                    self.engine.after(self._delay(), lambda job=job: self._first_byte(job))  # type: ignore[misc]
            else:
                self.running.remove(job)
                self.engine.after(self._delay(), lambda job=job: self._last_byte(job))  # type: ignore[misc]
        self._plan()

    def _first_byte(self, job: _Job) -> None:
        if not job.over:
            job.lease.began()

    def _last_byte(self, job: _Job) -> None:
        if not job.over:
            job.lease.began()
            self._finish(job, Outcome.SUCCEEDED)
