"""Background tasks."""

import asyncio
from collections.abc import Coroutine
from typing import Any

_running: set[asyncio.Task[Any]] = set()
"""Keeps references, as the event loop keeps only weak ones."""


def run_in_background[T](coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Run the coroutine as a task and keep a reference to it."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task
