"""The timing model, in virtual time and without sockets."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ollama_balancer.simulator import Faults, SimulatedModel, Timing
from ollama_balancer.simulator.timing import Scheduler

from .support import StandingClock, settle

A, B, C = SimulatedModel("a"), SimulatedModel("b"), SimulatedModel("c")
EMBEDDING = SimulatedModel("e", embedding=True)


class Bench:
    """A scheduler in virtual time, and requests that hold a slot for a while; `log` tells who began and ended when."""

    def __init__(self, **timing: Any) -> None:
        self.clock = StandingClock()
        self.faults = Faults()
        self.scheduler = Scheduler(Timing(**timing), lambda: self.faults, self.clock.sleep, self.clock)
        self.log: list[tuple[float, str]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def request(
        self, name: str, model: SimulatedModel, seconds: float = 10, keep_alive: float | None = None
    ) -> asyncio.Task[None]:
        async def hold() -> None:
            async with self.scheduler.slot(model, keep_alive):
                self.note(f"{name} runs")
                await self.clock.sleep(seconds)
            self.note(f"{name} ends")

        self.tasks.append(asyncio.create_task(hold()))
        return self.tasks[-1]

    def note(self, what: str) -> None:
        self.log.append((round(self.clock.now - 1000, 6), what))

    @property
    def loaded(self) -> list[str]:
        return [line.model.name for line in self.scheduler.loaded()]


def play(scene: Callable[[], Coroutine[Any, Any, None]], *, eager: bool = False) -> None:
    async def main() -> None:
        if eager:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await scene()

    asyncio.run(main())


@pytest.mark.parametrize("eager", [False, True])
def test_requests_of_a_model_run_in_the_order_of_their_arrival_and_no_more_than_num_parallel_at_once(
    eager: bool,
) -> None:
    async def scene() -> None:
        bench = Bench(load=2, num_parallel=2)
        for name in "1234":
            bench.request(name, A)
        await bench.clock.advance(50)
        assert [what for what in bench.log if what[1].endswith("runs")] == [
            (2, "1 runs"),
            (2, "2 runs"),
            (12, "3 runs"),
            (12, "4 runs"),
        ]

    play(scene, eager=eager)


def test_loads_are_serial_and_in_the_order_of_arrival() -> None:
    async def scene() -> None:
        bench = Bench(load=2, max_loaded=3)
        for model in (A, B, C):
            bench.request(model.name, model, seconds=100)
        await bench.clock.advance(10)
        assert bench.log == [(2, "a runs"), (4, "b runs"), (6, "c runs")]

    play(scene)


def test_a_loaded_model_serves_while_another_loads() -> None:
    async def scene() -> None:
        bench = Bench(load=5, max_loaded=2, num_parallel=2)
        bench.request("a1", A, seconds=100)
        await bench.clock.advance(6)
        bench.request("b", B, seconds=100)
        bench.request("a2", A, seconds=100)
        await bench.clock.advance(10)
        assert bench.log == [(5, "a1 runs"), (6, "a2 runs"), (11, "b runs")]

    play(scene)


def test_the_least_recently_used_idle_model_makes_room() -> None:
    async def scene() -> None:
        bench = Bench(load=1, max_loaded=2)
        bench.request("a", A, seconds=1)
        await bench.clock.advance(5)
        bench.request("b", B, seconds=1)
        await bench.clock.advance(5)
        bench.request("a again", A, seconds=1)
        await bench.clock.advance(5)
        bench.request("c", C, seconds=1)
        await bench.clock.advance(5)
        assert bench.loaded == ["c", "a"]

    play(scene)


def test_without_an_idle_model_a_load_waits_for_one_to_drain() -> None:
    async def scene() -> None:
        bench = Bench(load=1, max_loaded=1)
        bench.request("a", A, seconds=10)
        await bench.clock.advance(2)
        bench.request("b", B, seconds=10)
        await bench.clock.advance(8)
        assert bench.log == [(1, "a runs")]
        assert bench.loaded == ["a"]
        await bench.clock.advance(30)
        assert bench.log == [(1, "a runs"), (11, "a ends"), (12, "b runs"), (22, "b ends")]
        assert bench.loaded == ["b"]

    play(scene)


def test_a_load_that_finds_no_room_blocks_the_loads_behind_it() -> None:
    async def scene() -> None:
        bench = Bench(load=1, max_loaded=2)
        bench.request("a", A, seconds=20)
        bench.request("b", B, seconds=5)
        await bench.clock.advance(3)
        bench.request("c", C, seconds=5)
        await bench.clock.advance(1)
        bench.request("e", EMBEDDING, seconds=5)
        await bench.clock.advance(60)
        began = {what: when for when, what in bench.log}
        assert began["c runs"] == 8
        assert began["e runs"] == 14

    play(scene)


def test_an_embedding_model_runs_one_request_at_a_time() -> None:
    async def scene() -> None:
        bench = Bench(load=0, num_parallel=4)
        for name in "12":
            bench.request(name, EMBEDDING, seconds=1)
        await bench.clock.advance(0.5)
        assert bench.scheduler.running == 1
        assert bench.scheduler.waiting == 1
        await bench.clock.advance(5)

    play(scene)


@pytest.mark.parametrize("eager", [False, True])
def test_a_dropped_load_is_aborted_and_the_next_in_line_loads_from_scratch(eager: bool) -> None:
    async def scene() -> None:
        bench = Bench(load=4)
        first = bench.request("1", A, seconds=1)
        bench.request("2", A, seconds=1)
        await bench.clock.advance(3)
        first.cancel()
        await bench.clock.advance(3.5)
        assert bench.log == []
        await bench.clock.advance(1)
        assert bench.log == [(7, "2 runs")]
        await bench.clock.advance(9)

    play(scene, eager=eager)


def test_a_dropped_load_without_anyone_behind_leaves_nothing_loaded() -> None:
    async def scene() -> None:
        bench = Bench(load=4)
        bench.request("1", A).cancel()
        await settle()
        request = bench.request("2", A)
        await bench.clock.advance(1)
        request.cancel()
        await bench.clock.advance(60)
        assert (bench.loaded, bench.scheduler.running, bench.scheduler.waiting) == ([], 0, 0)

    play(scene)


def test_a_cancelled_waiter_leaves_its_place_to_the_next() -> None:
    async def scene() -> None:
        bench = Bench(load=0)
        bench.request("1", A, seconds=5)
        second = bench.request("2", A, seconds=5)
        bench.request("3", A, seconds=5)
        await bench.clock.advance(1)
        second.cancel()
        await bench.clock.advance(20)
        assert bench.log == [(0, "1 runs"), (5, "1 ends"), (5, "3 runs"), (10, "3 ends")]

    play(scene)


def test_one_cancelled_just_as_its_turn_comes_gives_the_slot_back() -> None:
    async def scene() -> None:
        bench = Bench(load=0)
        first = bench.request("1", A, seconds=5)
        second = bench.request("2", A, seconds=5)
        third = bench.request("3", A, seconds=5)
        await bench.clock.advance(1)
        first.cancel()
        await asyncio.sleep(0)  # the first has left, the second's turn has come, and it hasn't run yet
        assert bench.scheduler.running == 1
        second.cancel()
        await settle()
        assert [text for _, text in bench.log] == ["1 runs", "3 runs"]
        third.cancel()
        await settle()
        assert bench.scheduler.running == 0

    play(scene)


def test_a_model_is_unloaded_when_its_keep_alive_has_passed() -> None:
    async def scene() -> None:
        bench = Bench(load=0)
        bench.request("1", A, seconds=1, keep_alive=60)
        await bench.clock.advance(60.5)
        assert bench.loaded == ["a"]
        await bench.clock.advance(1)
        assert bench.loaded == []

    play(scene)


def test_a_keep_alive_of_0_unloads_at_once_and_the_default_is_5_minutes() -> None:
    async def scene() -> None:
        bench = Bench(load=0)
        bench.request("1", A, seconds=1, keep_alive=0)
        await bench.clock.advance(1)
        assert bench.loaded == []
        bench.request("2", A, seconds=1)
        await bench.clock.advance(300)
        assert bench.loaded == ["a"]
        await bench.clock.advance(2)
        assert bench.loaded == []

    play(scene)


def test_an_unload_lets_running_requests_finish() -> None:
    async def scene() -> None:
        bench = Bench(load=0)
        bench.request("1", A, seconds=5)
        await bench.clock.advance(1)
        bench.scheduler.unload(A)
        assert bench.loaded == ["a"]
        await bench.clock.advance(5)
        assert bench.log == [(0, "1 runs"), (5, "1 ends")]
        assert bench.loaded == []

    play(scene)


def test_time_scale_and_slow_factor_multiply_every_duration() -> None:
    async def scene() -> None:
        bench = Bench(load=10, time_scale=0.1)
        bench.faults.slow_factor = 3
        bench.request("1", A, seconds=1)
        await bench.clock.advance(10)
        assert bench.log[0] == (3, "1 runs")
        assert bench.scheduler.scaled(1) == pytest.approx(0.3)

    play(scene)


@pytest.mark.parametrize(
    "figures",
    [{"load": -1}, {"time_scale": float("inf")}, {"decode_rate": 0}, {"num_parallel": 0}, {"load": float("nan")}],
)
def test_figures_out_of_range_are_refused(figures: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(figures))):
        Timing(**figures)
