"""The selector with receivers: for all that has none it does what asyncio's own selector does."""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from ollama_balancer.mitm.compat.python_names import socket_of
from ollama_balancer.mitm.fastpath.selector import LONGEST_PASS, Receiver, RelaySelector, install, remove

pytestmark = pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="asyncio has no epoll here")

BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE


@pytest.fixture
def selector() -> Iterator[RelaySelector]:
    with RelaySelector(selectors.EpollSelector()) as made:
        yield made


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as stack:
        one, other = (stack.enter_context(end) for end in socket.socketpair())
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def taking(end: socket.socket, calls: list[bytes], turn: bool = False) -> Any:
    def receive(now: float) -> bool:
        calls.append(end.recv(100))
        return turn

    return receive


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def listed(found: list[tuple[selectors.SelectorKey, int]]) -> set[tuple[object, int]]:
    return {(key.data, mask) for key, mask in found}


def test_what_has_no_receiver_is_listed_as_by_the_loops_selector(selector: RelaySelector) -> None:
    with pair() as (a, b), pair() as (c, d), pair() as (e, f), pair() as (g, h):
        for end, events in ((a, selectors.EVENT_READ), (c, BOTH), (e, selectors.EVENT_WRITE), (g, BOTH)):
            selector.register(end.fileno(), events, end)
        b.send(b"1")
        d.send(b"2")
        f.send(b"3")
        h.close()
        expected = listed(selector.inner.select(0))
        assert expected == {(a, selectors.EVENT_READ), (c, BOTH), (e, selectors.EVENT_WRITE), (g, BOTH)}
        selector.receivers[-1] = taking(a, [])
        assert listed(selector.select(0)) == expected
        assert listed(selector.select()) == expected


def test_a_receiver_takes_what_has_come_and_the_loop_hears_nothing_of_it(selector: RelaySelector) -> None:
    with pair() as (a, b), pair() as (c, d):
        selector.register(a.fileno(), selectors.EVENT_READ, "a")
        selector.register(c.fileno(), selectors.EVENT_READ, "c")
        calls: list[bytes] = []
        selector.receivers[a.fileno()] = taking(a, calls)
        b.send(b"1")
        assert selector.select(0) == []
        assert calls == [b"1"]
        b.send(b"2")
        d.send(b"3")
        assert listed(selector.select(60)) == {("c", selectors.EVENT_READ)}
        assert calls == [b"1", b"2"]


def test_it_waits_on_after_a_receiver_until_there_is_something_for_the_loop(selector: RelaySelector) -> None:
    with pair() as (a, b), pair() as (c, d):
        selector.register(a.fileno(), selectors.EVENT_READ, "a")
        selector.register(c.fileno(), selectors.EVENT_READ, "c")
        calls: list[bytes] = []

        def receive(now: float) -> bool:
            calls.append(a.recv(100))
            if len(calls) < 3:
                b.send(b"again")
            else:
                d.send(b"for the loop")
            return False

        selector.receivers[a.fileno()] = receive
        b.send(b"1")
        assert listed(selector.select()) == {("c", selectors.EVENT_READ)}
        assert calls == [b"1", b"again", b"again"]


def test_receivers_without_end_do_not_hold_a_timer_up(selector: RelaySelector) -> None:
    with pair() as (a, b):
        selector.register(a.fileno(), selectors.EVENT_READ, "a")

        def receive(now: float) -> bool:
            b.send(a.recv(100))
            return False

        selector.receivers[a.fileno()] = receive
        b.send(b"1")
        assert selector.select(0.02) == []
        assert selector.select(0) == []
        assert selector.select(-1) == []


def test_one_that_is_never_done_and_needs_turns_starves_nobody(selector: RelaySelector) -> None:
    with pair() as (a, b), pair() as (c, d), pair() as (e, f):
        calls: list[bytes] = []

        def receive(now: float) -> bool:
            b.send(a.recv(100))
            return True

        for end in (a, c, e):
            selector.register(end.fileno(), selectors.EVENT_READ, end)
        selector.receivers |= {a.fileno(): receive, c.fileno(): taking(c, calls)}
        b.send(b"1")
        assert selector.select() == []
        d.send(b"2")
        f.send(b"3")
        assert listed(selector.select()) == {(e, selectors.EVENT_READ)}
        assert calls == [b"2"]


