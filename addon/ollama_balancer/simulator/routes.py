"""The host's paths: which exist, with which methods, and where those that nearly do lead to."""

import posixpath
from urllib.parse import quote

from . import answers
from .answers import Answer
from .jobs import JOBS
from .requests import RefusedError

V1_MODEL = "/v1/models/"
BLOB = "/api/blobs/"
TRANSCRIPTION = "failed to parse multipart form: request Content-Type isn't multipart/form-data"
WEB = "ollama cloud is disabled: web {} is unavailable"

CONSTANT: dict[tuple[str, str], Answer] = {
    ("GET", "/"): Answer(200, "text/plain; charset=utf-8", b"Ollama is running"),
    ("GET", "/api/status"): answers.api_answer({"cloud": {"disabled": True, "source": "env"}}),
    ("POST", "/api/me"): answers.api_error(503, "account unavailable"),
    ("POST", "/api/signout"): answers.api_error(500, "there was an error signing out"),
    ("POST", "/api/experimental/web_search"): answers.api_error(403, WEB.format("search")),
    ("POST", "/api/experimental/web_fetch"): answers.api_error(403, WEB.format("fetch")),
    ("POST", "/v1/audio/transcriptions"): answers.v1_error(400, TRANSCRIPTION, unread=True),
}
"""Answers that are always the same, as those of a host without an account or a model that hears."""
MANAGEMENT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("/api/pull", "/api/push", "/api/create", "/api/copy"), ("POST",)),
    "/api/delete": ("DELETE",),
    BLOB: ("HEAD", "POST"),
}
ROUTES: dict[str, tuple[str, ...]] = {
    **{path: (method,) for method, path in CONSTANT},
    **dict.fromkeys(("/", "/api/version", "/api/tags"), ("HEAD", "GET")),
    **dict.fromkeys(("/api/ps", "/v1/models", V1_MODEL, "/api/experimental/model-recommendations"), ("GET",)),
    **dict.fromkeys(("/api/show", *JOBS), ("POST",)),
    **MANAGEMENT,
}
"""The methods of each path, in the order of the Allow header. One that ends in a slash is followed by one name."""


def find(path: str) -> tuple[str, str] | None:
    """The route of a path (without query and percent-encoding) and the name that follows it, if any."""
    if path in ROUTES and path not in (V1_MODEL, BLOB):
        return path, ""
    for route in (V1_MODEL, BLOB):
        name = path.removeprefix(route)
        # As in the real server a name ends at a slash, even at one that came percent-encoded.
        if name and name != path and "/" not in name:
            return route, name
    return None


def resolve(method: str, path: str, query: str = "") -> tuple[str, str]:
    """The route of a request and the name that follows it. Raises RefusedError where there is none."""
    clean = posixpath.normpath(f"/{path.lstrip('/')}") + ("/" if path.endswith("/") and path.strip("/") else "")
    if clean != path:
        raise RefusedError(_redirect(307, method, clean, query))
    found = find(path)
    if found is None:
        bare = find(path.rstrip("/"))
        if bare is not None and method in ROUTES[bare[0]]:
            raise RefusedError(_redirect(301 if method == "GET" else 307, method, path.rstrip("/"), query))
        raise RefusedError(answers.not_found())
    if method not in ROUTES[found[0]]:
        raise RefusedError(answers.method_not_allowed(ROUTES[found[0]]))
    return found


def _redirect(status: int, method: str, path: str, query: str) -> Answer:
    return answers.redirect(status, method, quote(path) + (f"?{query}" if query else ""))
