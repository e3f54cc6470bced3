"""A host as Ollama schedules it: slots for each model, serial loads, eviction, a prefix cache for each slot.

A request of a loaded model does not wait behind loads (`getRunner` in server/sched.go of Ollama).

What runs shares the host: n requests of one model take 1 + 0.4 (n - 1) times as long each, and k models that are busy
at once k times.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from .engine import Engine, Event

SLOWDOWN = 0.4
"""Slowdown by each further concurrent request of the same model."""


@dataclass(frozen=True)
class Model:
    """`pace` and `prefill` are tokens per second of one request alone on a host of speed 1, `load` seconds."""

    name: str
    pace: float
    prefill: float
    load: float
    output: float
    """Tokens of an answer on average."""
    digest: float
    """Where its file stands among the others: of the idle models the first one is evicted."""
    size: float = 0.0
    """Bytes that it takes in memory."""
    parallel: int | None = None
    """Requests that any host runs at once; None: as many as it does of others. Ollama has 1 for embedding models."""


@dataclass(frozen=True)
class Rates:
    """How fast a host serves one model: tokens per second of one request alone, and the seconds of a load."""

    decode: float
    prefill: float
    load: float


@dataclass(frozen=True)
class Spec:
    """The properties of a host."""

    speed: float
    disk: float
    """By what the time of a load is multiplied."""
    parallel: int
    fits: int
    name: str = ""
    rates: Mapping[str, Rates] | None = field(default=None, hash=False)
    """The models that it has, with its own rates; None: all there are, as `speed` and `disk` have it."""
    loaded: tuple[str, ...] = ()
    """Models that it has in memory at the start."""
    memory: float = math.inf
    """Bytes for models."""
    prompts: int = 0
    """Prompts of a model that it keeps cached; 0: as many as it has slots."""
    keep: float = math.inf
    """Seconds for which an idle model stays in memory."""


@dataclass(eq=False)
class Job:
    """A request on a host. `began` and `ended` are called once at most: at the first token, and at the last."""

    model: Model
    conversation: int
    prompt: int
    output: int
    began: Callable[[], None]
    ended: Callable[[bool], None]
    """With whether it was served whole."""
    known: int | None = None
    """Tokens at the beginning of the prompt that the conversation had before; None: all of them."""
    arrived: float = 0.0
    ready: float = 0.0
    """When it got its slot with the model in memory."""
    first: float = 0.0
    """When its prompt was read."""
    finished: float = 0.0
    read: int = 0
    """Tokens of the prompt that had to be read."""
    work: float = 0.0
    """What is left of the phase, in seconds of a host that does nothing else."""
    decoding: bool = False

    def copy(self) -> Job:
        """A copy of the job without callbacks."""
        return replace(self, began=_ignore, ended=_ignore)


def _ignore(whole: bool = True) -> None:
    pass


class Runner:
    """One model in memory."""

    def __init__(self, model: Model, used: float = 0.0) -> None:
        self.model = model
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.cache: OrderedDict[int, int] = OrderedDict()
        """Tokens of the conversations whose prefix is kept."""
        self.used = used
        """When it last ran anything, as far as that was accounted for."""


class Host:
    """`slow` is a factor on all that it does: a brown-out is one of several."""

    def __init__(self, engine: Engine, spec: Spec, name: str) -> None:
        self.engine = engine
        self.spec = spec
        self.name = name
        self.up = True
        self.slow = 1.0
        self.queue: deque[Job] = deque()
        self.runners: dict[str, Runner] = {}
        self.loading: Model | None = None
        self.load_until = 0.0
        self.loads = 0
        self._loader: Job | None = None
        self._load_event: Event | None = None
        self._since = 0.0
        self._next: Event | None = None

    def load_seconds(self, model: Model) -> float:
        rates = self.spec.rates
        return min(40.0, max(5.0, model.load * self.spec.disk)) if rates is None else rates[model.name].load

    def decode_rate(self, model: Model) -> float:
        rates = self.spec.rates
        return model.pace * self.spec.speed if rates is None else rates[model.name].decode

    def prefill_rate(self, model: Model) -> float:
        rates = self.spec.rates
        return model.prefill * self.spec.speed if rates is None else rates[model.name].prefill

    def slots(self, model: Model) -> int:
        return self.spec.parallel if model.parallel is None else model.parallel

    @property
    def busy_models(self) -> int:
        return sum(1 for runner in self.runners.values() if runner.running)

    @property
    def running(self) -> int:
        return sum(len(runner.running) for runner in self.runners.values())

    def submit(self, job: Job) -> None:
        job.arrived = self.engine.now
        self.unload_idle()
        runner = self.runners.get(job.model.name)
        (self.queue if runner is None else runner.waiting).append(job)
        self._advance()

    def cancel(self, job: Job) -> None:
        """The client or the balancer has disconnected. A load belongs to the request that started it."""
        runner = self.runners.get(job.model.name)
        if runner is not None and job in runner.running:
            self._account_progress()
            runner.running.remove(job)
        elif runner is not None and job in runner.waiting:
            runner.waiting.remove(job)
        elif job in self.queue:
            self.queue.remove(job)
            if job is self._loader:
                self._stop_load()
        self._advance()

    def jobs(self) -> list[Job]:
        """All that are there."""
        jobs = list(self.queue)
        for runner in self.runners.values():
            jobs += [*runner.running, *runner.waiting]
        return jobs

    def copy(self, engine: Engine) -> tuple[Host, dict[Job, Job]]:
        """The same host on another engine, whose time is the same, to see what would become of it; and the copy of
        each of its jobs.
        """
        copies = {job: job.copy() for job in self.jobs()}
        host = Host(engine, self.spec, self.name)
        host.up, host.slow, host.loads = self.up, self.slow, self.loads
        host.queue = deque(copies[job] for job in self.queue)
        for name, runner in self.runners.items():
            other = host.runners[name] = Runner(runner.model, runner.used)
            other.running = [copies[job] for job in runner.running]
            other.waiting = deque(copies[job] for job in runner.waiting)
            other.cache = runner.cache.copy()
        host._since = self._since
        if self.loading is not None and self._loader is not None:
            host.loading, host._loader, host.load_until = self.loading, copies[self._loader], self.load_until
            host._load_event = engine.after(self.load_until - engine.now, host._loaded)
        host._account_progress()
        host._plan()
        return host, copies

    def unload_idle(self) -> None:
        """Unload models whose keep-alive has expired."""
        due = self.engine.now - self.spec.keep
        for name, runner in list(self.runners.items()):
            if runner.used < due and not runner.running and not runner.waiting:
                del self.runners[name]

    def unload(self, name: str) -> None:
        """Unload a model if it is idle, as a request with a keep-alive of 0 has it."""
        runner = self.runners.get(name)
        if runner is not None and not runner.running and not runner.waiting:
            del self.runners[name]

    def crash(self) -> None:
        """Crash: all jobs fail."""
        aborted = self.jobs()
        self.up = False
        self.queue.clear()
        self.runners.clear()
        self._stop_load()
        if self._next is not None:
            self._next.cancel()
        for job in aborted:
            job.ended(False)

    def change_pace(self, slow: float) -> None:
        self._account_progress()
        self.slow = slow
        self._plan()

    # Time

    def _factor(self, runner: Runner, busy: int) -> float:
        return (1 + SLOWDOWN * (len(runner.running) - 1)) * busy * self.slow

    def _account_progress(self) -> None:
        """Subtract the work done since the last change."""
        now = self.engine.now
        passed = now - self._since
        self._since = now
        if passed <= 0:
            return
        busy = self.busy_models
        for runner in self.runners.values():
            if runner.running:
                runner.used = now
                done = passed / self._factor(runner, busy)
                for job in runner.running:
                    job.work -= done

    def _plan(self) -> None:
        """Schedule the end of the next phase."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        busy = self.busy_models
        soonest = min(
            (
                min(job.work for job in runner.running) * self._factor(runner, busy)
                for runner in self.runners.values()
                if runner.running
            ),
            default=None,
        )
        if soonest is not None:
            self._next = self.engine.after(max(0.0, soonest), self._end_phase)

    def _end_phase(self) -> None:
        self._next = None
        self._account_progress()
        callbacks: list[Callable[[], None]] = []
        for runner in self.runners.values():
            for job in list(runner.running):
                if job.work > 1e-9:
                    continue
                if not job.decoding:
                    job.decoding = True
                    job.first = self.engine.now
                    job.work = job.output / self.decode_rate(job.model)
                    callbacks.append(job.began)
                else:
                    runner.running.remove(job)
                    job.finished = self.engine.now
                    callbacks.append(partial(job.ended, True))
        self._advance()
        for callback in callbacks:
            callback()

    # Who runs

    def _advance(self) -> None:
        self._account_progress()
        self._dispatch()
        for runner in self.runners.values():
            while runner.waiting and len(runner.running) < self.slots(runner.model):
                self._start(runner.waiting.popleft(), runner)
        self._plan()

    def _dispatch(self) -> None:
        """Load for the first of the queued requests. It blocks those behind it, whose models are not loaded either."""
        self.unload_idle()
        while self.queue and self.loading is None:
            job = self.queue[0]
            runner = self.runners.get(job.model.name)
            if runner is not None:
                self.queue.popleft()
                runner.waiting.append(job)
                continue
            if self.runners and not self._has_room(job.model):
                idle = [r for r in self.runners.values() if not r.running and not r.waiting]
                if not idle:
                    return
                del self.runners[min(idle, key=lambda runner: runner.model.digest).model.name]
                continue
            self._load(job)

    def _has_room(self, model: Model) -> bool:
        used = sum(runner.model.size for runner in self.runners.values())
        return len(self.runners) < self.spec.fits and used + model.size <= self.spec.memory

    def _start(self, job: Job, runner: Runner) -> None:
        job.ready = self.engine.now
        known = runner.cache.pop(job.conversation, 0)
        if job.known is not None:
            known = min(known, job.known)
        job.read = max(1, job.prompt - known)
        runner.cache[job.conversation] = job.prompt + job.output
        while len(runner.cache) > (self.spec.prompts or self.slots(runner.model)):
            runner.cache.popitem(last=False)
        job.work = job.read / self.prefill_rate(job.model)
        runner.running.append(job)

    def _load(self, job: Job) -> None:
        self.loading, self._loader = job.model, job
        seconds = self.load_seconds(job.model) * self.slow
        self.load_until = self.engine.now + seconds
        self._load_event = self.engine.after(seconds, self._loaded)

    def _loaded(self) -> None:
        assert self.loading is not None
        self.runners[self.loading.name] = Runner(self.loading, self.engine.now)
        self.loads += 1
        self.loading = self._loader = self._load_event = None
        self._advance()

    def _stop_load(self) -> None:
        if self._load_event is not None:
            self._load_event.cancel()
        self.loading = self._loader = self._load_event = None
