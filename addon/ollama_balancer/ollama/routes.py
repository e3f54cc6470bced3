"""The routes of Ollama's HTTP API and where the balancer sends each: one row a route."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Which agents a route concerns."""

    MODEL = "one agent that has the model"
    ANY = "any agent"
    MERGED = "answered by the balancer for the whole fleet"
    EVERY = "every agent, or the one that X-Balancer-Agent names"
    NAMED = "the one agent that X-Balancer-Agent names"


class Dialect(Enum):
    """Whose protocol the caller speaks; errors are worded in it."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True)
class Route:
    """`path` may end in `/{}`: one more part, which may itself contain slashes."""

    methods: tuple[str, ...]
    path: str
    kind: Kind
    dialect: Dialect = Dialect.OLLAMA


GET, POST, DELETE = ("GET",), ("POST",), ("DELETE",)
GET_HEAD, HEAD_POST = ("GET", "HEAD"), ("HEAD", "POST")

ROUTES = (
    Route(GET_HEAD, "/", Kind.ANY),
    Route(GET_HEAD, "/api/version", Kind.ANY),
    Route(GET, "/api/status", Kind.ANY),
    Route(GET, "/api/experimental/model-recommendations", Kind.ANY),
    Route(POST, "/api/generate", Kind.MODEL),
    Route(POST, "/api/chat", Kind.MODEL),
    Route(POST, "/api/embed", Kind.MODEL),
    Route(POST, "/api/embeddings", Kind.MODEL),
    Route(POST, "/api/show", Kind.MODEL),
    Route(POST, "/v1/chat/completions", Kind.MODEL, Dialect.OPENAI),
    Route(POST, "/v1/completions", Kind.MODEL, Dialect.OPENAI),
    Route(POST, "/v1/embeddings", Kind.MODEL, Dialect.OPENAI),
    Route(POST, "/v1/responses", Kind.MODEL, Dialect.OPENAI),
    Route(POST, "/v1/messages", Kind.MODEL, Dialect.ANTHROPIC),
    Route(POST, "/v1/audio/transcriptions", Kind.ANY, Dialect.OPENAI),
    Route(GET, "/v1/models/{}", Kind.MODEL, Dialect.OPENAI),
    Route(GET_HEAD, "/api/tags", Kind.MERGED),
    Route(GET, "/api/ps", Kind.MERGED),
    Route(GET, "/v1/models", Kind.MERGED, Dialect.OPENAI),
    Route(POST, "/api/pull", Kind.EVERY),
    Route(POST, "/api/create", Kind.EVERY),
    Route(POST, "/api/copy", Kind.EVERY),
    Route(DELETE, "/api/delete", Kind.EVERY),
    Route(HEAD_POST, "/api/blobs/{}", Kind.EVERY),
    Route(POST, "/api/push", Kind.NAMED),
    Route(POST, "/api/me", Kind.NAMED),
    Route(POST, "/api/signout", Kind.NAMED),
    Route(DELETE, "/api/user/keys/{}", Kind.NAMED),
    Route(POST, "/api/experimental/web_search", Kind.NAMED),
    Route(POST, "/api/experimental/web_fetch", Kind.NAMED),
)

_EXACT = {route.path: route for route in ROUTES if not route.path.endswith("{}")}
_PREFIXES = [(route.path.removesuffix("{}"), route) for route in ROUTES if route.path.endswith("{}")]


def find_route(path: str) -> Route | None:
    """The route of a path without its query, whatever the method; None if Ollama has none."""
    route = _EXACT.get(path)
    if route is None:
        for prefix, candidate in _PREFIXES:
            if len(path) > len(prefix) and path.startswith(prefix):
                return candidate
    return route


def dialect_of(path: str) -> Dialect:
    """The protocol of whoever calls that path, known to Ollama or not."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if path == "/v1" or path.startswith("/v1/") else Dialect.OLLAMA
