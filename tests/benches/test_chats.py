"""The chats that a trace is made into, as the balancer reads them."""

import json

from benches.fleet_http.chats import Truth, bodies
from ollama_balancer.lab.hosts import Model
from ollama_balancer.lab.workload import Request
from ollama_balancer.ollama.prompts import PromptReading, read_prompt
from ollama_balancer.ollama.requests import read_request
from ollama_balancer.ollama.routes import find_route

MODEL = Model("m:latest", pace=20.0, prefill=800.0, load=8.0, output=200.0, digest=0.0)


def turn(conversation: int, prompt: int, known: int, output: int) -> Request:
    return Request(0.0, "c0", MODEL, conversation, prompt, known, output)


def read(body: bytes) -> PromptReading:
    route = find_route("/api/chat")
    assert route is not None
    return read_prompt(route, MODEL.name, body, read_request(route, "/api/chat", body).members)


def test_the_balancer_reads_the_true_length_of_a_prompt() -> None:
    requests = [turn(n, prompt, 0, 10) for n, prompt in enumerate((20, 100, 1_000, 10_000))]
    for request, body in zip(requests, bodies(requests), strict=True):
        assert abs(read(body).tokens - request.prompt) <= 2


def test_the_length_of_the_answer_is_told_to_the_hosts_and_not_to_the_balancer() -> None:
    (body,) = bodies([turn(7, 100, 0, 345)])
    assert Truth.of(json.loads(body)) == Truth(0, 7, 100, 345)
    assert read(body).output_limit is None


def test_the_next_turn_goes_on_from_the_one_before() -> None:
    first, other, second = map(read, bodies([turn(1, 100, 0, 50), turn(2, 100, 0, 50), turn(1, 190, 150, 50)]))
    assert set(first.new_prefixes) & set(second.prefixes)
    assert not set(other.new_prefixes) & set(second.prefixes)
    assert abs(second.tokens - 190) <= 4


def test_a_conversation_that_began_before_the_trace_is_as_long_as_it_was() -> None:
    (body,) = bodies([turn(1, 400, 330, 50)])
    assert abs(read(body).tokens - 400) <= 4
