"""Registers an agent with its balancers and reports to them until told to stop.

One task per balancer, so that one which is away or slow holds up no other; one collection per interval, shared by all.
A balancer that was away gets the newest report, never a backlog.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from .http import Call, call
from .limits import DEFAULT_OLLAMA_PORT, MAX_BODY_BYTES
from .link import Link, LinkError, UnknownAgentError
from .states import StateLog, log, printable
from .timeouts import timeout
from .wire import AgentMetrics, AgentRegistration, ModelEntry

DRAIN_TIMEOUT = 3.0
"""Seconds that stopping may take."""

BACKOFF_BASE = 0.5
BACKOFF_CAP = 10.0
"""Seconds: the first and the longest wait before a balancer is tried again."""

Collect = Callable[[], Awaitable[AgentMetrics]]
Sleep = Callable[[float], Awaitable[None]]


class Reporter:
    """One agent's reports to its balancers.

    `advertise` is the url that balancers are to use; without it they take the caller's address and `port`.
    `interval` is in seconds. `token_source` says in errors where the token came from.
    `collect` makes one report; when it raises, the interval goes without one.
    Raises ValueError for a token that cannot stand in a header and for a name or port out of range.
    """

    def __init__(
        self,
        *,
        balancers: Sequence[str],
        token: str,
        name: str,
        collect: Collect,
        advertise: str | None = None,
        port: int = DEFAULT_OLLAMA_PORT,
        interval: float = 10.0,
        token_source: str = "the token",  # noqa: S107  # the words for it, not a token
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        rand: Callable[[], float] = random.random,
        call: Call = call,
    ) -> None:
        check_token(token)
        self.name = name
        self.interval = interval
        self._token, self._token_source = token, token_source
        self._registration = AgentRegistration(name=name, url=advertise, port=port, instance=secrets.token_hex(8))
        self._call = call
        self._links: list[Link] = []
        self._running = False
        self._tasks: list[asyncio.Task[None]] = []
        for url in balancers:
            self.add(url)
        self._collect = collect
        self._clock = clock
        self._sleep = sleep
        self._rand = rand
        self._stopping = asyncio.Event()
        self._newest = _Newest()
        self._collecting = StateLog("fine")

    def __repr__(self) -> str:
        registered = sum(link.agent is not None for link in self._links)
        return f"<Reporter {self.name}: {registered} of {len(self._links)} balancers>"

    def add(self, balancer: str) -> None:
        """Report to this one as well, if it is a new one. To be called in the loop's thread."""
        url = balancer.rstrip("/")
        if any(link.balancer == url for link in self._links):
            return
        link = Link(
            url,
            token=self._token,
            token_source=self._token_source,
            registration=self._registration,
            call=self._call,
        )
        self._links.append(link)
        if self._running:
            self._begin(self._keep_reporting(link))

    async def run(self) -> None:
        """Report until `stop` is called, then drain; or until cancelled, without draining. Runs once."""
        self._running = True
        try:
            self._begin(self._keep_collecting())
            for link in self._links:
                self._begin(self._keep_reporting(link))
            await self._stopping.wait()
        finally:
            self._running = False
            for task in self._tasks:
                task.cancel()
            ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        await self._drain()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        # None of them ends by itself: one that fails ends `run`.
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._stopping.set())
        self._tasks.append(task)

    def stop(self) -> None:
        """Make `run` drain and return. To be called in the loop's thread."""
        self._stopping.set()

    async def once(self) -> bool:
        """Register and report to each balancer once; whether all of them took it. Runs once.

        Raises what `collect` raises.
        """
        body = encode(await self._collect())
        return all(await asyncio.gather(*(self._report_once(link, body) for link in self._links)))

    async def _report_once(self, link: Link, body: bytes) -> bool:
        try:
            await link.register()
            unreached = await link.report(body)
        except UnknownAgentError:
            log.error("balancer %s registered this agent but then did not know it", link.balancer)
            return False
        except LinkError as error:
            log.error("%s", error)
            return False
        self._log_reporting(link, StateLog(), "reported to")
        self._log_reachability(link, StateLog(), unreached)
        return True

    async def _keep_collecting(self) -> None:
        due = self._clock()
        while True:
            try:
                self._newest.publish(encode(await self._collect()))
            except Exception as error:
                self._newest.withdraw()
                self._collecting.say("failing", logging.ERROR, f"could not make a report: {printable(repr(error))}")
            else:
                self._collecting.say("fine", logging.INFO, "reports can be made again")
            due = max(due + self.interval, self._clock())
            await self._sleep(max(0.0, due - self._clock()))

    async def _keep_reporting(self, link: Link) -> None:
        state, reached = StateLog(), StateLog()
        failures = 0
        sent = 0
        while True:
            try:
                if link.agent is None:
                    await link.register()
                    sent = 0
                number, body = await self._newest.after(sent)
                unreached = await link.report(body)
            except LinkError as error:
                failures += 1
                registering = isinstance(error, UnknownAgentError)
                state.say(error.state, logging.WARNING, str(error) if registering else f"{error}; trying again")
                # Forgotten by a balancer that took the last report: register at once. Otherwise wait, so that one
                # which registers and forgets in turn gets no flood.
                if not (registering and failures == 1):
                    await self._sleep(backoff(failures, self._rand()))
            else:
                failures, sent = 0, number
                self._log_reporting(link, state, f"reporting every {self.interval:g} s to")
                self._log_reachability(link, reached, unreached)

    def _log_reporting(self, link: Link, state: StateLog, what: str) -> None:
        state.say("reporting", logging.INFO, f"{what} balancer {link.balancer} as {link.known_as}")

    def _log_reachability(self, link: Link, state: StateLog, unreached: str | None) -> None:
        if unreached is not None:
            message = f"balancer {link.balancer} cannot reach this host's Ollama and sends it nothing: {unreached}"
            state.say(unreached, logging.WARNING, message)
        elif state.state:
            state.say("", logging.INFO, f"balancer {link.balancer} reaches this host's Ollama again")

    async def _drain(self) -> None:
        await asyncio.gather(*(self._drain_at(link) for link in self._links if link.agent is not None))

    async def _drain_at(self, link: Link) -> None:
        try:
            async with timeout(DRAIN_TIMEOUT):
                await link.drain()
        except TimeoutError:
            log.warning("not drained: balancer %s took longer than %g s", link.balancer, DRAIN_TIMEOUT)
        except LinkError as error:
            log.warning("not drained: %s", error)
        else:
            log.info("drained at balancer %s until the next start", link.balancer)


