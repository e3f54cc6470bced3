"""The simulated host answers recorded requests as the real server did."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ollama_balancer.simulator import SimulatedModel, Timing

from .support import Client, Response, connected, events_of, running

RECORDINGS = Path(__file__).parents[1] / "recordings"
MODELS = (
    SimulatedModel("slow-b", size=273_019_100),
    SimulatedModel("slow-a", size=273_019_100),
    SimulatedModel("tiny-a", size=639_773),
    SimulatedModel("tiny-b", size=639_773),
    SimulatedModel("tiny-embed", size=639_560, embedding=True),
    SimulatedModel("tiny-tool", size=640_349),
)
LATER_ANSWERED = {"http_expect_100", "http_expect_100_notfound", "http_bad_request_line"}
"""Recordings that aren't one request and its answer, and have tests of their own."""
NAMES = sorted({path.stem for path in RECORDINGS.glob("*.json")} - LATER_ANSWERED)


def recording(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text())
    return value


def shape(value: object) -> object:
    """A JSON value with its scalars replaced by their types, and equal elements of a list counted once."""
    match value:
        case dict():
            return {key: shape(each) for key, each in value.items()}
        case list():
            return ["list", *sorted({json.dumps(shape(each)) for each in value})]
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case None:
            return "null"
    return "string"


def payload_shape(text: str) -> object:
    """The shape of one payload: of its JSON values in their order, or the text itself."""
    try:
        return [shape(event) for event in events_of(text)]
    except ValueError:
        return text


def header_values(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers in their order; of a date and a length only that they are there."""
    return [(name, "*" if name in ("Date", "Content-Length") else value) for name, value in headers]


async def replay(client: Client, request: dict[str, Any]) -> Response:
    headers = [(name, value) for name, value in request["headers"]]
    body = request["body"]["text"].encode() if request["body"] else None
    if body is not None and ("Transfer-Encoding", "chunked") in headers:
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
        headers = [header for header in headers if header[0] != "Content-Length"]
        await client.send(request["method"], request["path"], None, headers, request["version"])
        client.writer.write(body)
    else:
        await client.send(request["method"], request["path"], body, headers, request["version"])
    return await client.receive(request["method"])


async def answer_to(name: str) -> Response:
    """What the simulated host answers to a recorded request; checks the state it leaves the connection in."""
    record = recording(name)
    async with (
        running(Timing(time_scale=0, max_loaded=6), models=MODELS, version="0.33.0-rc2") as sim,
        connected(sim) as client,
    ):
        if name == "ps_loaded":
            await client.ask("POST", "/api/generate", {"model": "tiny-a"})
        answer = await replay(client, record["request"])
        if record["connection_after"] == "kept-open":
            assert (await client.ask("GET", "/api/version")).status == 200
        else:
            assert await client.ended() == b""
        return answer


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_has_the_head_and_the_shape_of_the_recorded_one(name: str) -> None:
    recorded = recording(name)["response"]
    answer = asyncio.run(answer_to(name))

    assert answer.status_line == recorded["status_line"]
    assert header_values(answer.headers) == header_values([tuple(header) for header in recorded["headers"]])
    assert answer.framing == recorded["framing"]
    recorded_text = recorded["body"]["text"]
    assert payload_shape(answer.body) == payload_shape(recorded_text)
    assert answer.body.endswith("\n") == recorded_text.endswith("\n")
    recorded_chunks = [chunk["text"] for chunk in recorded["chunks"] if chunk["n"]]
    assert [payload_shape(chunk) for chunk in answer.chunks] == [payload_shape(chunk) for chunk in recorded_chunks]


@pytest.mark.parametrize("name", [name for name in NAMES if recording(name)["response"]["status"] >= 400])
def test_an_error_has_the_words_of_the_recorded_one(name: str) -> None:
    assert asyncio.run(answer_to(name)).body == recording(name)["response"]["body"]["text"]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith("model_name_") and name != "model_name_bad"]
)
def test_an_answer_repeats_the_callers_spelling_of_the_model(name: str) -> None:
    recorded = json.loads(recording(name)["response"]["body"]["text"])
    assert asyncio.run(answer_to(name)).json()["model"] == recorded["model"]


@pytest.mark.parametrize("name", ["chat_stream", "generate_stream", "v1_chat_stream", "chat_load_empty", "chat_unload"])
def test_the_reasons_to_end_are_the_recorded_ones(name: str) -> None:
    reason = re.compile(r'"(?:done|finish)_reason":("\w+")')
    answer = asyncio.run(answer_to(name))
    assert reason.findall(answer.body) == reason.findall(recording(name)["response"]["body"]["text"])


@pytest.mark.parametrize("name", ["get_root", "version", "ps_cold", "embed_empty"])
def test_a_constant_answer_is_the_recorded_one(name: str) -> None:
    assert asyncio.run(answer_to(name)).body == recording(name)["response"]["body"]["text"]


def test_a_client_that_expects_100_continue_is_told_so_before_it_sends_the_body() -> None:
    async def main() -> None:
        record = recording("http_expect_100")
        request = record["request"]
        async with running(models=MODELS) as sim, connected(sim) as client:
            headers = [(name, value) for name, value in request["headers"]]
            await client.send(request["method"], request["path"], None, headers)
            interim = await client.reader.readuntil(b"\r\n\r\n")
            assert interim.decode() == record["interim"]["text"]
            client.writer.write(request["body"]["text"].encode())
            answer = await client.receive()
            assert answer.status == 200
            assert payload_shape(answer.body) == payload_shape(record["response"]["body"]["text"])

    asyncio.run(main())


@pytest.mark.parametrize("name", ["http_expect_100_notfound", "http_bad_request_line"])
def test_a_request_refused_before_its_body_is_answered_as_recorded_and_the_connection_closed(name: str) -> None:
    async def main() -> None:
        record = recording(name)
        async with running(models=MODELS) as sim, connected(sim) as client:
            headers = [(name, value) for name, value in record["request"]["headers"]]
            await client.send(record["request"]["method"], record["request"]["path"], None, headers)
            answer = await client.receive()
            assert answer.status_line == record["response"]["status_line"]
            assert header_values(answer.headers) == header_values([tuple(h) for h in record["response"]["headers"]])
            assert answer.body == record["response"]["body"]["text"]
            assert await client.ended() == b""

    asyncio.run(main())
