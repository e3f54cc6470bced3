"""What a client of the bench makes of an answer."""

import asyncio
import json

import pytest

from benches.fleet_http.chats import Truth, bodies
from benches.fleet_http.load import CHAT, EMBEDDING, OPENAI, Call, Kind, Message
from ollama_balancer.lab.hosts import Model
from ollama_balancer.lab.workload import Request

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


def received(*chunks: bytes, kind: Kind = CHAT) -> tuple[Call, Transport]:
    async def answered() -> tuple[Call, Transport]:
        call, transport = Call(b"", 60.0, kind), Transport()
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


def test_a_refusal_with_a_length_is_over_with_it() -> None:
    refusal = b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 14\r\n\r\n{"error":"no"}'
    assert not received(refusal[:-1])[1].closed
    call, transport = received(refusal)
    assert (call.whole, call.gave_up, transport.closed) == (False, False, True)


def test_an_embedding_is_whole_with_its_length() -> None:
    body = b'{"embeddings":[[0.1]],"prompt_eval_count":3}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    assert not received(answer[:-1], kind=EMBEDDING)[0].whole
    assert received(answer, kind=EMBEDDING)[0].whole


def test_an_answer_in_openais_form_is_whole_with_its_last_event() -> None:
    first = b'data: {"choices":[{"delta":{"content":"Well"}}]}\n\n'
    call, _ = received(HEAD, first, b"data: [DONE]\n\n", b"\r\n0\r\n\r\n", kind=OPENAI[CHAT])
    assert call.first is not None
    assert call.whole
    assert not received(HEAD, first, b"\r\n0\r\n\r\n", kind=OPENAI[CHAT])[0].whole


def test_a_request_in_openais_form_is_streamed_and_has_the_key_and_the_hosts_find_its_truth() -> None:
    model = Model("m:latest", pace=20.0, prefill=800.0, load=5.0, output=20.0, digest=0.0)
    request = Request(0.0, "c0", model, 1, 40, 0, 20)
    (body,) = bodies([request])
    head, _, sent = Message(0, request, body).openai.http("sk-1").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"Authorization: Bearer sk-1" in head.split(b"\r\n")
    asked = json.loads(sent)
    assert asked["stream"] is True
    assert Truth.of(asked) == Truth.of({"options": {"simulated": asked["simulated"]}}) == Truth(0, 1, 40, 20)
