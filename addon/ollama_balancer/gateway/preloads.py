"""Carries out the loads that `core.preloading` finds due."""

from __future__ import annotations

import asyncio
import logging

from ..core.agent import Agent
from ..core.preloading import Preloading
from .adapter import Prober
from .tasks import run_in_background

logger = logging.getLogger(__name__)


class Preloads:
    def __init__(self, preloading: Preloading) -> None:
        self._preloading = preloading
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, prober: Prober) -> None:
        """Begin a load, if one is due."""
        due = self._preloading.due()
        if due is not None:
            task = run_in_background(self._load(prober, *due), "preload")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Give up those in progress, which their hosts then abort."""
        for task in self._tasks:
            task.cancel()

    async def _load(self, prober: Prober, agent: Agent, model: str) -> None:
        loaded = False
        try:
            logger.info("Agent %s is to load %s, for which all slots are in use.", agent.name, model)
            loaded = await prober.load(agent, model)
        finally:
            self._preloading.ended(agent, model, loaded=loaded)
        if not loaded:
            logger.info("Agent %s has not loaded %s.", agent.name, model)
