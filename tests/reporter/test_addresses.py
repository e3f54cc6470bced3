from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_reporter.addresses import any_is_local, parse_endpoint, parse_ollama_host, plain_ip, resolve


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        (":11500", "http://127.0.0.1:11500"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:11500", "http://127.0.0.1:11500"),
        ("http://0.0.0.0:11500/", "http://127.0.0.1:11500"),
        ("192.168.1.7", "http://192.168.1.7:11434"),
        ("gpu-box", "http://gpu-box:11434"),
        ("gpu-box:8000", "http://gpu-box:8000"),
        ("localhost:11434", "http://localhost:11434"),
        ("http://gpu-box", "http://gpu-box:80"),
        ("https://gpu-box", "https://gpu-box:443"),
        ("HTTPS://gpu-box:8443", "https://gpu-box:8443"),
        ("::", "http://[::1]:11434"),
        ("[::]:11500", "http://[::1]:11500"),
        ("::1", "http://[::1]:11434"),
        ("[fd00::7]", "http://[fd00::7]:11434"),
        ("http://[fd00::7]:11500", "http://[fd00::7]:11500"),
        ('  "127.0.0.1:11500" ', "http://127.0.0.1:11500"),
    ],
)
def test_ollama_host_is_read_in_each_form_ollama_takes(text: str, url: str) -> None:
    assert parse_ollama_host(text).url == url


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ftp://gpu-box", "http:// or https://"),
        ("gpu-box:eighty", "port"),
        ("gpu-box:0", "port"),
        ("gpu-box:65536", "port"),
        ("http://gpu-box:11434/ollama", "without a path"),
        ("http://gpu-box?x=1", "without a path"),
        ("http://user:s3cret@gpu-box", "no user or password"),
        ("gpu box", "host name"),
        ("[::1", "scheme://host:port"),
    ],
)
def test_a_wrong_address_is_refused_with_what_is_wrong_and_never_repeated(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        parse_ollama_host(text)
    assert "s3cret" not in str(caught.value)


@given(st.text(alphabet="ab1.:[]/@%?# \t\u00fc-_", max_size=20))
def test_whatever_is_read_as_an_address_reads_the_same_again(text: str) -> None:
    try:
        endpoint = parse_endpoint(text, default_port=8080)
    except ValueError:
        return
    assert parse_endpoint(endpoint.url, default_port=1) == endpoint


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("not an address", "not an address"),
    ],
)
def test_an_ip_address_has_one_spelling(text: str, plain: str) -> None:
    assert plain_ip(text) == plain


def test_a_host_is_here_by_loopback_or_by_an_address_of_its_own() -> None:
    own = frozenset({"10.0.0.7"})
    assert any_is_local(frozenset({"127.0.0.1"}), own)
    assert any_is_local(frozenset({"10.0.0.7"}), own)
    assert not any_is_local(frozenset({"10.0.0.8"}), own)
    assert not any_is_local(frozenset(), own)


def test_localhost_resolves_to_a_loopback_address() -> None:
    assert any_is_local(asyncio.run(resolve("localhost")), frozenset())
