"""Updates the loaded models of a host right after a load has begun or ended there, or a request has unloaded a model.

Otherwise /api/ps would show the state of the last report or probe for some seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ..core.agent import Agent
from .tasks import run_in_background

UNLOAD_DELAYS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between checks of a host that unloads a model: it answers before it has done so."""

LOAD_DELAYS = (0.5, 1.5)
"""Seconds between checks of a host that loads a model: it evicts others for it a moment after it was asked."""

PENDING_SECONDS = 1.0
"""Seconds that /api/ps waits for pending checks."""


class LoadedModelChecks:
    """`refresh` queries a host and stores its loaded models; given a model to be unloaded, only once that is gone or on
    the last check. It returns whether the check is complete.
    """

    def __init__(
        self,
        refresh: Callable[[Agent, str | None, bool], Awaitable[bool]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._refresh = refresh
        self._sleep = sleep
        self._loads: dict[Agent, asyncio.Task[None]] = {}
        self._watched: dict[tuple[Agent, str | None], asyncio.Task[None]] = {}
        """What watches the latest unload of each host and model, and with None as the model the latest load."""
        self._changed: set[Agent] = set()
        """Hosts that have changed since their last query."""

    @property
    def pending(self) -> bool:
        return bool(self._loads)

    def loaded(self, agent: Agent) -> None:
        """A load has begun or ended there, which may have evicted another model."""
        self._changed.add(agent)
        if agent not in self._loads:
            self._loads[agent] = run_in_background(self._check_load(agent), "memory check")
        if agent.loading:
            self._watch(agent, None, self._watch_load(agent))

    def watch_unload(self, agent: Agent, model: str) -> None:
        """The host has confirmed that it unloads the model (a canonical name)."""
        self._watch(agent, model, self._watch_unload(agent, model))

    async def wait_pending(self, seconds: float = PENDING_SECONDS) -> None:
        """Wait for pending queries about loads."""
        if self._loads:
            await asyncio.wait(self._loads.values(), timeout=seconds)

    async def _check_load(self, agent: Agent) -> None:
        try:
            while agent in self._changed:
                self._changed.discard(agent)
                await self._refresh(agent, None, True)
        finally:
            self._changed.discard(agent)
            del self._loads[agent]

    def _watch(self, agent: Agent, model: str | None, checks: Coroutine[Any, Any, None]) -> None:
        """Run these checks in place of earlier ones, which would look for the last time too soon."""
        earlier = self._watched.get((agent, model))
        if earlier is not None:
            earlier.cancel()
        task = self._watched[agent, model] = run_in_background(checks, "memory check")
        task.add_done_callback(lambda task: self._watched_no_more(agent, model, task))

    def _watched_no_more(self, agent: Agent, model: str | None, task: asyncio.Task[None]) -> None:
        if self._watched.get((agent, model)) is task:
            del self._watched[agent, model]

    async def _watch_load(self, agent: Agent) -> None:
        for delay in LOAD_DELAYS:
            await self._sleep(delay)
            if not agent.loading:
                return
            await self._refresh(agent, None, True)

    async def _watch_unload(self, agent: Agent, model: str) -> None:
        for delay in UNLOAD_DELAYS:
            await self._sleep(delay)
            if await self._refresh(agent, model, delay == UNLOAD_DELAYS[-1]):
                return
