from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.ollama.body_capture import STEP, CapturedBody


def kept(limit: int, *chunks: bytes) -> CapturedBody:
    body = CapturedBody(limit)
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


@pytest.mark.parametrize("chunk", [100, 5000, 300_000])
def test_where_there_is_no_room_no_more_is_kept_than_there_was_room_for(chunk: int) -> None:
    room = 500_000
    asked: list[int] = []

    def may_hold(size: int) -> bool:
        asked.append(size)
        return size <= room

    body = bytes(range(256)) * 40_000
    kept = CapturedBody(8_000_000, may_hold)
    for at in range(0, len(body), chunk):
        kept.feed(body[at : at + chunk])
    head, tail = kept.ends()
    assert len(head) + len(tail) <= room + chunk + STEP
    assert body.startswith(head)
    assert body.endswith(tail)
    assert len(head) + len(tail) + kept.left_out == len(body)
    assert len(asked) <= room // STEP + 4, "it is asked in steps, not for each chunk"


def test_where_there_is_room_all_is_kept_as_ever() -> None:
    body = bytes(range(256)) * 4000
    kept = CapturedBody(2_000_000, lambda size: True)
    for at in range(0, len(body), 1000):
        kept.feed(body[at : at + 1000])
    assert kept.joined() == body
