"""Limits of keys: requests and tokens per minute, tokens per day, requests at once.

Tokens are reserved by an estimate when a request begins and settled by the real count when it ends. The cost of a check
does not depend on the number of keys.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from .access import Key, Limits

MINUTE = 60.0
DAY = 86_400.0


class Bucket:
    """A token bucket: `capacity` at once, refilled within a minute. It can go below zero when more was used than was
    reserved.
    """

    __slots__ = ("_at", "_left", "capacity")

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._left = float(capacity)
        self._at = now

    def left(self, now: float) -> float:
        self._left = min(float(self.capacity), self._left + (now - self._at) * self.capacity / MINUTE)
        self._at = now
        return self._left

    def wait(self, amount: float, now: float) -> float:
        """Seconds until that much is there; more than the capacity is never there, so that counts as all of it."""
        missing = min(amount, float(self.capacity)) - self.left(now)
        return max(0.0, missing * MINUTE / self.capacity) if self.capacity else math.inf

    def take(self, amount: float, now: float) -> None:
        self._left = min(float(self.capacity), self.left(now) - amount)

    def resize(self, capacity: int, now: float) -> None:
        """What was used stays used."""
        used = self.capacity - self.left(now)
        self.capacity, self._left = capacity, capacity - used


class Exceeded(NamedTuple):
    """A limit is reached. `limit` names it, as for the commands; `seconds` until a try may succeed."""

    limit: str
    allowed: int
    seconds: float


@dataclass(slots=True)
class Usage:
    """What a key uses now. The day is one of UTC, counted from 1970."""

    limits: Limits | None = None
    """Those that the buckets are for."""
    running: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None
    day: int = 0
    tokens_today: int = 0


@dataclass(slots=True)
class Use:
    """One request's share of its key's limits; it ends once."""

    key: str
    tokens: int
    """Reserved."""
    day: int
    ended: bool = False


class Remaining(NamedTuple):
    """What is left of a limit, and the seconds until all of it is there again; for the headers of answers."""

    kind: str
    """`requests` or `tokens`."""
    limit: int
    remaining: int
    reset: float


@dataclass
class RateLimiter:
    """`clock` gives monotonic seconds, `wall` seconds since 1970; `used_today` returns the tokens that a key has used
    since midnight UTC, when it is first seen.
    """

    clock: Callable[[], float]
    wall: Callable[[], float]
    used_today: Callable[[str], int] = lambda name: 0
    _usage: dict[str, Usage] = field(default_factory=dict)

    def begin(self, key: Key, tokens: int) -> Use | Exceeded:
        """Take a request's share: the request, and `tokens` that it is expected to use."""
        now, limits = self.clock(), key.limits
        usage = self._usage_of(key, now)
        exceeded = self._exceeded(limits, usage, tokens, now)
        if exceeded is not None:
            return exceeded
        usage.running += 1
        usage.tokens_today += tokens
        if usage.requests is not None:
            usage.requests.take(1, now)
        if usage.tokens is not None:
            usage.tokens.take(tokens, now)
        return Use(key.name, tokens, usage.day)

    def end(self, use: Use, tokens: int) -> None:
        """The request has ended and has used so many tokens."""
        if use.ended:
            return
        use.ended = True
        usage = self._usage.get(use.key)
        if usage is None:
            return
        usage.running -= 1
        more = tokens - use.tokens
        if usage.day == use.day:
            usage.tokens_today += more
        if usage.tokens is not None:
            usage.tokens.take(more, self.clock())

    def remaining(self, key: Key) -> list[Remaining]:
        """What is left of the limits per minute, and of the day's tokens where that is less."""
        now, limits = self.clock(), key.limits
        # The key may be older than what is in force: only `begin` applies its limits.
        usage = self._usage.get(key.name) or self._usage_of(key, now)
        found = []
        if usage.requests is not None:
            found.append(_remaining("requests", usage.requests, now))
        tokens = None if usage.tokens is None else _remaining("tokens", usage.tokens, now)
        if limits.tokens_per_day is not None:
            left = max(0, limits.tokens_per_day - usage.tokens_today)
            if tokens is None or left < tokens.remaining:
                tokens = Remaining("tokens", limits.tokens_per_day, left, self._until_midnight())
        return found if tokens is None else [*found, tokens]

    def running(self, name: str) -> int:
        """Requests of the key that have not ended."""
        usage = self._usage.get(name)
        return 0 if usage is None else usage.running

    def running_now(self) -> dict[str, int]:
        """Requests that have not ended, by key."""
        return {name: usage.running for name, usage in self._usage.items() if usage.running}

    def keep(self, names: set[str]) -> None:
        """Forget the keys that have none of these names, and no request running."""
        for name in [name for name, usage in self._usage.items() if name not in names and not usage.running]:
            del self._usage[name]

    def _usage_of(self, key: Key, now: float) -> Usage:
        limits, usage = key.limits, self._usage.get(key.name)
        today = int(self.wall() // DAY)
        if usage is None:
            usage = self._usage[key.name] = Usage(day=today, tokens_today=self.used_today(key.name))
        if today > usage.day:
            usage.day, usage.tokens_today = today, 0
        if usage.limits is not limits:
            usage.limits = limits
            usage.requests = _resized(usage.requests, limits.requests_per_minute, now)
            usage.tokens = _resized(usage.tokens, limits.tokens_per_minute, now)
        return usage

    def _exceeded(self, limits: Limits, usage: Usage, tokens: int, now: float) -> Exceeded | None:
        if limits.parallel is not None and usage.running >= limits.parallel:
            return Exceeded("parallel", limits.parallel, 1.0)
        if usage.requests is not None and (seconds := usage.requests.wait(1, now)) > 0:
            return Exceeded("rpm", usage.requests.capacity, seconds)
        if usage.tokens is not None and (seconds := usage.tokens.wait(tokens, now)) > 0:
            return Exceeded("tpm", usage.tokens.capacity, seconds)
        # A day's last request may use more than is left: its size is only a guess.
        if limits.tokens_per_day is not None and usage.tokens_today >= limits.tokens_per_day:
            return Exceeded("tokens-per-day", limits.tokens_per_day, self._until_midnight())
        return None

    def _until_midnight(self) -> float:
        return DAY - self.wall() % DAY


def _resized(bucket: Bucket | None, capacity: int | None, now: float) -> Bucket | None:
    if capacity is None:
        return None
    if bucket is None:
        return Bucket(capacity, now)
    if bucket.capacity != capacity:
        bucket.resize(capacity, now)
    return bucket


def _remaining(kind: str, bucket: Bucket, now: float) -> Remaining:
    left = bucket.left(now)
    reset = (bucket.capacity - left) * MINUTE / bucket.capacity if bucket.capacity else math.inf
    return Remaining(kind, bucket.capacity, max(0, math.floor(left)), reset)
