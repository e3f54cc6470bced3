"""Tasks that nobody awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

_running: set[asyncio.Task[Any]] = set()
"""The event loop itself keeps no task alive."""


def run_in_background[T](coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Run it as a task of its own, which is kept until it is done."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task
