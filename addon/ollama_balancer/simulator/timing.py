"""The timing of a simulated host: loading, queueing, prefill and decoding. No I/O.

Each model has a FIFO queue and runs `num_parallel` requests at once. The first request in the queue of an unloaded
model triggers its load. Loads are serial, in the order of arrival, and one that does not fit blocks those behind it.
The least recently used idle model is evicted; without an idle one, the load waits. As on a real host a load belongs to
the request that started it: if that is cancelled, the next one starts anew.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto

from .faults import Faults
from .models import ModelKey, SimulatedModel

DEFAULT_KEEP_ALIVE = 300.0


@dataclass(frozen=True)
class Timing:
    """How fast a host is: seconds, tokens, tokens/s. `time_scale` multiplies every duration: 0.01 is 100 times as fast.

    Raises ValueError for a figure that is out of range.
    """

    load: float = 2.0
    prefill_rate: float = 800.0
    decode_rate: float = 40.0
    output_tokens: float = 60
    """The mean length of an answer."""
    num_parallel: int = 1
    """Requests of one model that run at once; embedding models run one."""
    max_loaded: int = 1
    """Models that fit into memory."""
    time_scale: float = 1.0
    pull_steps: int = 4
    """Lines of progress on each layer of a model that is pulled."""
    progress_pause: float = 0.02
    """Between two lines of progress on a pull, push or create."""

    def __post_init__(self) -> None:
        for name in ("load", "time_scale", "progress_pause"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite")
        for name in ("prefill_rate", "decode_rate", "output_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        for name in ("num_parallel", "max_loaded", "pull_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")


class Turn(Enum):
    """What a request may do now."""

    WAIT = auto()
    LOAD = auto()
    RUN = auto()


@dataclass(eq=False)
class Ticket:
    """The queue entry of a request."""

    number: int
    wakeup: asyncio.Future[None]
    turn: Turn = Turn.WAIT


@dataclass(eq=False)
class ModelQueue:
    """The queue and state of one model."""

    model: SimulatedModel
    waiting: deque[Ticket] = field(default_factory=deque)
    running: int = 0
    loaded: bool = False
    loaded_at: float = -math.inf
    last_used: float = -math.inf
    keep_alive: float = DEFAULT_KEEP_ALIVE
    unload_when_idle: bool = False

    @property
    def idle(self) -> bool:
        return self.running == 0 and not self.waiting

    @property
    def expires(self) -> float:
        return self.last_used + self.keep_alive


class Scheduler:
    """Schedules requests and loads. `clock` and `sleep` must use the same time in seconds."""

    def __init__(
        self,
        timing: Timing,
        faults: Callable[[], Faults],
        sleep: Callable[[float], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self.timing = timing
        self.clock = clock
        self._faults = faults
        self._sleep = sleep
        self._queues: dict[ModelKey, ModelQueue] = {}
        self._loading: ModelQueue | None = None
        self._tickets = 0

    @property
    def running(self) -> int:
        """Requests being served, all models together."""
        return sum(queue.running for queue in self._queues.values())

    @property
    def waiting(self) -> int:
        """Queued requests, including those that trigger a load."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    def loaded(self) -> list[ModelQueue]:
        """The models now loaded, the last loaded first."""
        self._unload_expired()
        return sorted((queue for queue in self._queues.values() if queue.loaded), key=lambda queue: -queue.loaded_at)

    def touch(self, model: SimulatedModel, keep_alive: float | None) -> bool:
        """Count a model that is loaded as used now, without a slot; False if it isn't loaded."""
        self._unload_expired()
        queue = self._queues.get(model.key)
        if queue is None or not queue.loaded:
            return False
        queue.last_used = self.clock()
        queue.keep_alive = DEFAULT_KEEP_ALIVE if keep_alive is None else keep_alive
        return True

    def clear(self) -> None:
        """Unload everything, as the end of the process does. Nothing may be waiting or running."""
        self._queues.clear()
        self._loading = None

    def scaled(self, seconds: float) -> float:
        """How long `seconds` of the timing model take now."""
        return seconds * self.timing.time_scale * self._faults().slow_factor

    async def pause(self, seconds: float) -> None:
        """Let real seconds pass."""
        if seconds > 0:
            await self._sleep(seconds)

    async def tick(self, due: float) -> None:
        """Wait until `due` on the clock; when that has passed, let others run once."""
        delay = due - self.clock()
        if delay > 0:
            await self._sleep(delay)
        else:
            await asyncio.sleep(0)

    def unload(self, model: SimulatedModel) -> None:
        """Unload a model as soon as it is idle."""
        queue = self._queues.get(model.key)
        if queue is not None:
            queue.unload_when_idle = True
            self._schedule()

    @asynccontextmanager
    async def slot(self, model: SimulatedModel, keep_alive: float | None = None) -> AsyncIterator[float]:
        """Hold a slot of the model, after queueing and loading as needed.

        Yields the seconds until the model was loaded. The model stays loaded for `keep_alive` seconds; None: 5 minutes.
        Cancelling releases the queue entry, the load or the slot.
        """
        queue = self._queues.setdefault(model.key, ModelQueue(model))
        queue.model = model  # another one may have come under its name
        arrived = self.clock()
        self._tickets += 1
        ticket = Ticket(self._tickets, asyncio.get_running_loop().create_future())
        queue.waiting.append(ticket)
        try:
            self._schedule()
            while ticket.turn is not Turn.RUN:
                await ticket.wakeup
                if ticket.turn is Turn.LOAD:
                    await self.pause(self.scaled(self.timing.load))
                    queue.loaded, queue.loaded_at, queue.unload_when_idle = True, self.clock(), False
                    self._loading = None
                    ticket.turn, ticket.wakeup = Turn.WAIT, asyncio.get_running_loop().create_future()
                    self._schedule()
            yield max(0.0, queue.loaded_at - arrived)
        finally:
            if ticket.turn is Turn.RUN:
                queue.running -= 1
                queue.last_used = self.clock()
                queue.keep_alive = DEFAULT_KEEP_ALIVE if keep_alive is None else keep_alive
                queue.unload_when_idle = queue.unload_when_idle or keep_alive == 0
            else:
                queue.waiting.remove(ticket)
                if ticket.turn is Turn.LOAD:
                    self._loading = None
            self._schedule()

    def _schedule(self) -> None:
        """Wake all requests that may run or load."""
        self._unload_expired()
        for queue in self._queues.values():
            slots = 1 if queue.model.embedding else self.timing.num_parallel
            while queue.loaded and queue.waiting and queue.running < slots:
                ticket = queue.waiting.popleft()
                queue.running += 1
                self._wake(ticket, Turn.RUN)
        if self._loading is None:
            self._begin_load()

    def _begin_load(self) -> None:
        unloaded = [queue for queue in self._queues.values() if queue.waiting and not queue.loaded]
        if not unloaded:
            return
        queue = min(unloaded, key=lambda queue: queue.waiting[0].number)
        loaded = [other for other in self._queues.values() if other.loaded]
        while len(loaded) >= self.timing.max_loaded:
            victim = min((other for other in loaded if other.idle), key=lambda other: other.last_used, default=None)
            if victim is None:
                return
            victim.loaded = victim.unload_when_idle = False
            loaded.remove(victim)
        self._loading = queue
        self._wake(queue.waiting[0], Turn.LOAD)

    def _unload_expired(self) -> None:
        now = self.clock()
        for queue in self._queues.values():
            if queue.loaded and queue.idle and (queue.unload_when_idle or now >= queue.expires):
                queue.loaded = queue.unload_when_idle = False

    @staticmethod
    def _wake(ticket: Ticket, turn: Turn) -> None:
        ticket.turn = turn
        if not ticket.wakeup.done():
            ticket.wakeup.set_result(None)
