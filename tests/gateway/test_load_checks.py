"""Hosts are asked what they have in memory right after a request has changed it."""

from __future__ import annotations

import asyncio

import pytest

from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent, Source
from ollama_balancer.gateway.load_checks import LOAD_DELAYS, UNLOAD_DELAYS, LoadedModelChecks
from tests import jumping_loop


class Host:
    """Is asked through `refresh`, whose answers `answers` holds until they are let go."""

    def __init__(self) -> None:
        self.agent = Agent("a", Address("10.0.0.1", 11434), Source.STATIC, 0)
        self.asked: list[tuple[str | None, bool]] = []
        self.lists = asyncio.Event()
        self.lists_still = 0
        self.slept: list[float] = []

    async def refresh(self, agent: Agent, unloading: str | None, last: bool) -> bool:
        assert agent is self.agent
        self.asked.append((unloading, last))
        await self.lists.wait()
        self.lists_still -= 1
        return self.lists_still < 0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_a_question_for_what_is_loaded_waits_for_the_host_but_not_for_ever() -> None:
    async def main() -> None:
        host = Host()
        checks = LoadedModelChecks(host.refresh)
        checks.loaded(host.agent)
        assert checks.pending
        await checks.wait_pending(0.01)
        assert (checks.pending, host.asked) == (True, [(None, True)])
        host.lists.set()
        await checks.wait_pending(60)
        assert not checks.pending
        await checks.wait_pending(60)

    jumping_loop.run(main())


def test_a_host_that_loads_again_while_it_is_asked_is_asked_again_and_not_twice_at_once() -> None:
    async def main() -> None:
        host = Host()
        checks = LoadedModelChecks(host.refresh)
        for _ in range(3):
            checks.loaded(host.agent)
        await asyncio.sleep(0)
        checks.loaded(host.agent)
        checks.loaded(host.agent)
        assert len(host.asked) == 1
        host.lists.set()
        await checks.wait_pending(60)
        assert host.asked == [(None, True), (None, True)]

    asyncio.run(main())


@pytest.mark.parametrize("until", [1, 2, 9])
def test_a_host_that_loads_a_model_is_asked_again_for_it_evicts_others_a_moment_later(until: int) -> None:
    async def main() -> None:
        host = Host()
        host.lists.set()
        host.agent.loading["m"] = 0.0

        async def refresh(agent: Agent, unloading: str | None, last: bool) -> bool:
            if len(host.asked) + 1 == until:
                agent.loading.clear()
            return await host.refresh(agent, unloading, last)

        checks = LoadedModelChecks(refresh, host.sleep)
        for _ in range(3):
            checks.loaded(host.agent)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        assert len(host.asked) == min(until, 1 + len(LOAD_DELAYS))
        assert host.slept == list(LOAD_DELAYS[:until])
        assert not checks._watched

    asyncio.run(main())


def test_a_host_is_asked_until_it_has_unloaded_the_model_and_believed_in_the_end() -> None:
    async def main() -> None:
        for still, looks in ((0, 1), (2, 3), (100, len(UNLOAD_DELAYS))):
            host = Host()
            host.lists_still = still
            host.lists.set()
            checks = LoadedModelChecks(host.refresh, host.sleep)
            checks.watch_unload(host.agent, "m")
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            assert not checks.pending
            await asyncio.gather(*tasks)
            assert len(host.asked) == looks
            assert host.slept == list(UNLOAD_DELAYS[:looks])
            assert [last for _, last in host.asked] == [n == len(UNLOAD_DELAYS) for n in range(1, looks + 1)]

    asyncio.run(main())


def test_a_model_that_many_requests_unload_is_looked_after_once() -> None:
    async def main() -> None:
        host = Host()
        host.lists_still = 1
        checks = LoadedModelChecks(host.refresh, host.sleep)
        for _ in range(100):
            checks.watch_unload(host.agent, "m:latest")
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 2
        host.lists.set()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        assert host.asked == [("m:latest", False)] * 2
        checks.watch_unload(host.agent, "m:latest")
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        assert len(host.asked) > 2, "the next time it is looked after again"

    asyncio.run(main())


def test_an_unload_that_is_confirmed_again_gets_all_its_looks() -> None:
    async def main() -> None:
        host = Host()
        host.lists_still = 100
        checks = LoadedModelChecks(host.refresh, host.sleep)
        checks.watch_unload(host.agent, "m")
        await asyncio.sleep(0)
        assert host.asked == [("m", False)]
        checks.watch_unload(host.agent, "m")
        host.lists.set()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        assert host.slept == [UNLOAD_DELAYS[0], *UNLOAD_DELAYS]

    asyncio.run(main())
