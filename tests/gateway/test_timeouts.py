"""What is not dropped by its time expires then, by one timer."""

from __future__ import annotations

import asyncio
import random

import pytest

from ollama_balancer.gateway.timeouts import Deadlines
from tests.core.fakes import Clock
from tests.gateway.timers import Timers


class Scene:
    def __init__(self) -> None:
        self.clock = Clock(0)
        self.timers = Timers(self.clock)
        self.expired: list[tuple[object, float]] = []
        self.deadlines: Deadlines[object] = Deadlines(self.clock, self.expire, self.timers.call_later)

    def expire(self, what: object) -> None:
        self.expired.append((what, self.clock.now))


def test_each_expires_at_its_time_unless_it_is_dropped() -> None:
    scene = Scene()
    for at in (5, 3, 9, 3, 7):
        scene.deadlines.set(f"{at}", at)
    scene.deadlines.drop("5")
    scene.deadlines.drop("never set")
    scene.timers.advance(8)
    assert scene.expired == [("3", 3), ("7", 7)]
    assert len(scene.deadlines) == 1
    scene.timers.advance(100)
    assert scene.expired[2:] == [("9", 9)]
    assert scene.timers.pending == []


def test_there_is_one_timer_and_none_when_nothing_is_left() -> None:
    scene = Scene()
    for number in range(1000):
        scene.clock.now = number / 10
        scene.deadlines.set(number, scene.clock.now + 600)
        scene.deadlines.drop(number - 1)
        assert scene.timers.pending == [600]
    scene.deadlines.drop(999)
    scene.timers.advance(600)
    assert scene.timers.pending == []
    scene.deadlines.set("next", 700)
    assert scene.timers.pending == [700]
    scene.deadlines.set("sooner", 650)
    assert scene.timers.pending == [650]


def test_one_set_again_has_the_new_time_and_one_that_is_over_expires_at_once() -> None:
    scene = Scene()
    scene.deadlines.set("a", 5)
    scene.deadlines.set("a", 7)
    scene.timers.advance(6)
    assert scene.expired == []
    scene.deadlines.set("late", 1)
    scene.timers.advance(6)
    assert scene.expired == [("late", 6)]
    scene.timers.advance(7)
    assert scene.expired[1:] == [("a", 7)]


def test_what_expires_may_drop_and_set_others() -> None:
    scene = Scene()

    def expire(what: object) -> None:
        scene.expire(what)
        if what == "a":
            scene.deadlines.drop("b")
            scene.deadlines.set("c", 6)

    scene.deadlines = Deadlines(scene.clock, expire, scene.timers.call_later)
    for what in ("a", "b", "d"):
        scene.deadlines.set(what, 5)
    scene.deadlines.set("e", 20)
    scene.timers.advance(30)
    assert scene.expired == [("a", 5), ("d", 5), ("c", 6), ("e", 20)]


def test_a_fault_with_one_keeps_no_other_waiting() -> None:
    scene = Scene()

    def expire(what: object) -> None:
        scene.expire(what)
        if what == "a":
            raise ValueError("its fault")

    scene.deadlines = Deadlines(scene.clock, expire, scene.timers.call_later)
    for what, at in (("a", 5), ("b", 5), ("c", 9)):
        scene.deadlines.set(what, at)
    with pytest.raises(ValueError, match="its fault"):
        scene.timers.advance(30)
    scene.timers.advance(30)
    assert scene.expired == [("a", 5), ("b", 5), ("c", 9)]
    assert scene.timers.pending == []


@pytest.mark.chaos
def test_whatever_is_set_and_dropped_none_is_late_or_early() -> None:
    scene, chance, due = Scene(), random.Random(1), dict[object, float]()
    expected: list[tuple[object, float]] = []
    for number in range(2000):
        now = scene.clock.now
        if chance.random() < 0.6 and due:
            gone = chance.choice(list(due))
            del due[gone]
            scene.deadlines.drop(gone)
        due[number] = now + chance.uniform(0, 50)
        scene.deadlines.set(number, due[number])
        to = now + chance.uniform(0, 2)
        expected += sorted(((what, at) for what, at in due.items() if at <= to), key=lambda each: each[1])
        due = {what: at for what, at in due.items() if at > to}
        scene.timers.advance(to)
    assert scene.expired == expected
    assert len(expected) > 100


def test_without_another_it_is_the_running_loops_timer() -> None:
    async def test() -> None:
        expired = asyncio.get_running_loop().create_future()
        deadlines: Deadlines[str] = Deadlines(asyncio.get_running_loop().time, expired.set_result)
        deadlines.set("it", asyncio.get_running_loop().time() + 0.01)
        async with asyncio.timeout(10):
            assert await expired == "it"

    asyncio.run(test())
