from __future__ import annotations

import pytest

from ollama_balancer.gateway.headers import for_agent, for_client
from ollama_balancer.gateway.request_ids import request_id_of


@pytest.mark.parametrize("given", [b"a", b"0.9_A-z", b"x" * 128])
def test_a_clients_id_is_kept(given: bytes) -> None:
    assert request_id_of(((b"Host", b"h"), (b"x-request-ID", given))) == given.decode()


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ((b"X-Request-Id", b""),),
        ((b"X-Request-Id", b"x" * 129),),
        ((b"X-Request-Id", b"a b"),),
        ((b"X-Request-Id", b"a\xff"),),
        ((b"X-Request-Id", b"a\n"),),
        ((b"X-Request-Id", b"a"), (b"X-Request-Id", b"b")),
    ],
)
def test_any_other_gets_a_new_one(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    made = request_id_of(fields)
    assert len(made) == 24
    assert made.isalnum()
    assert made != request_id_of(fields)


def test_hosts_and_clients_get_it_once() -> None:
    given = ((b"x-request-id", b"theirs"), (b"X-Request-Id", b"again"))
    sent = for_agent(given, content_length=-1, via=None, credentials=(), host=None, request_id="ours")
    assert sent == ((b"X-Request-Id", b"ours"),)
    for own in (True, False):
        head = for_client(given, 1, "a", own=own, request_id="ours")
        assert [value for name, value in head if name.lower() == b"x-request-id"] == [b"ours"]
