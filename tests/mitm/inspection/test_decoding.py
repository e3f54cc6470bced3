from __future__ import annotations

import bz2
import functools
import gzip
import resource
import time
import zlib
from collections.abc import Iterator

import brotli
import pytest
from mitmproxy import contentviews, flowfilter
from mitmproxy.net import encoding
from mitmproxy.test import taddons, tflow, tutils

from ollama_balancer.mitm import patches
from ollama_balancer.mitm.inspection.decoding import MAX_GROWTH, MIN_LIMIT
from tests.examples import amount

MIB = 1024 * 1024
BOMB = amount(40, 8) * MIB
TEXT = b'{"model":"m","prompt":"' + b"hello " * 1000 + b'"}'


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    patches.apply()
    yield
    patches.restore()


def raw_deflate(text: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(text) + packer.flush()


PACKED = [
    ("gzip", gzip.compress),
    ("GZIP", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("br", functools.partial(brotli.compress, quality=5)),
    ("zstd", encoding.encode_zstd),
]


@pytest.mark.parametrize(("name", "pack"), PACKED)
def test_a_body_of_usual_size_is_unpacked(name: str, pack) -> None:  # type: ignore[no-untyped-def]
    assert encoding.decode(pack(TEXT), name) == TEXT
    assert encoding.decode(b"", name) == b""
    request = tutils.treq(headers=((b"content-encoding", name.encode()),), content=pack(TEXT))
    assert request.content == TEXT
    request.content = b"other"
    assert request.content == b"other"


@pytest.mark.parametrize(("name", "pack"), [*PACKED, ("bz2", bz2.compress), ("zlib", zlib.compress)])
def test_a_body_that_unpacks_into_too_much_is_left_as_it_is(name: str, pack) -> None:  # type: ignore[no-untyped-def]
    bomb = pack(bytes(BOMB))
    assert MAX_GROWTH * len(bomb) < BOMB
    request = tutils.treq(headers=((b"content-encoding", name.encode()),), content=bomb)
    for _ in range(2):
        with pytest.raises(ValueError, match="when decoding"):
            request.get_content()
        assert request.get_content(strict=False) == bomb


def test_a_charset_that_unpacks_is_none() -> None:
    bomb = bz2.compress(bytes(BOMB))
    request = tutils.treq(headers=((b"content-type", b"text/plain; charset=bz2"),), content=bomb)
    with pytest.raises(ValueError, match="when decoding"):
        request.get_text()
    assert encoding.decode(b"caf\xe9", "latin-1") == "café"
    assert encoding.encode("café", "latin-1") == b"caf\xe9"


@pytest.mark.parametrize("form", [31, 15])
def test_messages_of_grpc_are_not_unpacked_into_too_much(form: int) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, form)
    bomb = packer.compress(bytes(BOMB)) + packer.flush()
    small = gzip.compress(b"\x0a\x02hi")
    for message, shown in ((bomb, "Raw"), (small, "gRPC")):
        body = b"\x01" + len(message).to_bytes(4) + message
        headers = ((b"content-type", b"application/grpc"), (b"grpc-encoding", b"gzip" if form == 31 else b"deflate"))
        if message is small and form == 15:
            continue
        flow = tflow.tflow(req=tutils.treq(path=b"/x", headers=headers, content=body))
        with taddons.context() as context:
            context.options.add_option("protobuf_definitions", str, "", "")
            assert contentviews.prettify_message(flow.request, flow).view_name == shown


def test_the_limits_grow_with_what_came() -> None:
    assert len(encoding.decode(gzip.compress(bytes(MIN_LIMIT)), "gzip")) == MIN_LIMIT
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        encoding.decode(gzip.compress(bytes(MIN_LIMIT + 1)), "gzip")


def test_four_hundred_megabytes_in_a_few_are_not_unpacked_to_be_seen_or_searched() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, another = (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = first + another * 399 + packer.flush()
    assert len(bomb) < 420_000
    flow = tflow.tflow(req=tutils.treq(headers=((b"content-encoding", b"gzip"),), content=bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with taddons.context() as context:
        context.options.add_option("protobuf_definitions", str, "", "")
        seen = contentviews.prettify_message(flow.request, flow, "raw")
    assert seen.description == "[cannot decode]"
    for pattern in ("~b hello", "~bq hello"):
        matches = flowfilter.parse(pattern)
        for _ in range(amount(100, 10)):
            assert not matches(flow)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    assert time.process_time() - began < 5
