"""The simulated host: listener, connections and a log of the requests."""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from . import answers, listings, text
from .connection import Connection, Request
from .faults import Faults, Gate
from .inference import Inference
from .jobs import JOBS
from .library import Library, Registry, Upload
from .management import Management
from .models import SimulatedModel, with_tag
from .request_log import Outcome, ReceivedRequest, RequestLog
from .requests import RefusedError, named_model, read_object, sent_body, shown_model
from .routes import BLOB, CONSTANT, MANAGEMENT, V1_MODEL, find, resolve
from .timing import Scheduler, Timing

CLOSING = 0.5


class SimulatedOllama:
    """An Ollama host that isn't one: the same HTTP, with time in place of a GPU.

    `faults` and `timing` may be changed at any time and from any thread. `sleep` and `clock` (seconds)
    replace the time its timing model runs on. With `port` 0 the system chooses one at the first start, and it stays.
    Raises ValueError for models of the same or no name, OSError from `start` where the address can't be had.
    """

    def __init__(
        self,
        models: Iterable[SimulatedModel] = (SimulatedModel(),),
        timing: Timing | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str = "sim",
        seed: int = 0,
        version: str = "0.33.0",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = Library(models)
        self.registry = Registry()
        """Where it pulls models from."""
        self.host, self.port, self.name, self.seed, self.version = host, port, name, seed, version
        self.counts: Counter[str] = Counter()
        """Inference requests that have ended, by outcome."""
        self._scheduler = Scheduler(timing or Timing(), lambda: self._faults, sleep, clock)
        self._gate = Gate(lambda: self._faults)
        self._inference = Inference(self._scheduler, self._gate, seed)
        self._management = Management(self._library, self.registry, self._scheduler, self._gate)
        self._faults = Faults()
        self._faults.watch(self._faults_changed)
        self._log = RequestLog()
        self.in_flight = 0
        """Inference requests now inside, waiting or running."""
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "up" if self._started else "down"
        return f"<SimulatedOllama {self.name} {self.url} {state} running={self.running} in_flight={self.in_flight}>"

    # ---- what it is doing

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def models(self) -> tuple[SimulatedModel, ...]:
        """The models it has now."""
        return tuple(self._library.by_key.values())

    @property
    def blobs(self) -> dict[str, int]:
        """The sizes in bytes of the blobs uploaded to it, by digest (`sha256:...`)."""
        return dict(self._library.blobs)

    def tag_entries(self) -> list[dict[str, Any]]:
        """The models it has, as /api/tags lists them."""
        return [listings.tag_entry(model, modified) for model, modified in self._library.listed()]

    def ps_entries(self) -> list[dict[str, Any]]:
        """The models now loaded, as /api/ps lists them."""
        return [listings.ps_entry(model, expires) for model, expires in self._loaded_until()]

    @property
    def timing(self) -> Timing:
        return self._scheduler.timing

    @timing.setter
    def timing(self, timing: Timing) -> None:
        self._scheduler.timing = timing

    @property
    def faults(self) -> Faults:
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults.watch(None)
        self._faults = faults
        faults.watch(self._faults_changed)
        self._faults_changed()

    @property
    def running(self) -> int:
        """Inference requests being served now."""
        return self._scheduler.running

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The last 10,000 requests, oldest first; fewer where their bodies exceed 256 MB together."""
        return list(self._log.requests)

    @property
    def loaded(self) -> list[str]:
        """The names of the models now loaded, as /api/ps lists them."""
        return [queue.model.full_name for queue in self._scheduler.loaded()]

    def expected_text(self, prompt: str, limit: int | None = None) -> str:
        """The text it generates for a prompt, at most `limit` tokens; a chat's prompt are its contents, one a line."""
        return "".join(text.generate(self.seed, prompt, self.timing.output_tokens, limit)[0])

    def load_cpu(self) -> float:
        """A plausible CPU usage in percent: 4 when idle, 96 when each slot is taken."""
        timing = self.timing
        slots = timing.num_parallel * min(timing.max_loaded, max(1, len(self.models)))
        return round(4 + 92 * min(1.0, self.running / slots), 1)

    # ---- up and down

    async def start(self) -> None:
        """Listen. After `stop` or `kill` it starts anew on the same port, with nothing loaded."""
        if self._started:
            raise RuntimeError(f"{self.name} is already up")
        if self._socket is None:
            self._socket = self._bind()
        self._started, self._loop = True, asyncio.get_running_loop()
        self._apply_faults()
        if self._opening is not None:
            await asyncio.wait([self._opening])

    async def stop(self) -> None:
        """Shut down: running requests are cut, written answers are sent, and nothing is left."""
        await self._close_all(abort=False)
        self._loop = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def kill(self) -> None:
        """Die as by SIGKILL: the listener is closed and all connections are aborted. The port stays reserved."""
        await self._close_all(abort=True)

    async def _close_all(self, *, abort: bool) -> None:
        self._started = False
        self._close_listener()
        for connection in list(self._connections):
            if abort or connection.busy:
                connection.abort()
            else:
                connection.close()
        if self._connections:
            await asyncio.wait([connection.closed for connection in self._connections], timeout=CLOSING)
            for connection in list(self._connections):
                connection.abort()
        for task in self._tasks:
            task.cancel()
        while self._tasks or self._connections:
            pending = [*self._tasks, *(connection.closed for connection in self._connections)]
            await asyncio.wait(pending)
            await asyncio.sleep(0)
        self._scheduler.clear()

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind((self.host, self.port))
        except OSError:
            sock.close()
            raise
        self.port = sock.getsockname()[1]
        return sock

    def _apply_faults(self) -> None:
        self._gate.faults_changed()
        if self._started and not self._faults.refuse:
            if self._opening is None and self._server is None and self._socket is not None:
                # Listening begins here and not in the task, so that a fault switched off is off at once.
                self._socket.listen(1024)
                self._opening = asyncio.get_running_loop().create_task(self._open(self._socket))
        elif self._server is not None or self._opening is not None:
            self._close_listener()

    async def _open(self, sock: socket.socket) -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(
                self._serve,
                lambda path: find(path) is not None,
                self._upload,
                self._connected,
                self._connections.discard,
            ),
            sock=sock,
            backlog=1024,
            start_serving=False,
        )
        self._server = server
        await server.start_serving()

    def _close_listener(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._server is not None:
            self._server.close()
        if (self._opening, self._server) != (None, None) and self._socket is not None:
            self._opening = self._server = None
            self._socket.close()
            # Bound and not listening: connections are refused, and nobody else gets the port.
            self._socket = self._bind()

    def _faults_changed(self) -> None:
        """Tests and demos switch faults from their own threads too; in the loop's own it takes effect at once."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            self._apply_faults()
        else:
            loop.call_soon_threadsafe(self._apply_faults)

    def _connected(self, connection: Connection) -> None:
        self._connections.add(connection)
        if not self._started:
            connection.abort()

    # ---- requests

    def _upload(self, method: str, path: str) -> Upload | None:
        found = find(path) if method == "POST" else None
        return self._management.upload(found[1]) if found is not None and found[0] == BLOB else None

    def _serve(self, connection: Connection, request: Request) -> None:
        inference = request.method == "POST" and request.path in JOBS
        record = ReceivedRequest(request.method, request.path, request.headers, request.body, inference=inference)
        self._log.add(record)
        try:
            route, name = resolve(request.method, request.path, request.target.partition("?")[2])
            if inference:
                parsed = read_object(route, sent_body(route, request.headers, request.body))
                record.model = named_model(parsed)
                job = JOBS[route](parsed, self._library.by_key)
                self._spawn(connection, self._track(self._inference.serve(connection, job), connection, record))
                return
            if route in MANAGEMENT:
                self._spawn(connection, self._track(self._manage(connection, request, record), connection, record))
                return
            answer = self._answer(request, route, name, record)
        except RefusedError as refused:
            answer = refused.answer
        if self._faults.hang_all:
            self._spawn(connection, self._answer_later(connection, answer, record))
        else:
            self._answer_now(connection, answer, record)

    def _manage(
        self, connection: Connection, request: Request, record: ReceivedRequest
    ) -> Coroutine[object, object, bool]:
        """What carries out a request that manages models. Raises RefusedError."""
        route, name = resolve(request.method, request.path)
        if route == BLOB:
            return self._management.serve(connection, partial(self._management.blob, name, request.upload))
        parsed = read_object(route, request.body)
        record.model = named_model(parsed, "name", "source")
        operation = self._management.operation(route, parsed)
        return self._management.serve(connection, operation, stream=parsed.get("stream") is not False)

    def _answer_now(self, connection: Connection, answer: answers.Answer, record: ReceivedRequest) -> None:
        self._record_outcome(record, "succeeded" if answer.status < 400 else "failed")
        connection.answer(answer)

    async def _answer_later(self, connection: Connection, answer: answers.Answer, record: ReceivedRequest) -> None:
        try:
            await self._gate.hang("hang_all")
        except asyncio.CancelledError:
            self._record_outcome(record, "failed" if connection.ended_here else "cancelled")
            raise
        self._answer_now(connection, answer, record)

    async def _track(
        self, served: Coroutine[object, object, bool], connection: Connection, record: ReceivedRequest
    ) -> None:
        """Serve a request and record its outcome."""
        self.in_flight += record.inference
        outcome: Outcome = "failed"
        try:
            if await served:
                outcome = "succeeded"
        except asyncio.CancelledError:
            outcome = "failed" if connection.ended_here else "cancelled"
            raise
        finally:
            self.in_flight -= record.inference
            self._record_outcome(record, outcome)

    def _record_outcome(self, record: ReceivedRequest, outcome: Outcome) -> None:
        record.outcome = outcome
        if record.inference:
            self.counts[outcome] += 1

    def _answer(self, request: Request, route: str, name: str, record: ReceivedRequest) -> answers.Answer:
        constant = CONSTANT.get(("GET" if request.method == "HEAD" else request.method, route))
        if constant is not None:
            return constant
        match route:
            case "/api/version":
                return answers.api_answer({"version": self.version})
            case "/api/tags":
                return answers.api_answer({"models": self.tag_entries()})
            case "/api/ps":
                return answers.api_answer({"models": self.ps_entries()})
            case "/v1/models":
                return listings.v1_models(self._library.listed())
            case "/api/experimental/model-recommendations":
                return listings.recommendations()
        if route == V1_MODEL:
            record.model = name
            model = self._library.find(name)
            if model is None:
                return answers.v1_error(404, f"model '{with_tag(name)}' not found")
            return answers.v1_answer(listings.v1_entry(name, self._library.modified(model)))
        parsed = read_object(route, request.body)
        record.model = named_model(parsed, "name")
        shown_entry = shown_model(parsed, self._library.by_key)
        return listings.show(shown_entry, self._library.modified(shown_entry))

    def _loaded_until(self) -> Iterable[tuple[SimulatedModel, int]]:
        now, wall = self._scheduler.clock(), time.time_ns()
        for queue in self._scheduler.loaded():
            # A model in use has its whole time still before it.
            seconds_left = queue.keep_alive if not queue.idle else queue.expires - now
            yield queue.model, wall + int(seconds_left * 1e9)

    def _spawn(self, connection: Connection, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        if not task.done():
            connection.task = task
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._done(connection, task))

    def _done(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            connection.abort()
            context = {"message": f"{self.name}: a request failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)