class _Newest:
    """The newest report and its number, from 1 on."""

    def __init__(self) -> None:
        self._number = 0
        self._body = b""
        self._published = asyncio.Event()

    def publish(self, body: bytes) -> None:
        self._number += 1
        self._body = body
        self._published.set()
        self._published = asyncio.Event()

    def withdraw(self) -> None:
        """Withdraw the newest report: an old one would count as fresh when it arrives."""
        self._body = b""

    async def after(self, number: int) -> tuple[int, bytes]:
        """The newest report, once there is one with a higher number than `number`."""
        while self._number <= number or not self._body:
            await self._published.wait()
        return self._number, self._body


def check_token(token: str) -> None:
    """Raise ValueError, without the token, where it could not stand in an Authorization header."""
    if not token or not all("!" <= c <= "~" for c in token):
        raise ValueError("the token must be printable ASCII without spaces")


def backoff(failures: int, rand: float) -> float:
    """Seconds to wait after that many failures in a row (from 1 on); `rand` is in [0, 1).

    Doubles from BACKOFF_BASE to BACKOFF_CAP; its upper half is left to chance, so that a fleet doesn't come back as
    one.
    """
    longest: float = min(BACKOFF_CAP, BACKOFF_BASE * 2 ** min(failures - 1, 16))
    return longest * (0.5 + rand / 2)


def encode(metrics: AgentMetrics) -> bytes:
    """A report as JSON that a balancer accepts: where it is too long, first the models' details go, then the models."""
    shorter = (
        metrics.model_copy(update={"models": _names(metrics.models), "loaded_models": _names(metrics.loaded_models)}),
        metrics.model_copy(update={"models": None, "loaded_models": _names(metrics.loaded_models)}),
        metrics.model_copy(update={"models": None, "loaded_models": None}),
    )
    body = b""
    for candidate in (metrics, *shorter):
        body = candidate.model_dump_json(exclude_none=True, exclude_defaults=True).encode()
        if len(body) <= MAX_BODY_BYTES:
            break
    return body


def _names(models: list[ModelEntry] | None) -> list[ModelEntry] | None:
    return None if models is None else [ModelEntry(name=model.name) for model in models]
