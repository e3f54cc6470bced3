"""The simulated hosts of `benches.fleet_http` on real sockets, and clients whose calls depend on each other."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from benches.fleet_http.chats import Truth, bodies
from benches.fleet_http.closed import Chain, closed_loop
from benches.fleet_http.hosts import Fleet, Ports, Setting
from benches.fleet_http.load import EMBEDDING, Clients, Message, open_loop
from benches.fleet_http.oracle import Goal
from ollama_balancer.lab.hosts import Model, Spec
from ollama_balancer.lab.workload import Request
from tests.simulator.support import eventually

SPEED = 200.0
MODEL = Model("m:latest", pace=20.0, prefill=800.0, load=5.0, output=20.0, digest=0.0)
EMBEDDING_MODEL = Model("e:latest", pace=1.0, prefill=800.0, load=5.0, output=0.0, digest=0.0)
RECORDINGS = Path(__file__).parents[1] / "recordings"


@asynccontextmanager
async def running(hosts: int = 1, *, placed: bool = False) -> AsyncIterator[tuple[Fleet, Ports]]:
    specs, places = [asdict(Spec(1.0, 1.0, 1, 1))] * hosts, [[MODEL.name] if placed else []] * hosts
    models = [asdict(MODEL), asdict(EMBEDDING_MODEL)]
    fleet = Fleet(Setting(specs, models, SPEED, asdict(Goal()), places))
    try:
        yield fleet, await fleet.listen()
    finally:
        fleet.close()


def request(prompt: int = 40, output: int = 20, *, known: int = 0, conversation: int = 1) -> Request:
    return Request(0.0, "c0", MODEL, conversation, prompt, known, output)


def chats(*requests: Request) -> list[Message]:
    return [
        Message(number, each, body) for number, (each, body) in enumerate(zip(requests, bodies(requests), strict=True))
    ]


def recorded(name: str) -> dict[str, Any]:
    recording: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text())["response"]
    return recording


def shape(value: Any) -> Any:
    """What a JSON text consists of, without its figures."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value)


async def embed(port: int, model: str = MODEL.name) -> httpx.Response:
    body = {"model": model, "input": "the quick", "simulated": asdict(Truth(0, 1, 3, 0))}
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"http://127.0.0.1:{port}/api/embed", json=body, timeout=None)


async def load(port: int, model: str = MODEL.name) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"http://127.0.0.1:{port}/api/generate", json={"model": model}, timeout=None)


async def embed_when_open(port: int) -> httpx.Response:
    while True:
        try:
            return await embed(port)
        except httpx.ConnectError:
            await asyncio.sleep(0.005)


def test_an_embedding_is_answered_as_ollama_answers_it() -> None:
    async def asked() -> httpx.Response:
        async with running() as (_, ports):
            return await embed(ports.hosts[0])

    answer, truth = asyncio.run(asked()), recorded("embed_single")
    headers = {name.lower(): value for name, value in truth["headers"]}
    assert answer.status_code == truth["status"]
    assert answer.headers["content-type"] == headers["content-type"]
    assert "content-length" in headers and "content-length" in answer.headers
    assert shape(answer.json()) == shape(json.loads(truth["body"]["text"]))
    assert list(answer.json()) == list(json.loads(truth["body"]["text"]))
    assert answer.json()["prompt_eval_count"] == 3


def test_a_request_without_a_prompt_loads_the_model_and_is_no_visit() -> None:
    async def asked() -> tuple[httpx.Response, Fleet]:
        async with running() as (fleet, ports):
            return await load(ports.hosts[0]), fleet

    (answer, fleet), truth = asyncio.run(asked()), recorded("generate_load_empty_prompt")
    assert answer.status_code == truth["status"]
    assert answer.json().items() >= {"response": "", "done": True, "done_reason": "load"}.items()
    assert answer.json().keys() <= json.loads(truth["body"]["text"]).keys()
    assert list(fleet.hosts[0].runners) == [MODEL.name]
    assert not fleet.visits


def test_a_model_for_embeddings_is_loaded_by_none() -> None:
    async def asked() -> tuple[httpx.Response, Fleet]:
        async with running() as (fleet, ports):
            return await load(ports.hosts[0], EMBEDDING_MODEL.name), fleet

    answer, fleet = asyncio.run(asked())
    assert (answer.status_code, answer.json()) == (400, {"error": '"e:latest" does not support generate'})
    assert not fleet.hosts[0].runners


