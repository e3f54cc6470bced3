"""Carries out the loads that `core.preloading` finds due."""

from __future__ import annotations

import asyncio
import functools
import logging

from ..core.address import Address
from ..core.agent import Agent
from ..core.preloading import Ending, Preloading
from ..core.scoring.placement_plan import Load
from ..text import one_line
from .adapter import Prober
from .tasks import run_in_background

logger = logging.getLogger(__name__)


class Preloads:
    def __init__(self, preloading: Preloading) -> None:
        self._preloading = preloading
        self._tasks: dict[asyncio.Task[Ending], tuple[Agent, Address]] = {}

    def begin(self, prober: Prober) -> None:
        """Begin a load, if one is due, and give up those whose agents have gone: they would be waited for in vain."""
        for task, (agent, address) in self._tasks.items():
            if agent.removed or not agent.online or agent.address != address:
                task.cancel()
        due = self._preloading.due()
        if due is not None:
            agent, model, instead = due
            place = "" if instead is None else f" in place of {one_line(instead)}"
            logger.info("Agent %s is to load %s%s, for which all slots are in use.", agent.name, one_line(model), place)
            task = run_in_background(_carry_out(prober, due), "preload")
            self._tasks[task] = agent, agent.address
            task.add_done_callback(functools.partial(self._ended, due))

    def stop(self) -> None:
        """Give up those in progress, which their hosts then abort."""
        for task in self._tasks:
            task.cancel()

    def _ended(self, load: Load, task: asyncio.Task[Ending]) -> None:
        # A callback, as a task that is cancelled before it has begun runs nothing of its own.
        del self._tasks[task]
        error = None if task.cancelled() else task.exception()
        how = task.result() if error is None and not task.cancelled() else Ending.FAILED
        self._preloading.ended(load, how)
        if how is not Ending.LOADED:
            logger.info("Agent %s has not loaded %s.", load.agent.name, one_line(load.model), exc_info=error)


async def _carry_out(prober: Prober, load: Load) -> Ending:
    if load.instead is not None and not await prober.unload(load.agent, load.instead):
        return Ending.NOT_ASKED
    return Ending.LOADED if await prober.load(load.agent, load.model) else Ending.FAILED
