"""Loads ahead of requests leave nothing behind, however they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.preloading import Ending
from ollama_balancer.gateway.preloads import Preloads
from tests.core.fakes import address
from tests.core.room import MODEL, Room
from tests.core.test_rebalancing import BUSY, SELDOM, Stranded


class Prober:
    """Loads for ever, or fails at once."""

    def __init__(self, error: Exception | None = None, *, unloads: bool = True) -> None:
        self.error = error
        self.unloads = unloads
        self.asked: list[tuple[str, str]] = []
        self.unloaded: list[tuple[str, str]] = []

    async def unload(self, agent: Agent, model: str) -> bool:
        assert not self.asked
        self.unloaded.append((agent.name, model))
        return self.unloads

    async def load(self, agent: Agent, model: str) -> bool:
        self.asked.append((agent.name, model))
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()
        return True


def remove(room: Room, agent: Agent) -> None:
    room.registry.remove(agent)


def lose(room: Room, agent: Agent) -> None:
    room.registry.liveness.unreachable(agent, "gone")


def move(room: Room, agent: Agent) -> None:
    room.registry.register(agent.name, address(9))
    room.registry.liveness.reached(agent)
    room.registry.inventory.update_loaded(agent, [])


async def begun(prober: Prober) -> tuple[Room, Preloads]:
    """The load of a model on host b."""
    room = Room("a", "b", slots=1)
    a, b = room.agents
    room.serve(a)
    room.registry.limiter.take(a, MODEL, Demand(MODEL)).began()
    preloads = Preloads(room.registry.preloading)
    preloads.begin(cast(Any, prober))
    assert list(b.loading) == [MODEL]
    return room, preloads


async def is_over(room: Room, preloads: Preloads) -> None:
    for _ in range(4):
        await asyncio.sleep(0)
    b = room.agents[1]
    assert (b.loading, b.loaders, list(b.loaded_models)) == ({}, {}, [])
    assert not preloads._tasks


@pytest.mark.parametrize("error", [None, RuntimeError("no")])
def test_a_load_that_is_given_up_or_fails_is_over(error: Exception | None) -> None:
    async def run() -> None:
        prober = Prober(error)
        room, preloads = await begun(prober)
        await asyncio.sleep(0)
        preloads.stop()
        await is_over(room, preloads)
        assert prober.asked == [("b", MODEL)]

    asyncio.run(run())


def test_a_load_that_is_given_up_before_it_has_begun_is_over() -> None:
    async def run() -> None:
        prober = Prober()
        room, preloads = await begun(prober)
        preloads.stop()
        await is_over(room, preloads)
        assert not prober.asked

    asyncio.run(run())


@pytest.mark.parametrize("go", [lose, move, remove])
def test_a_load_on_a_host_that_has_gone_is_given_up(go: Callable[[Room, Agent], None]) -> None:
    async def run() -> None:
        prober = Prober()
        room, preloads = await begun(prober)
        await asyncio.sleep(0)
        preloads.begin(cast(Any, prober))
        assert len(preloads._tasks) == 1
        go(room, room.agents[1])
        preloads.begin(cast(Any, prober))
        await is_over(room, preloads)

    asyncio.run(run())


@pytest.mark.parametrize("unloads", [True, False])
def test_a_model_is_loaded_when_the_one_in_its_place_is_unloaded(unloads: bool) -> None:
    async def run() -> None:
        prober = Prober(unloads=unloads)
        room = Stranded("third")
        room.hold(room.agents[2], SELDOM)
        room.overload()
        preloads = Preloads(room.registry.preloading)
        preloads.begin(cast(Any, prober))
        for _ in range(4):
            await asyncio.sleep(0)
        assert prober.unloaded == [("strong", SELDOM)]
        assert prober.asked == ([("strong", BUSY)] if unloads else [])
        assert list(room.strong.loading) == ([BUSY] if unloads else [])
        endings = [how for _, how in room.registry.preloading._ended.values()]
        assert endings == ([] if unloads else [Ending.NOT_ASKED])
        preloads.stop()
        for _ in range(4):
            await asyncio.sleep(0)
        assert (room.strong.loading, room.strong.loaders, preloads._tasks) == ({}, {}, {})

    asyncio.run(run())
