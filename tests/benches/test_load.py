"""What a client of the bench makes of an answer."""

import asyncio

import pytest

from benches.fleet_http.load import Call

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Balancer-Agent: h0\r\n\r\n"
FIRST = b'1e\r\n{"message": {}, "done": false}\n\r\n'
LAST = b'1d\r\n{"message": {}, "done": true}\n\r\n'
END = b"0\r\n\r\n"


class Transport(asyncio.Transport):
    closed = False

    def write(self, data: object) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close


def received(*chunks: bytes) -> tuple[Call, Transport]:
    async def answered() -> tuple[Call, Transport]:
        call, transport = Call(b"", patience=60.0), Transport()
        call.connection_made(transport)
        for chunk in chunks:
            call.data_received(chunk)
        call.timer.cancel()
        return call, transport

    return asyncio.run(answered())


def test_the_first_token_is_the_first_chunk_and_not_the_head() -> None:
    assert received(HEAD)[0].first is None
    assert received(HEAD, FIRST)[0].first is not None


def test_an_answer_is_whole_with_its_last_event_and_its_end() -> None:
    call, transport = received(HEAD + FIRST, LAST, END)
    assert (call.whole, transport.closed) == (True, True)


@pytest.mark.parametrize("chunks", [(HEAD,), (HEAD, FIRST, LAST), (HEAD, FIRST, END)])
def test_what_is_not_is_not_counted_as_such(chunks: tuple[bytes, ...]) -> None:
    assert not received(*chunks)[0].whole


def test_a_refusal_has_no_first_token() -> None:
    call, _ = received(HEAD.replace(b"200 OK", b"503 Service Unavailable") + FIRST + END)
    assert call.first is None
    assert call.seconds_to_first == 60.0
    assert not call.whole
