"""The requests that a simulated host has had."""

from collections import deque
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["succeeded", "failed", "cancelled", "running"]

MAX_REQUESTS = 10_000
MAX_BYTES = 256_000_000
"""Of their bodies together."""


@dataclass(eq=False)
class ReceivedRequest:
    """A request as it arrived, without the body of a blob. `model` is in the caller's spelling.

    `outcome` changes when it ends.
    """

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    model: str | None = None
    outcome: Outcome = "running"
    inference: bool = False


class RequestLog:
    """The last requests, within `MAX_REQUESTS` and `MAX_BYTES`."""

    def __init__(self) -> None:
        self.requests: deque[ReceivedRequest] = deque()
        self._bytes = 0

    def add(self, request: ReceivedRequest) -> None:
        self.requests.append(request)
        self._bytes += len(request.body)
        while len(self.requests) > MAX_REQUESTS or (self._bytes > MAX_BYTES and len(self.requests) > 1):
            self._bytes -= len(self.requests.popleft().body)
