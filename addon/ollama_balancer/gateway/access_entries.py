"""What the access log says about a request: neither prompts nor secrets, nor the query of its target."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core.stats import RequestSummary
from ..text import one_line
from .access import prompt_and_output_tokens
from .context import RequestContext

MAX_PATH = 500
MAX_MODEL = 200


def entry_of(
    context: RequestContext, summary: RequestSummary, wall: Callable[[], float] = time.time
) -> dict[str, object]:
    """The entry of a finished request. `time` is when it arrived, in seconds since 1970 like `wall`."""
    total = context.total if context.total is not None else context.clock() - context.started
    agents, watcher, key = context.agents, context.watcher, context.caller.key
    prompt_tokens, output_tokens = prompt_and_output_tokens(context)
    return {
        "time": wall() - total,
        "request_id": context.request_id,
        "key": None if key is None else key.name,
        "client": context.caller.address,
        "method": one_line(context.method, 20),
        "path": one_line(context.path, MAX_PATH),
        "model": one_line(context.model, MAX_MODEL) if context.model else None,
        "served_model": context.model_name if agents else None,
        "agent": ", ".join([agent.name for agent in agents]) or None,
        "attempts": context.attempts,
        "queue_seconds": round(context.waited, 6),
        "ttft_seconds": _rounded(context.seconds_to_first_byte),
        "total_seconds": _rounded(total),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "status": summary.status,
        "outcome": summary.outcome,
        "bytes_in": context.body_bytes,
        "bytes_out": context.answer_bytes if watcher is None else watcher.captured.bytes_seen,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
