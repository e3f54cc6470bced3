"""Sends one request to several agents at once and combines their answers.

Complete answers are combined when all have arrived; progress lines (pull, create) are passed on as they come, each
tagged with its agent. Each agent is called in a task of its own, and the layer fetches the combined answer piece by
piece with `advance`. A streamed request body goes at the pace of the slowest agent: reading from the client pauses
while one agent has more than `HIGH_WATER` bytes queued.
"""

import asyncio
import functools
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from ..core.agent import Agent
from ..core.agent_records import Outcome
from ..core.leases import Lease
from ..ollama.compact_json import compact
from ..ollama.management import (
    LineSplitter,
    Reply,
    Unavailable,
    combine,
    error_message,
    is_success,
    last_line,
    line_error,
    line_of,
    read_line,
)
from .agent_call import Answer, Call, CallError, CallTimeoutError, Limits, UnreachableError, answer_to
from .attempts import FailureKind, outcome_of
from .combined_answers import FRAMING, combined, streamed_head
from .descriptors import is_local_failure
from .messages import AgentRequest, Fields, Response, date
from .reachability import cannot_connect
from .tasks import run_in_background
from .timeouts import OFFLINE_SILENCE, Timeouts

logger = logging.getLogger(__name__)

HIGH_WATER = 1024 * 1024
LOW_WATER = 256 * 1024

MAX_QUEUED = 64 * 1024 * 1024
"""Bytes queued for one agent, should the client not be stoppable; beyond that its leg fails."""

WRITE_TIMEOUT = 60.0
"""Seconds within which an agent must accept some of the body, as it would hold up the others."""

PRESENCE_SECONDS = 5.0
"""Seconds for a host to answer whether it has a blob; after that the blob is sent."""

MAX_WHOLE_ANSWER = 4 * 1024 * 1024

AT_ONCE = 256
"""Agents called concurrently when the body is at hand: each needs a socket."""

LINES_AT_ONCE = 256
"""Progress lines parsed per chunk; of more, only the last."""

_OF_BODY = (*FRAMING, b"content-type", b"expect", b"host")


