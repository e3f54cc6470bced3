from __future__ import annotations

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from ollama_balancer.mitm.host_header import host_problem, set_destination


def request(*hosts: bytes, version: bytes = b"HTTP/1.1") -> http.Request:
    made = http.Request.make("GET", "http://x/")
    made.data.host, made.data.port, made.data.scheme, made.data.http_version = "", 0, b"", version
    made.headers = http.Headers([(b"Host", host) for host in hosts])
    return made


@pytest.mark.parametrize(
    "host",
    [b"", b"localhost", b"a_b:8080", b"a:", b"[::1]:80", b"[fe80::1%25eth0]", b"foo!bar", b"x" * 5000, b"fe80::1"],
)
def test_what_the_real_server_takes_for_a_host_is_one(host: bytes) -> None:
    assert host_problem(request(host)) is None
    assert host_problem(request(host, version=b"HTTP/1.0")) is None


@pytest.mark.parametrize("host", [b"a b", b"a/b", "é".encode(), b"a\x00", b"a@b", b"<script>", b"a#b", b"a?b"])
def test_other_characters_are_refused_in_its_words(host: bytes) -> None:
    assert host_problem(request(host)) == "malformed Host header"


def test_http_1_1_needs_a_host_and_older_and_newer_versions_do_not() -> None:
    assert host_problem(request()) == "missing required Host header"
    assert host_problem(request(version=b"HTTP/1.0")) is None
    assert host_problem(request(version=b"HTTP/2.0")) is None


def test_two_hosts_are_too_many() -> None:
    assert host_problem(request(b"a", b"a")) == "too many Host headers"
    assert host_problem(request(b"a", b"b", version=b"HTTP/1.0")) == "too many Host headers"


@pytest.mark.parametrize(
    ("hosts", "destination"),
    [
        ((b"gpu:8080",), ("gpu", 8080)),
        ((b"gpu",), ("gpu", 80)),
        ((b"[::1]:80",), ("::1", 80)),
        ((), ("127.0.0.1", 8080)),
        ((b"",), ("127.0.0.1", 8080)),
        ((b"a b",), ("127.0.0.1", 8080)),
    ],
)
def test_a_request_has_a_destination_whatever_its_host_is(
    hosts: tuple[bytes, ...], destination: tuple[str, int]
) -> None:
    client = tflow.tclient_conn()
    client.sockname = ("127.0.0.1", 8080)
    client.tls = False
    made = request(*hosts)
    set_destination(made, client)
    assert (made.data.host, made.data.port, made.data.scheme) == (*destination, b"http")


def test_the_destination_of_a_proxys_client_stays() -> None:
    made = request(b"elsewhere")
    made.data.host, made.data.port = "named", 1
    set_destination(made, tflow.tclient_conn())
    assert (made.data.host, made.data.port) == ("named", 1)
