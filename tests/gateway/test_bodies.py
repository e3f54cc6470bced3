from __future__ import annotations

import pytest

from ollama_balancer.gateway.body_reader import (
    MAX_DECOMPRESSED,
    RefusedBodyError,
    check_readable,
    content_of,
    model_in_query,
)
from ollama_balancer.ollama.requests import read_request
from ollama_balancer.ollama.routes import ROUTES, Route, find_route
from tests.packing import ENCODINGS, header_of, packed

CHAT = b'{"model": "m", "messages": []}'
DECOMPRESSED_ROUTES = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"]


def route_of(path: str) -> Route:
    route = find_route(path)
    assert route is not None
    return route


def checked(path: str, body: bytes, encoding: str = "", content_type: str = "application/json") -> bytes | None:
    route = route_of(path)
    content = content_of(route, body, encoding)
    asked = read_request(route, path, content, content_type)
    check_readable(route, asked, content, content_type, compressed=bool(encoding))
    return content


def test_the_routes_that_read_zstd_are_those_of_the_server() -> None:
    assert sorted(route.path for route in ROUTES if route.accepts_zstd) == sorted(DECOMPRESSED_ROUTES)


@pytest.mark.parametrize("path", DECOMPRESSED_ROUTES)
def test_a_body_of_zstd_is_read_where_the_server_reads_it(path: str) -> None:
    assert checked(path, packed("zstd", CHAT), "zstd") == CHAT


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings"])
def test_elsewhere_it_is_refused_in_the_servers_words(path: str) -> None:
    with pytest.raises(RefusedBodyError, match=r"^invalid character '\(' looking for beginning of value$") as refused:
        checked(path, packed("zstd", CHAT), "zstd")
    assert refused.value.status == 400


@pytest.mark.parametrize("path", [*DECOMPRESSED_ROUTES, "/api/chat"])
@pytest.mark.parametrize("encoding", [encoding for encoding in ENCODINGS if encoding != "zstd"])
def test_a_body_of_another_encoding_is_refused_and_goes_to_no_host(path: str, encoding: str) -> None:
    with pytest.raises(RefusedBodyError, match=r"invalid character '.*' looking for beginning of value") as refused:
        checked(path, packed(encoding, CHAT), header_of(encoding))
    assert refused.value.status == 400


def test_an_encoding_counts_as_the_server_spells_it() -> None:
    for encoding in ("ZSTD", "zstd, gzip", " zstd"):
        with pytest.raises(RefusedBodyError):
            checked("/v1/responses", packed("zstd", CHAT), encoding)


def test_a_body_that_is_not_compressed_as_is_said_is_read_as_it_is() -> None:
    assert checked("/api/chat", CHAT, "gzip") == CHAT
    with pytest.raises(RefusedBodyError, match="failed to decompress request body"):
        checked("/v1/responses", CHAT, "zstd")


@pytest.mark.chaos
def test_a_body_that_unpacks_into_too_much_is_refused() -> None:
    most = b'{"model":"m","input":"%s"}' % (b"x" * (MAX_DECOMPRESSED - 25))
    assert checked("/v1/responses", packed("zstd", most), "zstd") == most
    for body in (packed("zstd", most + b" " * 100), b"x" * (MAX_DECOMPRESSED + 1)):
        with pytest.raises(RefusedBodyError) as refused:
            checked("/v1/responses", body, "zstd")
        assert refused.value.status == 413


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":[' + b"[]," * 60_000 + b'[]],"model":"llama3.2"}',
        b'{"x":' + b"[" * 9_000 + b"]" * 9_000 + b',"model":"llama3.2","y":[' + b"{}," * 60_000 + b"{}]}",
        b' \n{"x":[' + b'{"":""},' * 60_000 + b'{}],"model":"llama3.2"}' + b" " * 2_000_000,
    ],
)
@pytest.mark.chaos
def test_a_body_that_takes_too_long_to_read_does_not_go_past_the_queue(body: bytes) -> None:
    for path in ("/api/chat", "/v1/chat/completions"):
        with pytest.raises(RefusedBodyError, match="too many values") as refused:
            checked(path, body)
        assert refused.value.status == 400
    with pytest.raises(RefusedBodyError, match="too many values"):
        checked("/v1/messages", packed("zstd", body), "zstd")


@pytest.mark.parametrize("body", [b"", b"{", b"nothing", b"[1]", b"null", b'{"model": m}', b'{"a":1,}', b"\xff"])
def test_what_no_server_reads_is_for_a_host_to_refuse(body: bytes) -> None:
    assert checked("/api/chat", body) == body


def test_a_route_that_runs_no_model_takes_any_body() -> None:
    body = b'{"x":[' + b"[]," * 60_000 + b'[]],"model":"llama3.2"}'
    assert checked("/api/show", body) == body
    assert checked("/api/show", packed("gzip", body), "gzip") == packed("gzip", body)


@pytest.mark.parametrize(
    ("first", "quoted"),
    [
        (b"\x1f", r"'\x1f'"),
        (b"(", "'('"),
        (b"'", r"'\''"),
        (b"\\", r"'\\'"),
        (b"\x00", r"'\x00'"),
        (b"\x08", r"'\b'"),
        (b"\x8b", r"'\u008b'"),
        (b"\xe9", "'é'"),
        (b"\x7f", r"'\x7f'"),
    ],
)
def test_a_character_is_quoted_as_the_server_quotes_it(first: bytes, quoted: str) -> None:
    with pytest.raises(RefusedBodyError) as refused:
        checked("/api/chat", first + b"x", "gzip")
    assert refused.value.message == f"invalid character {quoted} looking for beginning of value"


@pytest.mark.parametrize(
    ("content_type", "why"),
    [
        ("application/json", "request Content-Type isn't multipart/form-data"),
        ("", "request Content-Type isn't multipart/form-data"),
        ("multipart/form-data; boundary=x", "malformed MIME"),
        ("multipart/form-data", "malformed MIME"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused(content_type: str, why: str) -> None:
    for body in (b"", b"--x", CHAT):
        with pytest.raises(RefusedBodyError, match=f"failed to parse multipart form: {why}"):
            checked("/v1/audio/transcriptions", body, content_type=content_type)


@pytest.mark.parametrize(
    ("target", "model"),
    [
        ("/v1/audio/transcriptions", "form"),
        ("/v1/audio/transcriptions?x=1", "form"),
        ("/v1/audio/transcriptions?model=query", "query"),
        ("/v1/audio/transcriptions?a&model=que%72y&model=other", "query"),
        ("/v1/audio/transcriptions?model=", None),
    ],
)
def test_the_model_of_a_form_is_first_looked_for_in_the_query(target: str, model: str | None) -> None:
    assert model_in_query(target, "form") == model


def test_a_query_with_too_many_fields_hides_no_model() -> None:
    with pytest.raises(RefusedBodyError, match="more than 100 fields"):
        model_in_query("/v1/audio/transcriptions?" + "a&" * 100 + "model=query", "form")
