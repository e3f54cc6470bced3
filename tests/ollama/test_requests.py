from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_balancer.ollama.requests import requested_model
from ollama_balancer.ollama.routes import ROUTES, Kind, find_route


def model_of(body: bytes | None, path: str = "/api/generate") -> str | None:
    route = find_route(path)
    assert route
    return requested_model(route, path, body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "tiny-a", "prompt": "the quick"}',
        b'{"MODEL": "tiny-a"}',
        b'{"model":"nope","model": "tiny-a"}',
        b'{"model":"nope","MODEL":"nope too","model": "tiny-a"}',
        b'{"model":"nope","Model": "tiny-a"}',
        b'{"model":"tiny-a","model":null}',
        b'{"model": "tiny-a"}garbage',
        b'{"model": "tiny-a"}{"model": "other"}',
        b' \r\n\t{"model": "tiny-a"}',
        b'{"messages": [{"model": "no"}], "options": {"model": "no"}, "model": "tiny-a"}',
        b'{"prompt": "\xff\xfe", "model": "tiny-a"}',
        b'{"model": "tiny\\u002da"}',
    ],
)
def test_the_model_is_read_as_leniently_as_the_server_reads_it(body: bytes) -> None:
    assert model_of(body) == "tiny-a"


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"{}",
        b'{"model": ',
        b'{"model": "tiny-a", ',
        b'\xef\xbb\xbf{"model": "tiny-a"}',  # the server refuses a byte order mark
        b'{"model": null}',
        b'{"model": ""}',
        b'{"model": 5}',
        b'{"model": ["tiny-a"]}',
        b'{"model": {"model": "tiny-a"}}',
        b'[{"model": "tiny-a"}]',
        b'["model", "tiny-a"]',
        b'"model"',
        b'{"name": "tiny-a"}',
        b'{"model": "tiny-a", "prompt": "unterminated',
    ],
)
def test_a_body_that_names_no_model_is_no_error(body: bytes | None) -> None:
    assert model_of(body) is None


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_body_nested_without_end_is_no_error(opening: bytes) -> None:
    assert model_of(b'{"model": "tiny-a", "x": ' + opening * 200_000) is None


@settings(derandomize=True, deadline=None)
@given(st.binary())
def test_no_body_is_an_error(body: bytes) -> None:
    assert model_of(body) is None or b"odel" in body.lower()


@settings(derandomize=True, deadline=None)
@given(st.text(min_size=1))
def test_the_model_comes_as_it_is_spelled(name: str) -> None:
    assert model_of(json.dumps({"stream": False, "model": name}).encode()) == name


def test_show_takes_the_older_key_name_where_model_is_missing() -> None:
    assert model_of(b'{"name": "tiny-a"}', "/api/show") == "tiny-a"
    assert model_of(b'{"name": "old", "model": "new"}', "/api/show") == "new"
    assert model_of(b'{"name": "old", "model": ""}', "/api/show") == "old"
    assert model_of(b'{"name": "tiny-a"}', "/api/chat") is None


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/models/tiny-a", "tiny-a"),
        ("/v1/models/me/tiny-a:7b", "me/tiny-a:7b"),
        ("/v1/models/me%2Ftiny-a%3A7b", "me/tiny-a:7b"),
    ],
)
def test_a_model_in_the_path_is_the_one_asked_for(path: str, model: str) -> None:
    assert model_of(b'{"model": "ignored"}', path) == model


@pytest.mark.parametrize("path", [route.path.replace("{}", "x") for route in ROUTES if route.kind is not Kind.MODEL])
def test_routes_that_need_no_model_ask_for_none(path: str) -> None:
    assert model_of(b'{"model": "tiny-a"}', path) is None
