"""The routes of Ollama's HTTP API and where the balancer sends each: one row a route."""

import posixpath
import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote, unquote

TRANSCRIPTIONS = "/v1/audio/transcriptions"


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
    RESPONSES = "openai responses"
    """OpenAI's errors, and stream events of its own."""
    ANTHROPIC = "anthropic"


@dataclass(frozen=True)
class Route:
    """`path` may end in `/{}`: one more part, without slashes."""

    methods: tuple[str, ...]
    path: str
    kind: Kind
    dialect: Dialect = Dialect.OLLAMA
    uploads: bool = False
    """A POST's body is a file, which may be larger than the memory."""
    runs: bool = False
    """The agent runs the model for it, which takes one of its slots."""
    streams: bool = False
    """Its answer streams unless the request says otherwise."""
    accepts_zstd: bool = False
    """The server reads a body that is compressed with zstd, as Codex sends it; none of another encoding."""

    @property
    def is_form(self) -> bool:
        """Whether the body is a form, and no JSON."""
        return self.path == TRANSCRIPTIONS


GET, POST, DELETE = ("GET",), ("POST",), ("DELETE",)
HEAD_GET, HEAD_POST = ("HEAD", "GET"), ("HEAD", "POST")

ROUTES = (
    Route(HEAD_GET, "/", Kind.MERGED),
    Route(HEAD_GET, "/api/version", Kind.MERGED),
    Route(GET, "/api/status", Kind.ANY),
    Route(GET, "/api/experimental/model-recommendations", Kind.ANY),
    Route(POST, "/api/generate", Kind.MODEL, runs=True, streams=True),
    Route(POST, "/api/chat", Kind.MODEL, runs=True, streams=True),
    Route(POST, "/api/embed", Kind.MODEL, runs=True),
    Route(POST, "/api/embeddings", Kind.MODEL, runs=True),
    Route(POST, "/api/show", Kind.MODEL),
    Route(POST, "/v1/chat/completions", Kind.MODEL, Dialect.OPENAI, runs=True, accepts_zstd=True),
    Route(POST, "/v1/completions", Kind.MODEL, Dialect.OPENAI, runs=True, accepts_zstd=True),
    Route(POST, "/v1/embeddings", Kind.MODEL, Dialect.OPENAI, runs=True, accepts_zstd=True),
    Route(POST, "/v1/responses", Kind.MODEL, Dialect.RESPONSES, runs=True, accepts_zstd=True),
    Route(POST, "/v1/messages", Kind.MODEL, Dialect.ANTHROPIC, runs=True, accepts_zstd=True),
    Route(POST, TRANSCRIPTIONS, Kind.MODEL, Dialect.OPENAI, runs=True),
    Route(GET, "/v1/models/{}", Kind.MODEL, Dialect.OPENAI),
    Route(HEAD_GET, "/api/tags", Kind.MERGED),
    Route(GET, "/api/ps", Kind.MERGED),
    Route(GET, "/v1/models", Kind.MERGED, Dialect.OPENAI),
    Route(POST, "/api/pull", Kind.EVERY),
    Route(POST, "/api/create", Kind.EVERY),
    Route(POST, "/api/copy", Kind.EVERY),
    Route(DELETE, "/api/delete", Kind.EVERY),
    Route(HEAD_POST, "/api/blobs/{}", Kind.EVERY, uploads=True),
    Route(POST, "/api/push", Kind.NAMED),
    Route(POST, "/api/me", Kind.NAMED),
    Route(POST, "/api/signout", Kind.NAMED),
    Route(DELETE, "/api/user/keys/{}", Kind.NAMED),
    Route(POST, "/api/experimental/web_search", Kind.NAMED),
    Route(POST, "/api/experimental/web_fetch", Kind.NAMED),
)

_EXACT = {route.path: route for route in ROUTES if not route.path.endswith("{}")}
_PREFIXES = {route.path.removesuffix("{}"): route for route in ROUTES if route.path.endswith("{}")}

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class Redirect:
    """Where the server sends a path that is nearly a route's."""

    status: int
    location: str


def find_route(path: str) -> Route | None:
    """The route of a request's path without its query, escaped or not, whatever the method; None if Ollama has none."""
    return _exact(_unescaped(path))


def find_redirect(method: str, target: str) -> Redirect | None:
    """Where the server redirects a request that no route has exactly; None: nowhere. `target` is path and query.

    As its router does: doubled slashes and dots are taken out, whatever is there then (307), and one slash too many or
    too few at the end of a route's path is mended (301 for GET, 307 for others, only if the method is the route's).
    """
    path, mark, query = target.partition("?")
    path = _unescaped(path)
    if not path.startswith("/"):
        return None
    clean = _clean(path)
    if clean != path:
        return Redirect(307, quote(clean, safe="/:@!$&'()*+,;=~") + mark + query)
    if path == "/" or _exact(path) is not None:
        return None
    corrected = path[:-1] if path.endswith("/") else path + "/"
    route = _exact(corrected)
    if route is None or method not in route.methods:
        return None
    return Redirect(301 if method == "GET" else 307, quote(corrected, safe="/:@!$&'()*+,;=~") + mark + query)


def dialect_of(path: str) -> Dialect:
    """The protocol of whoever calls that path, known to Ollama or not."""
    path = _unescaped(path)
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    if path == "/v1/responses":
        return Dialect.RESPONSES
    return Dialect.OPENAI if path == "/v1" or path.startswith("/v1/") else Dialect.OLLAMA


def last_part(route: Route, path: str) -> str:
    """What stands in the place of `{}`, unescaped."""
    return _unescaped(path)[len(route.path) - 2 :]


def _unescaped(path: str) -> str:
    return path if "%" not in path or _BAD_ESCAPE.search(path) else unquote(path)


def _exact(path: str) -> Route | None:
    route = _EXACT.get(path)
    if route is None:
        prefix, slash, last = path.rpartition("/")
        return _PREFIXES.get(prefix + slash) if last not in ("", ".", "..") else None
    return route


def _clean(path: str) -> str:
    clean = posixpath.normpath(path)
    if clean.startswith("//"):  # POSIX lets two leading slashes be
        clean = clean[1:]
    return clean + "/" if path.endswith("/") and clean != "/" else clean
