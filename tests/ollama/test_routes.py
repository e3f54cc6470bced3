from __future__ import annotations

import pytest

from ollama_balancer.ollama.routes import ROUTES, Dialect, Kind, Route, dialect_of, find_route


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_route_is_found_by_its_path(route: Route) -> None:
    assert find_route(route.path.replace("{}", "x")) is route


@pytest.mark.parametrize("route", [r for r in ROUTES if r.path.endswith("{}")], ids=lambda route: route.path)
def test_what_follows_a_prefix_may_hold_slashes_but_must_be_there(route: Route) -> None:
    prefix = route.path.removesuffix("{}")
    assert find_route(prefix + "a/b:c") is route
    assert find_route(prefix) is None
    assert find_route(prefix.rstrip("/") + "x") is None


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
        ("/nope", Dialect.OLLAMA),
    ],
)
def test_unknown_paths_have_the_dialect_of_their_neighbours(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


def test_inference_goes_to_agents_with_the_model_and_lists_are_merged() -> None:
    kinds = {route.path: route.kind for route in ROUTES}
    assert {path for path, kind in kinds.items() if kind is Kind.MERGED} == {"/api/tags", "/api/ps", "/v1/models"}
    for path in ("/api/generate", "/api/chat", "/api/embed", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
        assert kinds[path] is Kind.MODEL
