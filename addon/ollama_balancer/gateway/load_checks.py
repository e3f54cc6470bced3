"""Updates the loaded models of a host right after a request has loaded or unloaded one.

Otherwise /api/ps would show the state of the last report or probe for some seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable

from ..core.agent import Agent
from .tasks import run_in_background

UNLOAD_DELAYS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between checks of a host that unloads a model: it answers before it has done so."""

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
        self._unloads: dict[tuple[Agent, str], asyncio.Task[None]] = {}
        """What watches an unload, of each host and model the latest."""
        self._changed: set[Agent] = set()
        """Hosts that have changed since their last query."""

    @property
    def pending(self) -> bool:
        return bool(self._loads)

    def loaded(self, agent: Agent) -> None:
        """A request has loaded a model there, which may have evicted another."""
        self._changed.add(agent)
        if agent not in self._loads:
            self._loads[agent] = run_in_background(self._check_load(agent), "memory check")

    def watch_unload(self, agent: Agent, model: str) -> None:
        """The host has confirmed that it unloads the model (a canonical name)."""
        earlier = self._unloads.pop((agent, model), None)
        if earlier is not None:
            earlier.cancel()  # it would look for the last time too soon
        self._unloads[agent, model] = run_in_background(self._check_unload(agent, model), "memory check")

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

    async def _check_unload(self, agent: Agent, model: str) -> None:
        try:
            for delay in UNLOAD_DELAYS:
                await self._sleep(delay)
                if await self._refresh(agent, model, delay == UNLOAD_DELAYS[-1]):
                    return
        finally:
            if self._unloads.get((agent, model)) is asyncio.current_task():
                del self._unloads[agent, model]
