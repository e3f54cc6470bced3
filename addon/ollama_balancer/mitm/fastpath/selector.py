"""A shorter way from the event loop to what has come for a relay.

For each socket with something to read, asyncio looks up whose it is, lists it, queues a callback, runs that in a
context and asks the protocol for a buffer. For a chunk that goes out as it came this takes longer than all that the
relay does with it. A `RelaySelector`, in the place of the loop's own selector, asks the same epoll and calls the
receivers of such sockets itself; all else it hands to the loop as the loop's selector does. The sockets stay registered
with the loop: what has no receiver, and what is told of a socket other than that there is something to read, takes
asyncio's way. So does everything where the loop has another selector than the one that is known here.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..compat.python_names import selector_of, set_selector

type Receiver = Callable[[float], bool]
"""Called with the monotonic time when there is something to read; must not raise. Whether the loop has to take a turn,
because a callback or a timer may have been set. It may take away any receiver, and close no socket of one."""

MOST_EVENTS = 256
"""Asked for at once. What is left over comes first the next time."""

LONGEST_PASS = 0.005
"""Seconds after which receivers that need turns are left for after the loop's next one."""


class RelaySelector(selectors.BaseSelector):
    """Does what a loop's own selector does, and has receivers."""

    def __init__(self, inner: selectors.EpollSelector) -> None:
        self.inner = inner
        self.receivers: dict[int, Receiver] = {}
        """By file descriptor. One that leaves its place is not called again."""
        self._next: int | None = None
        """The first that was not called in the last turn, as others had taken so long."""
        # By a descriptor of its own, since each side closes one.
        self._epoll = select.epoll.fromfd(os.dup(inner.fileno()))

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        receivers = self.receivers
        if not receivers:
            return self.inner.select(timeout)
        may_read, may_write = select.EPOLLIN, select.EPOLLOUT
        deadline = None
        if timeout is not None:
            timeout = max(timeout, 0.0)
            deadline = time.monotonic() + timeout
        while True:
            events = self._epoll.poll(timeout, MOST_EVENTS)
            if self._next is not None:
                # What is always ready stays in its place of the list.
                at = next((at for at, (descriptor, _) in enumerate(events) if descriptor == self._next), 0)
                events, self._next = events[at:] + events[:at], None
            now = time.monotonic()
            turn = overdue = False
            others: list[tuple[selectors.SelectorKey, int]] = []
            for descriptor, event in events:
                receive = receivers.get(descriptor) if event == may_read else None
                if receive is not None:
                    if overdue:
                        self._next = descriptor if self._next is None else self._next
                    elif receive(now):
                        turn = True
                        overdue = time.monotonic() - now > LONGEST_PASS
                    continue
                key = self.inner.get_map().get(descriptor)
                if key is not None:
                    # An error or the end of a connection is met by whoever waits for it.
                    mask = selectors.EVENT_READ if event & ~may_write else 0
                    mask |= selectors.EVENT_WRITE if event & ~may_read else 0
                    others.append((key, mask & key.events))
            if others or turn or not events:
                return others
            if deadline is not None:
                timeout = deadline - time.monotonic()
                if timeout <= 0:
                    return others

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self.inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self.inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self.inner.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self.inner.get_map()

    def detach(self) -> None:
        """The loop has its own selector again."""
        self._epoll.close()

    def close(self) -> None:
        self._epoll.close()
        self.inner.close()


def install(loop: asyncio.AbstractEventLoop) -> RelaySelector | None:
    """The loop's `RelaySelector`, which it has from now on; None if it cannot have one."""
    selector = selector_of(loop)
    if isinstance(selector, RelaySelector):
        return selector
    if not hasattr(selectors, "EpollSelector") or type(selector) is not selectors.EpollSelector:
        return None
    try:
        ours = RelaySelector(selector)
    except OSError:
        return None  # no file descriptor is left
    set_selector(loop, ours)
    return ours


def remove(loop: asyncio.AbstractEventLoop) -> None:
    """Give the loop its own selector back. Relays that run go on asyncio's way."""
    selector = selector_of(loop)
    if isinstance(selector, RelaySelector):
        set_selector(loop, selector.inner)
        selector.receivers.clear()
        selector.detach()