def test_slow_ones_that_need_turns_take_turns(selector: RelaySelector, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("ollama_balancer.mitm.fastpath.selector.time.monotonic", lambda: now)
    with ExitStack() as stack:
        calls: list[str] = []

        def receiver(name: str, seconds: float, end: socket.socket, other: socket.socket) -> Receiver:
            def receive(_: float) -> bool:
                nonlocal now
                now += seconds
                calls.append(name)
                other.send(end.recv(1))
                return True

            return receive

        for name, seconds in (("a", 9), ("b", LONGEST_PASS / 2), ("c", LONGEST_PASS), ("d", 9)):
            end, other = stack.enter_context(pair())
            selector.register(end.fileno(), selectors.EVENT_READ, name)
            selector.receivers[end.fileno()] = receiver(name, seconds, end, other)
            other.send(b"1")
        waiting, sender = stack.enter_context(pair())
        selector.register(waiting.fileno(), selectors.EVENT_READ, "the loop's")
        sender.send(b"1")
        passes = []
        for _ in range(6):
            assert listed(selector.select()) == {("the loop's", selectors.EVENT_READ)}
            passes.append("".join(calls))
            calls.clear()
        assert passes == ["a", "bc", "d", "a", "bc", "d"]


def test_a_receiver_that_another_has_taken_away_is_not_called(selector: RelaySelector) -> None:
    with pair() as (a, b), pair() as (c, d):
        calls: list[bytes] = []

        def receive(now: float) -> bool:
            calls.append(b"called")
            selector.receivers.clear()
            return True

        for end, other in ((a, b), (c, d)):
            selector.register(end.fileno(), selectors.EVENT_READ, end)
            selector.receivers[end.fileno()] = receive
            other.send(b"1")
        # What the other had is the loop's now.
        assert len(selector.select()) == 1
        assert calls == [b"called"]


def test_an_end_that_breaks_is_the_loops(selector: RelaySelector) -> None:
    with pair() as (a, b):
        selector.register(a.fileno(), selectors.EVENT_READ, "a")
        selector.receivers[a.fileno()] = taking(a, [])
        b.close()
        assert listed(selector.select(0)) == {("a", selectors.EVENT_READ)}


def test_a_loop_has_one_while_it_is_wanted() -> None:
    async def test() -> None:
        loop: Any = asyncio.get_running_loop()
        before = loop._selector
        ours = install(loop)
        assert ours is not None
        assert install(loop) is ours is loop._selector
        descriptor = ours._epoll.fileno()
        ours.receivers[12345] = lambda now: False
        remove(loop)
        remove(loop)
        assert loop._selector is before
        assert not ours.receivers
        assert not is_open(descriptor)
        again = install(loop)
        assert again is not None
        assert again is not ours

    asyncio.run(test())


def test_a_loop_with_another_selector_keeps_it() -> None:
    class Other(selectors.EpollSelector):
        pass

    loop = asyncio.SelectorEventLoop(Other())
    assert install(loop) is None
    remove(loop)
    loop.close()
    no_selector: Any = object()
    assert install(no_selector) is None
    remove(no_selector)


def test_without_a_file_descriptor_the_loop_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def dup(descriptor: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    loop: Any = asyncio.SelectorEventLoop()
    before = loop._selector
    monkeypatch.setattr(os, "dup", dup)
    assert install(loop) is None
    assert loop._selector is before
    loop.close()


def test_the_loop_closes_all_of_it() -> None:
    loop = asyncio.SelectorEventLoop()
    ours = install(loop)
    assert ours is not None
    descriptors = [ours._epoll.fileno(), ours.inner.fileno()]
    assert all(map(is_open, descriptors))
    loop.close()
    assert not any(map(is_open, descriptors))


def test_the_loop_goes_on_with_all_it_does_while_a_receiver_is_never_done() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        ours = install(loop)
        assert ours is not None
        with pair() as (a, b):
            calls: list[bytes] = []

            def receive(now: float) -> bool:
                calls.append(a.recv(100))
                b.send(b"more")
                return False

            loop.add_reader(a, lambda: None)
            ours.receivers[a.fileno()] = receive
            b.send(b"1")
            await asyncio.sleep(0.01)  # a timer
            soon = loop.create_future()
            loop.call_soon(soon.set_result, None)
            await soon
            told = asyncio.Event()
            thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(told.set))
            thread.start()
            await told.wait()
            thread.join()
            reader, writer = await asyncio.open_connection(sock=(ends := socket.socketpair())[0])
            await loop.sock_sendall(ends[1], b"by the loop")
            assert await reader.readexactly(11) == b"by the loop"
            writer.close()
            ends[1].close()
            before = len(calls)
            await asyncio.sleep(0)
            del ours.receivers[a.fileno()]
            assert len(calls) > before > 1
            loop.remove_reader(a)

    asyncio.run(asyncio.wait_for(test(), 20))


def test_the_socket_of_a_transport_is_found_where_it_has_one() -> None:
    async def test() -> None:
        with pair() as (a, _):
            _, writer = await asyncio.open_connection(sock=a)
            assert socket_of(writer.transport) is a
            assert socket_of(asyncio.Transport()) is None
            writer.close()

    asyncio.run(test())
