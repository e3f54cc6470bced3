"""Rate-limits wrong tokens by address. The right token is always accepted."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

MAX_WRONG = 10
"""Wrong tokens that an address may present in WINDOW seconds."""

WINDOW = 60.0

MAX_ADDRESSES = 4096
"""Addresses remembered; the oldest is dropped."""


class WrongTokens:
    """Counts wrong tokens by address. Seconds are those of `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Start of the window and count, oldest first."""

    def __len__(self) -> int:
        return len(self._counts)

    def record(self, address: str) -> int | None:
        """Record a wrong token. None: answer that it is wrong; otherwise seconds until the next try."""
        now = self._clock()
        for other, (since, _) in list(islice(self._counts.items(), 2)):
            if since + WINDOW <= now:
                del self._counts[other]
        if address in self._counts and self._counts[address][0] + WINDOW <= now:
            del self._counts[address]
        since, count = self._counts.get(address, (now, 0))
        if count >= MAX_WRONG:
            return max(1, round(since + WINDOW - now))
        if address not in self._counts and len(self._counts) >= MAX_ADDRESSES:
            self._counts.popitem(last=False)
        self._counts[address] = since, count + 1
        return None
