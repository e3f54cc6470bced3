"""Asks the agents that have no reporter, or whose reporter is silent, whether they are there and what they have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent_reporter.wire import ModelEntry

from .fleet.agent import Address, Agent, Source
from .fleet.registry import AgentRegistry
from .ollama.names import canonical_name

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two rounds."""

ALIVE_TIMEOUT = 2.0
"""Seconds for GET /api/version, which a live Ollama answers in a millisecond."""

FIRST_TRIES = 4
"""How often agents that do not answer are asked at the start, one time right after another, as long as none does."""

INVENTORY_TIMEOUT = 5.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
AT_ONCE = 256
LOCAL = Address("127.0.0.1", 11434)


class Version(BaseModel):
    version: str = Field(max_length=256)


class Models(BaseModel):
    model_config = ConfigDict(extra="ignore")

    models: list[ModelEntry] | None = Field(default=None, max_length=10_000)


class Prober:
    """Probes in rounds. `via` names the balancer, which does not answer itself.

    `first_round` is set when the agents known at the start have been asked; several times where none answered in time.
    """

    def __init__(self, registry: AgentRegistry, *, take_in_local: Callable[[], bool], via: str) -> None:
        self.registry = registry
        self.via = via
        self.take_in_local = take_in_local
        self.first_round = asyncio.Event()
        self._wake = asyncio.Event()
        self._http: httpx.AsyncClient | None = None
        """The rounds' own: to make another takes longer than to ask."""

    def wake(self) -> None:
        """Begin a round now."""
        self._wake.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        tries = FIRST_TRIES
        async with self._client() as client:
            self._http = client
            while True:
                self._wake.clear()
                told = True
                try:
                    told = await self.round(client)
                except Exception:
                    logger.exception("A round of probes failed; the next one is in %g s.", INTERVAL)
                tries -= 1
                if tries > 0 and not told and not self.registry.any_online:
                    continue  # a host that was too slow once must not fail the first requests
                self.first_round.set()
                try:
                    async with asyncio.timeout(INTERVAL):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def round(self, client: httpx.AsyncClient) -> bool:
        """Ask all agents that are to be asked; False if one of them did not answer in time."""
        if self.take_in_local() and len(self.registry) == 0 and await self._answers(client, LOCAL):
            self.registry.register("local", LOCAL, Source.LOCAL)
            logger.info("An Ollama answers on %s: taken in as agent local.", LOCAL)
        at_once = asyncio.Semaphore(AT_ONCE)

        async def probe(agent: Agent) -> bool:
            async with at_once:
                return await self.probe(client, agent)

        async with asyncio.TaskGroup() as group:
            probes = [group.create_task(probe(agent)) for agent in self.registry if self.registry.wants_probe(agent)]
        return all(task.result() for task in probes)

    async def probe(self, client: httpx.AsyncClient, agent: Agent) -> bool:
        """Ask one agent; False if it did not answer in time.

        What it answers is not trusted: sizes and types are checked, a bad answer is no answer.
        """
        address = agent.address
        try:
            version = Version.model_validate_json(await _get(client, address, "/api/version", ALIVE_TIMEOUT)).version
        except httpx.ConnectError as e:
            if agent.address == address:
                self.registry.unreachable(agent, f"cannot connect: {e}")
            return True
        except (httpx.HTTPError, httpx.InvalidURL, ValidationError, ValueError) as e:
            logger.debug("Agent %s (%s) does not answer: %r", agent.name, address, e)
            return not isinstance(e, httpx.TimeoutException)
        await self._list(client, agent, address)
        if agent.address == address:
            self.registry.update_version(agent, version)
            self.registry.reached(agent)
        return True

    async def look_at(self, agent: Agent) -> None:
        """Ask one agent now, that is new or has moved, if the rounds have begun; else they will."""
        if self._http is not None:
            await self.probe(self._http, agent)

    async def refresh(self, agent: Agent) -> None:
        """See at once what models an agent has, after something has changed there."""
        async with self._client() as client:
            await self._list(client, agent, agent.address)

    async def refresh_memory(self, agent: Agent) -> None:
        """See at once what an agent has in memory."""
        address = agent.address
        entries = await self._running(address)
        if entries is not None and agent.address == address and not agent.removed:
            self.registry.update_loaded(agent, entries)

    async def loaded(self, agent: Agent) -> set[str] | None:
        """The canonical names of the models that the agent has in memory; None if it does not answer."""
        entries = await self._running(agent.address)
        return None if entries is None else {canonical_name(entry.name) for entry in entries}

    async def _running(self, address: Address) -> list[ModelEntry] | None:
        try:
            async with self._client() as client:
                body = await _get(client, address, "/api/ps", ALIVE_TIMEOUT)
            return Models.model_validate_json(body).models or []
        except (httpx.HTTPError, httpx.InvalidURL, ValidationError, ValueError):
            return None

    async def _list(self, client: httpx.AsyncClient, agent: Agent, address: Address) -> None:
        try:
            tags = Models.model_validate_json(await _get(client, address, "/api/tags", INVENTORY_TIMEOUT))
            loaded = Models.model_validate_json(await _get(client, address, "/api/ps", INVENTORY_TIMEOUT))
        except (httpx.HTTPError, ValidationError, ValueError) as e:
            logger.debug("Agent %s (%s) does not list its models: %r", agent.name, address, e)
            return
        if agent.address == address:
            self.registry.update_loaded(agent, loaded.models or [])
            self.registry.update_models(agent, tags.models or [])

    def _client(self) -> httpx.AsyncClient:
        # None is kept: for each request the pool looks at all of them, which takes longer than to connect.
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0)
        # No proxy of the environment's: the agents are ours, and the proxy may be this very process. No certificates
        # to load: they speak http.
        headers = {"Accept-Encoding": "identity", "Via": self.via}
        return httpx.AsyncClient(limits=limits, trust_env=False, verify=False, headers=headers)  # noqa: S501

    async def _answers(self, client: httpx.AsyncClient, address: Address) -> bool:
        try:
            Version.model_validate_json(await _get(client, address, "/api/version", ALIVE_TIMEOUT))
        except (httpx.HTTPError, ValidationError, ValueError):
            return False
        return True


async def _get(client: httpx.AsyncClient, address: Address, path: str, seconds: float) -> bytes:
    """The body of a 200 answer; ValueError for another status or one that is too large, httpx.HTTPError else.

    httpx.ReadTimeout where it does not come within that many seconds.
    """
    try:
        async with asyncio.timeout(seconds), client.stream("GET", address.url + path, timeout=seconds) as response:
            if response.status_code != 200:
                raise ValueError(f"{path} answered with status {response.status_code}")
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise ValueError(f"{path} answered with more than {MAX_ANSWER_BYTES} bytes")
            return body
    except TimeoutError as e:
        raise httpx.ReadTimeout(f"{path} was not answered within {seconds:g} s") from e
