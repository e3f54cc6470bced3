"""Delivers socket data to relays without asyncio's callbacks.

For each readable socket asyncio looks up its handler, queues a callback, runs it in a context and asks the protocol for
a buffer, which takes longer than relaying the chunk. A `RelaySelector` replaces the selector of the event loop, polls
the same epoll and calls the receivers of such sockets itself; all other events go to the loop as usual. The sockets
stay registered with the loop, so anything without a receiver, and any event but readability, takes asyncio's way. Loops
with another selector are left alone.
"""

import asyncio
import os
import select
import selectors
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..compat.python_names import selector_of, set_selector

type Receiver = Callable[[float], bool]
"""Called with the monotonic time when data can be read; must not raise. Returns whether the event loop must run
callbacks. It may remove any receiver, but must not close a socket that has one.
"""

MAX_EVENTS = 256
"""Events per poll. Further events come first in the next one."""

LONGEST_PASS = 0.005
"""Seconds after which receivers that need callbacks wait for the next iteration of the loop."""


class RelaySelector(selectors.BaseSelector):
    """A selector that calls receivers."""

    def __init__(self, inner: selectors.EpollSelector) -> None:
        self.inner = inner
        self.receivers: dict[int, Receiver] = {}
        """By file descriptor. A removed receiver is not called again."""
        self._next: int | None = None
        """The first receiver that was not called in the last iteration because it took too long."""
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
            events = self._epoll.poll(timeout, MAX_EVENTS)
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
        """The event loop uses its own selector again."""
        self._epoll.close()

    def close(self) -> None:
        self._epoll.close()
        self.inner.close()


def install(loop: asyncio.AbstractEventLoop) -> RelaySelector | None:
    """Install a `RelaySelector` in the event loop; None if that is not possible."""
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
    """Restore the selector of the event loop. Running relays go on through asyncio."""
    selector = selector_of(loop)
    if isinstance(selector, RelaySelector):
        set_selector(loop, selector.inner)
        selector.receivers.clear()
        selector.detach()
