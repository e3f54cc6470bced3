"""Admission: is there such a route, and can the request be read?"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..ollama.errors import model_not_found
from ..ollama.prompts import read_prompt
from ..ollama.requests import ParsedRequest
from ..ollama.routes import Route, find_redirect, find_route
from .body_reader import Reading, RefusedBodyError, model_in_query, read_body
from .context import RequestContext
from .decisions import Answer, error, redirected
from .messages import ClientRequest
from .translation import demand_of

MAX_MODEL_NAME = 512
"""Characters. No agent reports a longer name."""


class Admitted(NamedTuple):
    """A request that is to be routed."""

    route: Route
    parsed: ParsedRequest
    content: bytes | None
    """The decompressed body."""


def admit(
    context: RequestContext,
    request: ClientRequest,
    reading: Reading | RefusedBodyError | None,
    *,
    name_of: Callable[[str], str],
    observed: bool,
) -> Admitted | Answer:
    """Parse the request into its context, or return the error to answer with.

    `reading` is the parsed body if it was read in a thread already. `name_of` returns the canonical name of a model;
    `observed` tells whether anybody may look at the prompt.
    """
    path = request.path
    route = context.route = find_route(path)
    if route is None or request.method not in route.methods:
        return _not_there(context, request, route)
    read = reading or read_body(
        route, path, request.body, request.content_type, request.encoding, name_of, observed=observed
    )
    if isinstance(read, RefusedBodyError):
        return error(context.dialect, read.status, read.message)
    content, parsed, demand, context.excerpt = read
    model = parsed.model
    if route.is_form and "?" in request.target:
        model = model_in_query(request.target, model)
    if model is not None and len(model) > MAX_MODEL_NAME:
        return error(context.dialect, 404, model_not_found(model[:MAX_MODEL_NAME] + "…", route.path))
    context.model = model
    context.model_name = None if model is None else name_of(model)
    context.unloads = parsed.unloads_after
    if route.runs and context.model_name is not None and not parsed.unloads:
        context.slot_model = context.model_name
        context.streams = route.streams if parsed.stream is None else parsed.stream
        context.body_bytes = len(content or b"")
        if demand is None or demand.model != context.slot_model:
            prompt = read_prompt(route, context.slot_model, content or b"", parsed.members)
            demand = demand_of(context.slot_model, route.path, prompt)
        context.demand = demand if context.streams else demand._replace(streams=False)
    return Admitted(route, parsed, content)


def _not_there(context: RequestContext, request: ClientRequest, route: Route | None) -> Answer:
    """The answer to a route or method that Ollama does not have."""
    method, path = request.method, request.path
    if route is None:
        redirect = find_redirect(method, request.target)
        if redirect is not None:
            return redirected(method, redirect.status, redirect.location)
        if method == "OPTIONS" and path == "*":
            return Answer(200, b"", content_type="")
        return error(
            context.dialect, 404, f"{path[:200]}: Ollama has no such path, and the balancer forwards nothing else"
        )
    if request.websocket:
        # Codex tries one first and sends its request at once when it is told so.
        answer = error(context.dialect, 426, f"there is no WebSocket at {path[:200]}: send a POST")
        return replace(answer, headers={"Upgrade": "HTTP/1.1", "Connection": "Upgrade"})
    answer = error(context.dialect, 405, f"{method[:20]} is not allowed for {path[:200]}")
    return replace(answer, headers={"Allow": ", ".join(route.methods)})
