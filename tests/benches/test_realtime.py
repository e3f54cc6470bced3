"""Simulated time that goes with a loop's."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from benches.fleet_http.realtime import RealTimeEngine


class Timer:
    def __init__(self, when: float, action: Callable[[], Any]) -> None:
        self.when, self.action = when, action
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop whose time a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, action: Callable[[], Any]) -> Timer:
        self.timers.append(Timer(when, action))
        return self.timers[-1]

    @property
    def set(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def wake(self, now: float) -> None:
        """The timer that is set goes off, at that time."""
        self.now = now
        (timer,) = self.set
        timer.cancelled = True
        timer.action()


def engine_on(loop: Loop) -> RealTimeEngine:
    return RealTimeEngine(10.0, cast(asyncio.AbstractEventLoop, loop))


def test_the_loop_wakes_the_engine_when_the_next_event_is_due() -> None:
    loop = Loop()
    engine = engine_on(loop)
    engine.after(50.0, lambda: None)
    sooner = engine.after(20.0, lambda: None)
    assert [timer.when for timer in loop.set] == [102.0]
    sooner.cancel()
    engine.after(60.0, lambda: None)
    assert [timer.when for timer in loop.set] == [105.0]


def test_an_event_finds_the_time_for_which_it_was_due_however_late_the_loop_is() -> None:
    loop = Loop()
    engine = engine_on(loop)
    seen: list[float] = []

    def again() -> None:
        seen.append(engine.now)
        engine.after(7.0, again)

    engine.after(10.0, again)
    loop.wake(102.0)
    assert seen == [10.0, 17.0]
    assert engine.now == 20.0
    assert [timer.when for timer in loop.set] == [102.4]


def test_who_comes_from_outside_finds_all_done_that_is_due() -> None:
    loop = Loop()
    engine = engine_on(loop)
    seen: list[float] = []
    engine.after(10.0, lambda: seen.append(engine.now))
    loop.now = 101.5
    engine.catch_up()
    assert seen == [10.0]
    assert engine.now == 15.0
    assert loop.set == []
