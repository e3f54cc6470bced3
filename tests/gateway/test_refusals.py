from __future__ import annotations

import gzip
import json
import time
import zlib
from email.utils import formatdate

import pytest

from ollama_balancer.gateway.attempts import FailedAttempt, FailureKind
from ollama_balancer.gateway.messages import Response
from ollama_balancer.gateway.refusals import (
    BUSY_SECONDS,
    MAX_BUSY_SECONDS,
    MAX_DECOMPRESSED,
    answer_to,
    blame_of,
    for_caller,
    most_useful,
    retry_after,
)
from ollama_balancer.ollama.errors import Blame
from ollama_balancer.ollama.routes import Dialect
from tests.examples import amount

PAGE = b"<html>no</html>"


def response(status: int, body: bytes = PAGE, **headers: str) -> Response:
    fields = ((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    return Response(status, tuple(fields), body)


def attempt(agent: str, kind: Blame | FailureKind, status: int | None = 500, **headers: str) -> FailedAttempt:
    return FailedAttempt(agent, str(kind), kind, None if status is None else response(status, PAGE, **headers))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, BUSY_SECONDS),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("100000", MAX_BUSY_SECONDS),
        ("9" * 5000, BUSY_SECONDS),
        ("-5", BUSY_SECONDS),
        ("soon", BUSY_SECONDS),
        ("²", BUSY_SECONDS),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", MAX_BUSY_SECONDS),
    ],
)
def test_how_long_a_host_is_left_alone_is_bounded(value: str | None, seconds: float) -> None:
    assert retry_after(response(503) if value is None else response(503, Retry_After=value)) == seconds


def test_a_date_to_retry_at_is_understood() -> None:
    date = formatdate(time.time() + 30, usegmt=True)
    assert 10 < retry_after(response(503, Retry_After=date)) <= 30


@pytest.mark.parametrize(
    ("failures", "agent"),
    [
        ([], None),
        ([attempt("a", FailureKind.CONNECT, None)], None),
        ([attempt("a", Blame.LACKS_MODEL, 404), attempt("b", Blame.HOST_BUSY, 503)], "b"),
        ([attempt("a", Blame.HOST_BUSY, 503), attempt("b", Blame.LACKS_ROUTE, 404)], "a"),
        ([attempt("a", Blame.HOST_CANNOT), attempt("b", Blame.CANNOT_LOAD), attempt("c", Blame.HOST_BUSY)], "b"),
        ([attempt("a", Blame.HOST_CANNOT), attempt("b", Blame.HOST_CANNOT)], "b"),
        ([attempt("a", Blame.LACKS_MODEL), attempt("b", Blame.HOST_REFUSES, 401)], "b"),
        ([attempt("a", Blame.HOST_BUSY, 503), attempt("b", FailureKind.TIMEOUT, None)], "a"),
        ([attempt("a", Blame.LACKS_MODEL, 404), attempt("b", FailureKind.TIMEOUT, None)], None),
        ([attempt("a", Blame.HOST_REFUSES, 401), attempt("b", FailureKind.BROKEN, None)], None),
        (
            [
                attempt("a", Blame.HOST_BUSY, 503, Retry_After="9"),
                attempt("b", Blame.HOST_BUSY, 503, Retry_After="4"),
                attempt("c", Blame.HOST_BUSY, 503, Retry_After="30"),
            ],
            "b",
        ),
    ],
)
def test_the_answer_that_tells_the_caller_most_is_chosen(failures: list[FailedAttempt], agent: str | None) -> None:
    useful = most_useful(failures)
    assert (useful.agent if useful else None) == agent


@pytest.mark.parametrize(
    ("dialect", "error"),
    [
        (Dialect.OLLAMA, {"error": "who was tried"}),
        (Dialect.OPENAI, {"message": "who was tried", "type": "api_error", "param": None, "code": None}),
        (Dialect.ANTHROPIC, {"type": "overloaded_error", "message": "who was tried"}),
    ],
)
def test_a_page_becomes_an_error_in_the_callers_protocol(dialect: Dialect, error: dict[str, object]) -> None:
    busy = attempt("a", Blame.HOST_BUSY, 503, Retry_After="9", WWW_Authenticate="x")
    made = answer_to(busy, "who was tried", dialect)
    assert made.status == 503
    body = json.loads(made.body)
    assert (body if dialect is Dialect.OLLAMA else body["error"]) == error
    assert made.header(b"retry-after") == "9"
    assert made.header(b"www-authenticate") is None


