"""What goes into the audit file: changes by operators and refused credentials, never a secret."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from ..core.access import Right
from ..text import one_line, rfc3339
from .callers import Caller

MAX_A_MINUTE = 20
"""Entries a minute that somebody who is no operator can cause; of more, only their number is written."""

MINUTE = 60.0

MAX_TEXT = 300
"""Characters of a text from outside."""

TOKEN = "token"  # noqa: S105 - it says that the token was presented
UNKNOWN = "unknown"
JOIN_CODE = "join code"

REFUSED = "credential.refused"
CHANGED = "changed"

CONSOLE = "console"
"""Who changes options while the balancer runs: whoever has mitmproxy's console, its web page or its configuration."""


class AuditTrail:
    """`write` gets each entry. `clock` gives monotonic seconds, `wall` those since 1970."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self.write: Callable[[Mapping[str, object]], None] = lambda entry: None
        self._clock = clock
        self._wall = wall
        self._minute = float("-inf")
        """When the minute in which entries are counted began."""
        self._counts: Counter[str] = Counter()
        """Entries of the minute, refusals apart: wrong keys, which anybody can send, hide no change."""
        self._left_out = 0
        self.on_refused: Callable[[Caller, str], None] = lambda caller, reason: None
        """Called with each refused credential, however many there are."""

    def changed(self, caller: Caller, what: str, object: str, **details: object) -> None:
        """A caller of the API has changed something: `what`, such as agent.drain, of which `object`."""
        key = caller.key
        operates = caller.authorized or (key is not None and key.has(Right.OPERATE))
        if operates or self._may_write(CHANGED):
            self._write(who_of(caller), caller.address, what, object, details)

    def joined(self, caller: Caller, agent: str, key: str) -> None:
        """A host has used up a join code, and has that key now."""
        self._write(JOIN_CODE, caller.address, "host.join", agent, {"key": key})

    def refused(self, caller: Caller, path: str, status: int, reason: str) -> None:
        """A call was refused: its credential, if it has one, is wrong, no longer valid, or lacks the right for it."""
        if not caller.presented or status not in (401, 403):
            return
        self.on_refused(caller, one_line(reason, MAX_TEXT))
        if self._may_write(REFUSED):
            details = {"status": status, "reason": one_line(reason, MAX_TEXT)}
            self._write(who_of(caller), caller.address, REFUSED, path, details)

    def option(self, name: str, value: str | None) -> None:
        """An option was changed while the balancer runs; `value` is None if it is nobody's business."""
        self._write(CONSOLE, CONSOLE, "option.set", name, {} if value is None else {"value": one_line(value, MAX_TEXT)})

    def tick(self) -> None:
        """Periodic work: write how many entries were left out, once the minute is over."""
        if self._left_out and self._clock() - self._minute >= MINUTE:
            left_out, self._left_out = self._left_out, 0
            self._write(UNKNOWN, UNKNOWN, "entries.left_out", "", {"count": left_out})

    def _may_write(self, kind: str) -> bool:
        now = self._clock()
        if now - self._minute >= MINUTE:
            self.tick()
            self._minute = now
            self._counts.clear()
        if self._counts[kind] >= MAX_A_MINUTE:
            self._left_out += 1
            return False
        self._counts[kind] += 1
        return True

    def _write(self, who: str, origin: str, what: str, object: str, details: Mapping[str, object]) -> None:
        self.write(entry_of(self._wall(), who, origin, what, one_line(object, MAX_TEXT), details))


def entry_of(
    now: float, who: str, origin: str, what: str, object: str, details: Mapping[str, object]
) -> dict[str, object]:
    """An entry; `now` is in seconds since 1970, `origin` is the address or the program that it comes from."""
    return {"time": rfc3339(now), "who": who, "from": origin, "what": what, "object": object, **details}


def who_of(caller: Caller) -> str:
    """A name of whoever calls, without anything secret."""
    if caller.authorized:
        return TOKEN
    return UNKNOWN if caller.key is None else f"key {caller.key.name}"
