"""For `mitmdump -s`: an agent's curves are full from the start, as after a quarter of an hour."""

from __future__ import annotations

import random
from collections import deque

from ollama_balancer.core import recent

Curve = recent.Curve


def filled(in_flight: deque[int], cpu: deque[int | None]) -> Curve:
    for _ in range(recent.POINTS - 1):
        in_flight.append(random.randrange(5))
        cpu.append(random.randrange(100))
    return Curve(in_flight, cpu)


recent.Curve = filled  # type: ignore[misc, assignment]
