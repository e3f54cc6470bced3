"""May a request come in: is there such a call, and can what it asks for be read?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..ollama.errors import model_not_found
from ..ollama.prompts import read_prompt
from ..ollama.requests import Asked
from ..ollama.routes import Route, find_redirect, find_route
from .bodies import RefusedBodyError, model_in_query
from .context import RequestContext
from .decisions import Answer, error, redirected
from .messages import ClientRequest
from .reading import Reading, read_body
from .translation import demand_of

MAX_MODEL_NAME = 512
"""No agent reports a longer name, so none has it."""


class Admitted(NamedTuple):
    """A request that is to be routed."""

    route: Route
    asked: Asked
    content: bytes | None
    """Its body as the server reads it."""


def admit(
    context: RequestContext,
    request: ClientRequest,
    reading: Reading | RefusedBodyError | None,
    *,
    name_of: Callable[[str], str],
    watched: bool,
) -> Admitted | Answer:
    """Read what the request asks for into its context, or say why it cannot come in.

    `reading` is what its body says, where that has been read already. `name_of` gives the canonical name of a model as
    a request names it; `watched`: somebody may look at the prompt.
    """
    path = request.path
    route = context.route = find_route(path)
    if route is None or request.method not in route.methods:
        return _not_there(context, request, route)
    read = reading or read_body(
        route, path, request.body, request.content_type, request.encoding, name_of, watched=watched
    )
    if isinstance(read, RefusedBodyError):
        return error(context.dialect, read.status, read.message)
    content, asked, demand, context.excerpt = read
    model = asked.model
    if route.is_form and "?" in request.target:
        model = model_in_query(request.target, model)
    if model is not None and len(model) > MAX_MODEL_NAME:
        return error(context.dialect, 404, model_not_found(model[:MAX_MODEL_NAME] + "…", route.path))
    context.model = model
    context.model_name = None if model is None else name_of(model)
    context.unloads = asked.unloads_after
    if route.runs and context.model_name is not None and not asked.unloads:
        context.slot_model = context.model_name
        context.streams = route.streams if asked.stream is None else asked.stream
        context.body_bytes = len(content or b"")
        if demand is None or demand.model != context.slot_model:
            prompt = read_prompt(route, context.slot_model, content or b"", asked.members)
            demand = demand_of(context.slot_model, route.path, prompt)
        context.demand = demand if context.streams else demand._replace(streams=False)
    return Admitted(route, asked, content)


def _not_there(context: RequestContext, request: ClientRequest, route: Route | None) -> Answer:
    """What a call gets that Ollama does not have."""
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
