from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.ollama.keeping import KeptBody


def kept(limit: int, *chunks: bytes) -> KeptBody:
    body = KeptBody(limit)
    for chunk in chunks:
        body.feed(chunk)
    return body


@given(st.integers(0, 64), st.lists(st.binary(max_size=40), max_size=30))
def test_it_is_the_whole_body_or_its_two_ends_however_it_was_split(limit: int, chunks: list[bytes]) -> None:
    body, whole = kept(limit, *chunks), b"".join(chunks)
    head, tail = body.ends()
    assert body.bytes_seen == len(whole)
    assert body.left_out == max(0, len(whole) - limit)
    assert len(head) + len(tail) + body.left_out == len(whole)
    assert whole.startswith(head)
    assert whole.endswith(tail)
    if body.left_out:
        assert (len(head), len(tail)) == (limit - limit // 2, limit // 2)


def test_it_may_be_asked_in_between() -> None:
    body = kept(8, b"0123", b"45")
    assert body.ends() == (b"0123", b"45")
    body.feed(b"6789")
    assert body.ends() == (b"0123", b"6789")
    assert body.left_out == 2
