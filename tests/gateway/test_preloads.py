"""Loads ahead of requests leave nothing behind, however they end."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.demand import Demand
from ollama_balancer.gateway.preloads import Preloads
from tests.core.room import MODEL, Room


class Prober:
    """Loads for ever, or fails at once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, str]] = []

    async def load(self, agent: Agent, model: str) -> bool:
        self.asked.append((agent.name, model))
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()
        return True


@pytest.mark.parametrize("error", [None, RuntimeError("no")])
def test_a_load_that_is_given_up_or_fails_is_over(error: Exception | None) -> None:
    async def run() -> None:
        room, prober = Room("a", "b", slots=1), Prober(error)
        a, b = room.agents
        room.serve(a)
        room.registry.limiter.take(a, MODEL, Demand(MODEL)).began()
        preloads = Preloads(room.registry.preloading)
        preloads.begin(cast(Any, prober))
        assert list(b.loading) == [MODEL]
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        await asyncio.sleep(0)
        preloads.stop()
        for _ in range(3):
            await asyncio.sleep(0)
        assert prober.asked == [("b", MODEL)]
        assert (b.loading, b.loaders, list(b.loaded_models)) == ({}, {}, [])
        assert not preloads._tasks

    asyncio.run(run())