def test_an_error_that_is_one_is_passed_on_as_it_came() -> None:
    body = gzip.compress(b'{"error":"it is gone"}')
    said = response(500, body, Content_Type="application/json", Transfer_Encoding="chunked", Content_Encoding="gzip")
    made = answer_to(FailedAttempt("a", "", Blame.HOST_CANNOT, said), "not this", Dialect.OLLAMA)
    assert made.body == body
    assert made.header(b"content-length") == str(len(body))
    assert made.header(b"transfer-encoding") is None
    cut = response(500, b'{"error":"it is go')
    assert b"this" in answer_to(FailedAttempt("a", "", Blame.HOST_CANNOT, cut), "this", Dialect.OLLAMA).body


@pytest.mark.parametrize(
    ("kind", "status", "shown"),
    [
        (Blame.HOST_CANNOT, 302, 502),
        (Blame.HOST_CANNOT, 504, 504),
        (Blame.LACKS_ROUTE, 405, 404),
        (Blame.HOST_REFUSES, 401, 401),
    ],
)
def test_a_status_that_would_mislead_the_client_is_another(kind: Blame, status: int, shown: int) -> None:
    assert answer_to(attempt("a", kind, status), "x", Dialect.OLLAMA).status == shown


def test_who_is_busy_without_a_word_about_when_gets_one() -> None:
    said = response(503, b'{"error":"server busy, please try again."}')
    made = answer_to(FailedAttempt("a", "", Blame.HOST_BUSY, said), "x", Dialect.OLLAMA)
    assert int(made.header(b"retry-after") or 0) > 0
    assert made.body == said.body


def test_what_a_compressed_answer_says_is_read_with_a_bound() -> None:
    crash = b'{"error":"an error was encountered while running the model: unexpected EOF"}'
    missing = b'{"error":"model \'m\' not found"}'
    for encoding, packed in (("gzip", gzip.compress(missing)), ("deflate", zlib.compress(missing))):
        assert blame_of(response(404, packed, content_encoding=encoding), None) is Blame.LACKS_MODEL
    assert blame_of(response(500, gzip.compress(crash)[:-9], content_encoding="GZIP"), None) is Blame.HOST_CANNOT
    bomb = gzip.compress(b'{"error":"template: ' + b"x" * amount(1000, 100) * MAX_DECOMPRESSED)
    assert blame_of(response(500, bomb, content_encoding="gzip"), None) is Blame.CALLER
    # What cannot be read accuses nobody.
    for encoding in ("br", "gzip"):
        assert blame_of(response(500, b"\x0b\x02\x80", content_encoding=encoding), None) is Blame.CALLER
        assert blame_of(response(404, b"\x0b\x02\x80", content_encoding=encoding), None) is Blame.CALLER
        assert blame_of(response(502, b"\x0b\x02\x80", content_encoding=encoding), None) is Blame.HOST_CANNOT


def test_what_is_the_callers_fault_comes_in_the_callers_protocol() -> None:
    assert for_caller(response(400, b'{"error":"model is required"}'), Dialect.OLLAMA) is None
    assert for_caller(response(422, b'{"detail":[]}'), Dialect.OLLAMA) is None
    assert for_caller(response(400, b'{"error":"the rest of it is yet to co'), Dialect.OLLAMA) is None
    assert for_caller(response(400, b""), Dialect.OLLAMA, head=True) is None
    page = response(413, gzip.compress(PAGE), Via="1.1 p", Content_Encoding="gzip")
    made = for_caller(page, Dialect.ANTHROPIC)
    assert made is not None
    assert made.status == 413
    error = json.loads(made.body)["error"]
    assert (error["type"], error["message"][:4]) == ("request_too_large", "413 ")
    assert made.header(b"content-length") == str(len(made.body))
    assert made.header(b"via") == "1.1 p"
    assert made.header(b"content-encoding") is None