def test_a_model_that_is_not_there_is_refused_in_the_words_of_ollama() -> None:
    async def asked() -> httpx.Response:
        async with running() as (_, ports):
            return await embed(ports.hosts[0], "nope")

    answer, truth = asyncio.run(asked()), recorded("unknown_model_embed")
    assert (answer.status_code, answer.json()) == (truth["status"], json.loads(truth["body"]["text"]))


def test_an_embedding_is_whole_when_its_length_is_there() -> None:
    async def asked() -> Clients:
        async with running() as (_, ports), Clients(ports.hosts[0], ports.oracle, SPEED) as clients:
            body = json.dumps({"model": MODEL.name, "simulated": asdict(Truth(0, 1, 300, 0))}).encode()
            await open_loop(clients, [Message(0, request(300, 0), body, EMBEDDING)], 0.0, patience=math.inf)
            return clients

    call = asyncio.run(asked()).calls[0]
    assert call.whole
    assert call.first is not None


@pytest.mark.parametrize("oracle", [False, True], ids=["a host", "the oracle"])
def test_who_is_served_by_a_host_that_dies_is_cut_off(oracle: bool) -> None:
    async def asked() -> Clients:
        async with running(placed=oracle) as (fleet, ports):
            port = ports.oracle if oracle else ports.hosts[0]
            async with Clients(port, ports.oracle, SPEED) as clients:
                long = chats(request(output=20_000))
                asking = asyncio.create_task(open_loop(clients, long, 0.0, patience=math.inf))
                await eventually(lambda: fleet.hosts[0].running)
                await clients.tell("/crash", {"number": 0, "seconds": 10.0})
                await asking
                return clients

    call = asyncio.run(asked()).calls[0]
    assert not call.whole
    assert not call.gave_up


def test_a_host_that_died_refuses_connections_and_is_back_at_the_same_address_with_nothing_loaded() -> None:
    async def asked() -> None:
        async with running() as (fleet, ports):
            await embed(ports.hosts[0])
            assert list(fleet.hosts[0].runners) == [MODEL.name]
            fleet.crash(0, 20.0)
            with pytest.raises(httpx.ConnectError):
                await embed(ports.hosts[0])
            await eventually(lambda: fleet.hosts[0].up)
            assert list(fleet.hosts[0].runners) == []
            assert (await embed_when_open(ports.hosts[0])).status_code == 200
            (outage,) = fleet.outages
            assert outage.end - outage.begin == 20.0

    asyncio.run(asked())


def test_a_call_is_sent_when_the_answer_before_is_whole_and_the_pause_over() -> None:
    chain = Chain(5, (request(40, 20), request(90, 20, known=60), request(150, 20, known=110)), (3.0, 2.0))

    async def asked() -> tuple[Clients, list[float]]:
        async with running() as (fleet, ports), Clients(ports.hosts[0], ports.oracle, SPEED) as clients:
            await closed_loop(clients, [chain], bodies, end=math.inf, limit=math.inf)
            return clients, [visit.arrived for visit in fleet.visits]

    clients, arrived = asyncio.run(asked())
    calls = [clients.calls[number] for number in chain.numbers]
    assert all(call.whole for call in calls)
    assert len(arrived) == 3
    for (before, after), pause in zip(pairwise(calls), chain.pauses, strict=True):
        assert before.ended is not None
        assert (after.sent - before.ended) * SPEED >= pause - 1e-6
    assert clients.again == 0


def test_a_call_is_sent_again_until_its_answer_is_whole_and_counts_from_the_first_time() -> None:
    chain = Chain(0, (request(40, 20), request(90, 20, known=60)), (30.0,))

    async def asked() -> Clients:
        async with running() as (fleet, ports), Clients(ports.hosts[0], ports.oracle, SPEED) as clients:
            working = asyncio.create_task(closed_loop(clients, [chain], bodies, end=math.inf, limit=math.inf))
            await eventually(lambda: 0 in clients.calls and clients.calls[0].whole)
            fleet.crash(0, 60.0)
            await working
            return clients

    clients = asyncio.run(asked())
    assert clients.again >= 1
    assert clients.calls[1].whole
    assert clients.calls[1].seconds_to_first * SPEED >= 20.0


def test_after_the_end_nothing_new_is_sent() -> None:
    made: list[int] = []

    def noted(requests: Iterable[Request], first: int) -> Any:
        for each in bodies(requests, first):
            made.append(first)
            yield each

    chain = Chain(0, (request(40, 20), request(90, 20, known=60)), (1000.0,))

    async def asked() -> Clients:
        async with running() as (_, ports), Clients(ports.hosts[0], ports.oracle, SPEED) as clients:
            await closed_loop(clients, [chain], noted, end=20.0, limit=10.0)
            return clients

    assert list(asyncio.run(asked()).calls) == [0]
