"""Reads what a request asks for: at once, or in a thread where the body is so large that others would wait for it.

A body that the balancer cannot read would bypass the queue and the slots, so on routes that run a model it is refused,
unless the server could not read it either: then a host may report the error.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import parse_qsl

from ..core.demand import Demand
from ..ollama.decompression import DecompressionError, TooLargeError, decompress
from ..ollama.excerpts import last_turn
from ..ollama.json_scanning import is_json
from ..ollama.prompts import read_prompt
from ..ollama.requests import ParsedRequest, read_request
from ..ollama.routes import Route, find_route
from ..text import one_line
from .translation import demand_of

ZSTD = "zstd"
"""The only Content-Encoding that the server accepts in requests."""

MAX_DECOMPRESSED = 20 * 1024 * 1024
"""Bytes after decompression: the server's own limit (`maxDecompressedBodySize`)."""

MAX_FIELDS = 100
"""Parameters of a query string."""

_ESCAPES = {7: "a", 8: "b", 9: "t", 10: "n", 11: "v", 12: "f", 13: "r"}


class RefusedBodyError(Exception):
    """`status` and `message` of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def content_of(route: Route, body: bytes | None, encoding: str) -> bytes | None:
    """The decompressed body. `encoding` is the first Content-Encoding, as written. Raises RefusedBodyError."""
    if not route.accepts_zstd or encoding != ZSTD or body is None:
        return body
    try:
        if len(body) > MAX_DECOMPRESSED:
            raise TooLargeError
        return decompress(body, encoding, MAX_DECOMPRESSED)
    except TooLargeError:
        raise RefusedBodyError(413, f"the body decompresses to more than {MAX_DECOMPRESSED} bytes") from None
    except DecompressionError as e:
        raise RefusedBodyError(400, f"failed to decompress request body: {e}") from None


def check_readable(
    route: Route, parsed: ParsedRequest, content: bytes | None, content_type: str, *, compressed: bool
) -> None:
    """Raise RefusedBodyError if the request might run a model that the balancer cannot determine.

    `compressed`: it has a Content-Encoding. The messages are those of the server.
    """
    if parsed.readable or not route.runs or content is None:
        return
    if route.is_form:
        is_form = "multipart/form-data" in content_type.lower()
        why = "malformed MIME" if is_form else "request Content-Type isn't multipart/form-data"
        raise RefusedBodyError(400, f"failed to parse multipart form: {why}")
    begins = content.lstrip(b" \t\r\n")[:1]
    if begins == b"{" and is_json(content):
        raise RefusedBodyError(400, "the body has too many values or is nested too deeply")
    if compressed and begins:
        raise RefusedBodyError(400, f"invalid character {_quoted(begins[0])} looking for beginning of value")


def model_in_query(target: str, model: str | None) -> str | None:
    """The model of a multipart request. As in the server, the query takes precedence over the form."""
    try:
        fields = parse_qsl(target.partition("?")[2], keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        return model
    named = next((value for name, value in fields if name == "model"), model)
    return named or None


def _quoted(byte: int) -> str:
    """A character as Go's messages show it."""
    if byte in _ESCAPES:
        return f"'\\{_ESCAPES[byte]}'"
    character = chr(byte)
    if character in "'\\":
        return f"'\\{character}'"
    if character.isprintable():
        return f"'{character}'"
    return f"'\\x{byte:02x}'" if byte < 0x80 else f"'\\u{byte:04x}'"


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
