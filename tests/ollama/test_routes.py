from __future__ import annotations

import pytest

from ollama_balancer.ollama.routes import (
    ROUTES,
    Dialect,
    Kind,
    Redirect,
    Route,
    dialect_of,
    find_redirect,
    find_route,
    last_part,
)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_route_is_found_by_its_path(route: Route) -> None:
    assert find_route(route.path.replace("{}", "x")) is route


@pytest.mark.parametrize("route", [r for r in ROUTES if r.path.endswith("{}")], ids=lambda route: route.path)
def test_what_follows_a_prefix_is_one_part_that_must_be_there(route: Route) -> None:
    prefix = route.path.removesuffix("{}")
    assert find_route(prefix + "a:b") is route
    assert last_part(route, prefix + "a%3Ab") == "a:b"
    for rest in ("", "a/b", "a%2Fb", "a/", ".", ".."):
        assert find_route(prefix + rest) is None
    assert find_route(prefix.rstrip("/") + "x") is None


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_an_escaped_path_is_the_same_path(route: Route) -> None:
    path = route.path.replace("{}", "x")
    assert find_route(path[0] + "".join(f"%{ord(c):02x}" for c in path[1:])) is route


def test_a_path_with_a_broken_escape_is_nobodys() -> None:
    assert find_route("/api/tags%") is None
    assert find_redirect("GET", "/api/tags%2") is None


@pytest.mark.parametrize(
    ("method", "target", "redirect"),
    [
        ("GET", "/api/tags/", Redirect(301, "/api/tags")),
        ("HEAD", "/api/tags/?x=1", Redirect(307, "/api/tags?x=1")),
        ("POST", "/api/generate/", Redirect(307, "/api/generate")),
        ("GET", "//api/tags", Redirect(307, "/api/tags")),
        ("GET", "/api//tags/?x=//", Redirect(307, "/api/tags/?x=//")),
        ("POST", "/api/./show", Redirect(307, "/api/show")),
        ("GET", "/api/x/../tags", Redirect(307, "/api/tags")),
        ("GET", "//evil.test/../..", Redirect(307, "/")),
        ("GET", "/\\evil.test//", Redirect(307, "/%5Cevil.test/")),
        ("GET", "/v1/models/a%20b/", Redirect(301, "/v1/models/a%20b")),
        ("GET", "/%0d%0aX:1//", Redirect(307, "/%0D%0AX:1/")),
        ("GET", "/api/generate/", None),
        ("GET", "/nope/", None),
        ("GET", "/api/tags", None),
        ("GET", "/", None),
        ("OPTIONS", "*", None),
        ("GET", "", None),
    ],
)
def test_redirects_are_those_of_the_server(method: str, target: str, redirect: Redirect | None) -> None:
    assert find_redirect(method, target) == redirect


@pytest.mark.parametrize(
    "path",
    ["", "/nope", "/API/Tags", "/api", "/v1", "/api/chat/completions", "/v1/messages/count_tokens", "/api/pullx", "*"],
)
def test_paths_that_ollama_does_not_have_are_not_found(path: str) -> None:
    assert find_route(path) is None


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_the_path_alone_tells_the_dialect_of_every_route(route: Route) -> None:
    assert dialect_of(route.path.replace("{}", "x")) is route.dialect


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/nope", Dialect.OPENAI),
        ("/v1", Dialect.OPENAI),
        ("/v1x", Dialect.OLLAMA),
        ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
        ("/v1/messagesx", Dialect.OPENAI),
        ("/v1/responses/x", Dialect.OPENAI),
        ("/v1%2Fmessages", Dialect.ANTHROPIC),
        ("/nope", Dialect.OLLAMA),
    ],
)
def test_unknown_paths_have_the_dialect_of_their_neighbours(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


def test_inference_goes_to_agents_with_the_model_and_lists_are_merged() -> None:
    kinds = {route.path: route.kind for route in ROUTES}
    assert {path for path, kind in kinds.items() if kind is Kind.MERGED} == {
        "/",
        "/api/version",
        "/api/tags",
        "/api/ps",
        "/v1/models",
    }
    for path in ("/api/generate", "/api/chat", "/api/embed", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
        assert kinds[path] is Kind.MODEL
