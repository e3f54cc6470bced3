from __future__ import annotations

import contextlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.ollama.decompression import (
    MAX_MEMBERS,
    DecompressionError,
    Decompressor,
    TooLargeError,
    decompress,
    decompressor_for,
)
from tests.examples import amount
from tests.packing import BITS, ENCODINGS, Packer, header_of, packed

EVENTS = [b'{"model":"m","response":" tok%d","done":false}\n' % number for number in range(40)]
MOST = 65_536


def reader(encoding: str) -> Decompressor:
    found = decompressor_for(header_of(encoding))
    assert found is not None
    return found


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_each_piece_of_a_stream_is_read_when_it_comes(encoding: str) -> None:
    packer, unpacker = Packer(encoding), reader(encoding)
    for event in EVENTS:
        assert unpacker.feed(packer.add(event), MOST) == event
        assert not unpacker.ended
    assert unpacker.feed(packer.end(), MOST) == b""
    assert unpacker.ended


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_it_does_not_matter_where_a_body_is_cut_into_pieces(encoding: str) -> None:
    body = packed(encoding, b"".join(EVENTS))
    unpacker = reader(encoding)
    assert b"".join(unpacker.feed(bytes([byte]), MOST) for byte in body) == b"".join(EVENTS)
    assert unpacker.ended


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_few_bytes_that_stand_for_many_are_not_unpacked(encoding: str) -> None:
    bomb = packed(encoding, bytes(amount(50_000_000, 5_000_000)))
    with pytest.raises(TooLargeError):
        reader(encoding).feed(bomb, 1_000_000)
    with pytest.raises(TooLargeError):
        decompress(bomb, header_of(encoding), 1_000_000)
    assert decompress(packed(encoding, bytes(1_000_000)), header_of(encoding), 1_000_000) == bytes(1_000_000)
    with pytest.raises(TooLargeError):
        decompress(packed(encoding, bytes(1_000_001)), header_of(encoding), 1_000_000)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("body", [b"garbage that is no such thing", bytes(100), b"{}", b"\x1f", b""])
def test_what_is_not_of_the_encoding_is_no_body(encoding: str, body: bytes) -> None:
    with pytest.raises(DecompressionError):
        decompress(body, header_of(encoding), MOST)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_body_that_breaks_off_is_none(encoding: str) -> None:
    body = packed(encoding, b"".join(EVENTS))
    for size in (1, len(body) // 2, len(body) - 1):
        with pytest.raises(DecompressionError):
            decompress(body[:size], header_of(encoding), MOST)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(body=st.binary(max_size=200), cut=st.integers(0, 200))
def test_no_bytes_raise_anything_else(encoding: str, body: bytes, cut: int) -> None:
    for data in (body, packed(encoding, b"x" * 100)[:cut] + body):
        with contextlib.suppress(DecompressionError):
            assert len(decompress(data, header_of(encoding), MOST)) <= MOST


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_may_have_several_parts_but_not_without_end(encoding: str) -> None:
    part = packed(encoding, b"x")
    assert decompress(part * 3, encoding, MOST) == b"xxx"
    with pytest.raises(DecompressionError):
        decompress(part * (MAX_MEMBERS + 1), encoding, MOST)


@pytest.mark.parametrize("before", [b"", b"k\x00\x03"])
def test_what_follows_the_end_of_brotli_is_refused_however_it_comes(before: bytes) -> None:
    unpacker = reader("br")
    assert unpacker.feed(before, MOST) == b""
    with pytest.raises(DecompressionError):
        unpacker.feed(b"k\x00\x03k\x00\x03", MOST)


@pytest.mark.parametrize("encoding", ["", "identity", "compress", "gzip, br", "aes128gcm", "*", "gzip\x00"])
def test_other_encodings_are_not_known(encoding: str) -> None:
    assert decompressor_for(encoding) is None
    with pytest.raises(DecompressionError):
        decompress(b"x", encoding, MOST)


@pytest.mark.parametrize("encoding", ["GZIP", " gzip ", "x-gzip"])
def test_an_encoding_may_be_spelled_in_any_case(encoding: str) -> None:
    assert decompress(packed("gzip", b"x"), encoding, MOST) == b"x"


@pytest.mark.parametrize("encoding", BITS)
def test_a_stream_can_be_ended_with_words_where_its_server_has_flushed(encoding: str) -> None:
    packer, unpacker = Packer(encoding), reader(encoding)
    sent = b"".join(packer.add(event) for event in EVENTS[:7])
    unpacker.feed(sent, MOST)
    words = b'{"error":"it is over"}\n' * 5_000  # more than one stored block
    encode_trailer = unpacker.encode_trailer(words)
    assert encode_trailer is not None
    client = zlib.decompressobj(BITS[encoding])
    assert client.decompress(sent + encode_trailer) == b"".join(EVENTS[:7]) + words
    assert client.eof


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_stream_that_is_cut_elsewhere_or_has_ended_cannot_be(encoding: str) -> None:
    packer, unpacker = Packer(encoding), reader(encoding)
    assert unpacker.encode_trailer(b"x") is None
    unpacker.feed(packer.add(EVENTS[0]), MOST)
    unpacker.feed(packer.add(EVENTS[1])[:4], MOST)
    assert unpacker.encode_trailer(b"x") is None
    ended = reader(encoding)
    ended.feed(packed(encoding, b"x"), MOST)
    assert ended.encode_trailer(b"x") is None
