"""Reads what a request asks for: at once, or in a thread where the body is so large that others would wait for it."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ..core.demand import Demand
from ..ollama.excerpts import last_turn
from ..ollama.prompts import read_prompt
from ..ollama.requests import ParsedRequest, read_request
from ..ollama.routes import Route, find_route
from ..text import one_line
from .bodies import ZSTD, RefusedBodyError, check_readable, content_of
from .translation import demand_of

LARGE = 64 * 1024
"""Bytes of a body that is read in a thread. A smaller one holds the loop up for 31 ms at the worst
(`python -m benches.stalls`, "body of arrays, 60 kB"), a usual one for far less than the way to the thread and back."""

THREADS = 2

LONGEST_EXCERPT = 60
"""Characters."""


class Reading(NamedTuple):
    """What a body asks for."""

    content: bytes | None
    """As the server reads it: unpacked."""
    parsed: ParsedRequest
    demand: Demand | None
    """What it demands of an agent, where a model is run for it."""
    excerpt: str
    """The beginning of what the user said last, for people; empty where nobody may look."""


NameOf = Callable[[str], str]
"""The canonical name of a model as a request names it."""


def read_body(
    route: Route,
    path: str,
    body: bytes | None,
    content_type: str,
    encoding: str,
    name_of: NameOf,
    *,
    observed: bool = True,
) -> Reading | RefusedBodyError:
    """`path` is without its query, `encoding` the first Content-Encoding, `observed` whether somebody may look at it.

    Whatever the body is, nothing is raised.
    """
    try:
        content = content_of(route, body, encoding)
        parsed = read_request(route, path, content, content_type)
        check_readable(route, parsed, content, content_type, compressed=bool(encoding))
    except RefusedBodyError as e:
        return e
    excerpt = (
        one_line(last_turn(content or b"", parsed.members), LONGEST_EXCERPT) if observed and parsed.members else ""
    )
    if not (route.runs and parsed.model) or parsed.unloads:
        return Reading(content, parsed, None, excerpt)
    model = name_of(parsed.model)
    demand = demand_of(model, route.path, read_prompt(route, model, content or b"", parsed.members))
    return Reading(content, parsed, demand, excerpt)


async def read_large(
    target: str, body: bytes | None, content_type: str, encoding: str, name_of: NameOf, *, observed: bool = True
) -> Reading | RefusedBodyError | None:
    """The same for a large body, and one that may unpack into one, while others go on; None for any other. `target` is
    its path and query.
    """
    if body is None or (len(body) <= LARGE and encoding != ZSTD):
        return None
    path = target.partition("?")[0]
    route = find_route(path)
    if route is None or (len(body) <= LARGE and not route.accepts_zstd):
        return None
    loop = asyncio.get_running_loop()
    read = functools.partial(read_body, observed=observed)
    return await loop.run_in_executor(_threads(), read, route, path, body, content_type, encoding, name_of)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Not the loop's own, in which names are looked up."""
    return ThreadPoolExecutor(THREADS, "body reader")
