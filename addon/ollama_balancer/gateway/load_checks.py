"""Sees what hosts have in memory right after a request has loaded or unloaded a model there.

Else the fleet's list of loaded models would say for seconds what the last report or probe has said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..core.agent import Agent
from .tasks import run_in_background

UNLOAD_DELAYS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between the looks at a host that unloads a model: it answers before it has done so."""

PENDING_SECONDS = 1.0
"""How long a question for the list waits for hosts that are being asked."""


class LoadedModelChecks:
    """`refresh` asks a host and stores what it says; with a model that the host has been told to unload, only where
    that is gone or it is the last look. It returns whether there is nothing more to see.
    """

    def __init__(
        self,
        refresh: Callable[[Agent, str | None, bool], Awaitable[bool]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._refresh = refresh
        self._sleep = sleep
        self._loads: dict[Agent, asyncio.Task[None]] = {}
        self._unloads: set[tuple[Agent, str]] = set()
        """Hosts that are being watched until a model is gone there."""
        self._changed: set[Agent] = set()
        """Hosts on which something has changed since they were asked last."""

    @property
    def pending(self) -> bool:
        return bool(self._loads)

    def loaded(self, agent: Agent) -> None:
        """A request has loaded a model there, for which another may have been pushed out."""
        self._changed.add(agent)
        if agent not in self._loads:
            self._loads[agent] = run_in_background(self._check_load(agent), "memory check")

    def watch_unload(self, agent: Agent, model: str) -> None:
        """It has answered that it unloads the model (a canonical name)."""
        if (agent, model) in self._unloads:
            return
        self._unloads.add((agent, model))
        run_in_background(self._check_unload(agent, model), "memory check")

    async def wait_pending(self, seconds: float = PENDING_SECONDS) -> None:
        """Wait until the hosts that are asked about a load have answered."""
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
            self._unloads.discard((agent, model))