class Leg:
    """One agent's part of the fan-out."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.reply: Reply | None = None
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.more = asyncio.Event()
        self.last_activity = float("-inf")
        """When the agent last accepted or sent data, from the start of its call."""
        self.abort_reason: str | None = None
        """Why the leg was aborted."""
        self.task: asyncio.Task[None] | None = None
        self.takes = False
        """Whether the agent is sent the request body."""
        self.unended = False
        """Whether the last line that was passed on has no end yet."""

    @property
    def agent(self) -> Agent:
        return self.lease.agent


class FanOut:
    """`request` is sent to each agent with its own Host; `uploads`: its body is streamed.

    `refresh` updates the inventory of an agent that has done something, `unreachable` is called if an agent cannot be
    connected to, `read_client` pauses and resumes reading from the client, and `drain_client` waits until the client
    has received what was sent.
    """

    def __init__(
        self,
        leases: Sequence[Lease],
        request: AgentRequest,
        *,
        uploads: bool,
        require_all: bool,
        unavailable: Unavailable,
        timeouts: Timeouts,
        clock: Callable[[], float],
        refresh: Callable[[Agent], Awaitable[None]],
        unreachable: Callable[[Agent, str], None],
        read_client: Callable[[bool], None],
        drain_client: Callable[[], Awaitable[None]],
    ) -> None:
        self.legs = [Leg(lease) for lease in leases]
        self.response: Response | None = None
        """The head of the answer, and the body if it is not streamed; None until it is known."""
        self.streamed = False
        self.chunk = b""
        """The piece that the last `advance` fetched; empty at the end."""
        self._request = request
        self._uploads = uploads
        self._require_all = require_all
        self._unavailable = unavailable
        self._merges = len(leases) + len(unavailable.replies) > 1
        """Whether several answers are combined; otherwise the agent's own answer is passed on."""
        self._timeouts = timeouts
        self._clock = clock
        self._refresh = refresh
        self._unreachable = unreachable
        self._read_client = read_client
        self._drain_client = drain_client
        self.room: Callable[[], Awaitable[None]] | None = None
        """Waits until an HTTP/2 client's flow-control windows have let most of the data through."""
        self._head: tuple[int, tuple[tuple[bytes, bytes], ...]] | None = None
        self._head_known = asyncio.Event()
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=256)
        self._paused = False
        self._finished = False
        self._started = clock()
        self._task = run_in_background(self._run(), "fan-out")

    def __repr__(self) -> str:
        open_legs = sum(leg.reply is None for leg in self.legs)
        return f"FanOut({self._request.method} {self._request.target}: {open_legs} of {len(self.legs)} agents to come)"

    @property
    def replies(self) -> list[Reply]:
        """Replies of the legs that have ended."""
        return [leg.reply for leg in self.legs if leg.reply is not None]

    @property
    def finished(self) -> bool:
        """All legs have ended, whether or not the request body is complete."""
        return self._finished

    @property
    def wanted(self) -> bool:
        """Whether an agent has asked for the request body."""
        return any(leg.takes for leg in self.legs)

    def give_up_silent(self, now: float) -> None:
        """Abort the legs of offline agents that have fallen silent. `now` is on the clock of the registry."""
        waits_for_client = self._pieces.full()
        for leg in self.legs:
            if leg.task is None or leg.reply is not None or leg.abort_reason is not None:
                continue
            if waits_for_client:
                leg.last_activity = now
            elif not leg.agent.online and now - leg.last_activity >= OFFLINE_SILENCE:
                leg.abort_reason = f"it went offline: {leg.agent.offline_reason}"
                leg.task.cancel()

    # The request's body

    def feed(self, chunk: bytes) -> None:
        """Add a chunk of the request body; an empty one ends it."""
        for leg in self.legs:
            if leg.reply is None and leg.queued <= MAX_QUEUED:  # more is not stored: that agent is given up
                leg.queue.append(chunk)
                leg.queued += len(chunk)
                leg.more.set()
        if self._backlog() > HIGH_WATER:
            self._paused = True
            self._read_client(False)

    def _backlog(self) -> int:
        return max((leg.queued for leg in self.legs if leg.reply is None), default=0)

    def _resume_reading(self) -> None:
        if self._paused and self._backlog() <= LOW_WATER:
            self._paused = False
            self._read_client(True)

    async def _body_for(self, leg: Leg) -> AsyncIterator[bytes]:
        while True:
            while not leg.queue:
                leg.more.clear()
                await leg.more.wait()
            if leg.queued > MAX_QUEUED:
                raise CallError("it reads the body too slowly")
            chunk = leg.queue.popleft()
            leg.queued -= len(chunk)
            leg.last_activity = self._clock()
            self._resume_reading()
            if not chunk:
                return
            yield chunk

    # The answer

    async def advance(self) -> None:
        """Wait for the head, which sets `response`, then for each piece, which sets `chunk`."""
        self.chunk = b""
        if self.response is None:
            await self._head_known.wait()
            if self._head is not None:
                self.streamed = True
                self.response = streamed_head(self._request, *self._head, merges=self._merges)
            else:
                self.response = combined(
                    self._request, combine(self.replies, require_all=self._require_all, unavailable=self._unavailable)
                )
            return
        await self._drain_client()
        if self.room is not None:
            await self.room()
        chunk = await self._pieces.get()
        pieces = [chunk]
        while chunk and not self._pieces.empty():
            if not (chunk := self._pieces.get_nowait()):
                self._pieces.put_nowait(b"")
            pieces.append(chunk)
        self.chunk = b"".join(pieces)

    def cancel(self) -> None:
        """Abort all legs that still run."""
        self._task.cancel()
        self._finish()

    async def _run(self) -> None:
        at_once = asyncio.Semaphore(len(self.legs) if self._uploads else AT_ONCE)

        async def go(leg: Leg) -> None:
            async with at_once:
                await self._ask(leg)

        try:
            async with asyncio.TaskGroup() as group:
                for leg in self.legs:
                    group.create_task(go(leg))
            if self._head is not None and self._merges:
                await self._pieces.put(last_line(self.replies, self._unavailable))
        finally:
            self._finish()

    def _finish(self) -> None:
        """End the answer; legs that still run count as cancelled."""
        if self._finished:
            return
        self._finished = True
        for leg in self.legs:
            if leg.reply is None:
                self._end(leg, Reply(leg.agent.name, None, problem="cancelled"), Outcome.CANCELLED)
        while self._pieces.full():
            self._pieces.get_nowait()
        self._pieces.put_nowait(b"")
        self._head_known.set()

    async def _ask(self, leg: Leg) -> None:
        agent = leg.agent
        leg.task, leg.last_activity = asyncio.current_task(), self._clock()
        try:
            reply = await (self._upload_to(leg) if self._uploads else self._call(leg))
        except CallError as e:
            ours, unreachable = is_local_failure(e), isinstance(e, UnreachableError)
            if unreachable and not ours:
                self._unreachable(agent, cannot_connect(agent.address, str(e)))
            kind = FailureKind.TIMEOUT if isinstance(e, CallTimeoutError) else FailureKind.BROKEN
            kind = FailureKind.CONNECT if unreachable else kind
            problem = "the balancer cannot open a connection" if ours else str(e)
            reply = Reply(agent.name, None, problem=problem, failure=kind)
        except asyncio.CancelledError:
            if leg.abort_reason is None or leg.task is None:
                raise
            leg.task.uncancel()
            reply = Reply(agent.name, None, problem=leg.abort_reason, failure=FailureKind.TIMEOUT)
        except Exception as e:
            logger.exception("Agent %s: handling its part of a request to several agents failed.", agent.name)
            reply = Reply(agent.name, None, problem=f"the balancer failed: {type(e).__name__}")
        if reply.problem is not None and self._head is not None and reply.status != 200:
            await self._pieces.put(self._error_line(leg, reply.problem))
        outcome = Outcome.FAILED if reply.status is None else outcome_of(reply.status)
        if reply.problem is not None and outcome is Outcome.SUCCEEDED:
            outcome = Outcome.FAILED
        self._end(leg, reply, outcome)

    def _call_of(self, leg: Leg, method: str, fields: Fields, body: bytes | AsyncIterator[bytes] | None) -> Call:
        return Call(leg.agent.address, method, self._request.target, fields, body)

    def _limits(self, answer: float) -> Limits:
        return Limits(self._timeouts.connect, WRITE_TIMEOUT, answer)

    async def _call(self, leg: Leg) -> Reply:
        """Send a request whose body is at hand."""
        call = self._call_of(leg, self._request.method, self._request.fields, self._request.body)
        async with answer_to(call, self._limits(self._timeouts.response)) as answer:
            return await self._read(answer, leg)

    async def _upload_to(self, leg: Leg) -> Reply:
        """Upload the blob unless the agent has it."""
        if await self._has_file(leg):
            return Reply(leg.agent.name, 200, (date(), (b"Content-Length", b"0")))
        leg.takes = True
        call = self._call_of(leg, self._request.method, self._request.fields, self._body_for(leg))
        async with answer_to(call, self._limits(self._timeouts.response)) as answer:
            body = await answer.body(MAX_WHOLE_ANSWER, functools.partial(self._note_activity, leg))
            return self._reply(leg.agent, answer.status, answer.fields, body)

    async def _has_file(self, leg: Leg) -> bool:
        """Whether the agent already has the blob; Ollama's own client asks this before an upload."""
        fields = tuple((n, v) for n, v in self._request.fields if n.lower() not in _OF_BODY)
        call = self._call_of(leg, "HEAD", fields, None)
        try:
            async with answer_to(call, self._limits(PRESENCE_SECONDS)) as answer:
                return answer.status == 200
        except UnreachableError:
            raise
        except CallError:
            return False

    async def _read(self, answer: Answer, leg: Leg) -> Reply:
        name, status, headers = leg.agent.name, answer.status, answer.fields
        compressed = (answer.header(b"content-encoding") or "identity").lower() != "identity"
        if compressed and self._request.method != "HEAD":
            return Reply(name, None, problem="its answer is compressed although the request ruled that out")
        if status == 200 and "ndjson" in answer.header(b"content-type"):
            return Reply(name, status, headers, problem=await self._read_progress(answer, leg))
        body = await answer.body(MAX_WHOLE_ANSWER, functools.partial(self._note_activity, leg))
        if 200 <= status < 300 and self._request.method != "HEAD":
            await self._refresh(leg.agent)
        return self._reply(leg.agent, status, headers, body)

    @staticmethod
    def _reply(agent: Agent, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> Reply:
        problem = error_message(body) or f"status {status}" if status >= 400 and status != 404 else None
        return Reply(agent.name, status, headers, body, problem)

    async def _read_progress(self, answer: Answer, leg: Leg) -> str | None:
        """Pass progress lines on; returns the error, if any."""
        if self._head is None:
            self._head = (answer.status, answer.fields)
            self._head_known.set()
        lines = LineSplitter()
        problem: str | None = "the stream ended without its terminal event"
        try:
            async for chunk in answer.pieces():
                self._note_activity(leg)
                whole = [line for line in lines.feed(chunk) if not line.isspace()][-LINES_AT_ONCE:]
                problem = await self._pass_on(leg, chunk, whole, problem)
            if rest := lines.rest():
                problem = await self._pass_on(leg, b"", [rest], problem)
        except CallError as e:
            if problem is None:
                return None  # it had said that it succeeded
            problem = f"failed in the middle of its answer: {e}"
            await self._pieces.put(self._error_line(leg, problem))
        return problem

    def _error_line(self, leg: Leg, problem: str) -> bytes:
        """What the client is told of a leg that fails in the middle of its progress."""
        if self._merges:
            return line_of(leg.agent.name, b"", {"error": problem})
        return (b"\n" if leg.unended else b"") + compact({"error": f"{leg.agent.name}: {problem}"}) + b"\n"

    def _note_activity(self, leg: Leg) -> None:
        leg.last_activity = self._clock()

    async def _pass_on(self, leg: Leg, piece: bytes, lines: list[bytes], problem: str | None) -> str | None:
        """Pass on a piece of progress and parse the lines that it completes."""
        tagged_lines = []
        for line in lines:
            progress = read_line(line)
            if is_success(progress):
                # Whoever sees the success may ask at once for the list of models.
                await self._refresh(leg.agent)
                problem = None
            elif (error := line_error(progress)) is not None:
                problem = error
            tagged_lines.append(line_of(leg.agent.name, line, progress) if self._merges else b"")
        if output := b"".join(tagged_lines) if self._merges else piece:
            leg.unended = not output.endswith(b"\n")
            await self._pieces.put(output)
        return problem

    def _end(self, leg: Leg, reply: Reply, outcome: Outcome) -> None:
        leg.reply = reply
        leg.queue.clear()
        leg.queued = 0
        leg.lease.release(outcome, self._clock() - self._started)
        self._resume_reading()
