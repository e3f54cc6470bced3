"""The simulated host answers recorded requests as the real server did."""

import asyncio
import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ollama_balancer.simulator import SimulatedModel, Timing

from .support import Client, Response, ask, connected, events_of, running

RECORDINGS = Path(__file__).parents[1] / "recordings"
MODELS = (
    SimulatedModel("slow-b", size=273_019_100),
    SimulatedModel("slow-a", size=273_019_100),
    SimulatedModel("tiny-a", size=639_773),
    SimulatedModel("tiny-b", size=639_773),
    SimulatedModel("tiny-embed", size=639_560, embedding=True),
    SimulatedModel("tiny-tool", size=640_349, tool=True),
)
HERE_FIRST = {
    "delete": ("copied",),
    "delete_derived": ("derived",),
    "delete_derived2": ("derived2",),
    "v1_model_slash": ("ns/tiny-a",),
}
"""Models that were there when these were recorded."""
LATER_ANSWERED = re.compile(
    "http_expect_100|http_expect_100_notfound|http_bad_request_line|blob_(expect|existing|post|head_present).*"
)
"""Recordings that aren't one request and its answer, and have tests of their own."""
NOT_SIMULATED = re.compile(
    "cors_.*|host_.*|http_gzip.*|options_star|big_header.*|body_40MB|.*longer.*|.*too_long.*|show_verbose|ps_keepalive.*"
    "|ps_many_loaded|unload_tiny-embed|generate_(cloud_model|image_bad|logprobs|raw|suffix|think)"
)
"""Recordings of what the simulated host doesn't know of, such as browsers' origins, or can't tell from the request."""
NAMES = sorted(
    path.stem
    for path in RECORDINGS.glob("*.json")
    if "body" in json.loads(path.read_text()).get("response", {})
    and not (LATER_ANSWERED.fullmatch(path.stem) or NOT_SIMULATED.fullmatch(path.stem))
)
REQUEST_ID = re.compile(r"req_[0-9a-f]{24}")


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
    models = (*MODELS, *(SimulatedModel(each) for each in HERE_FIRST.get(name, ())))
    async with (
        running(Timing(time_scale=0, max_loaded=6), models=models, version="0.33.0-rc2") as sim,
        connected(sim) as client,
    ):
        sim.registry.unpullable.add("llama3")
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
    names = re.compile(r"^event: (.*)$", re.MULTILINE)
    assert names.findall(answer.body) == names.findall(recorded_text)
    recorded_chunks = [chunk["text"] for chunk in recorded["chunks"] if chunk["n"]]
    assert [payload_shape(chunk) for chunk in answer.chunks] == [payload_shape(chunk) for chunk in recorded_chunks]


@pytest.mark.parametrize("name", [name for name in NAMES if recording(name)["response"]["status"] >= 400])
def test_an_error_has_the_words_of_the_recorded_one(name: str) -> None:
    recorded = recording(name)["response"]["body"]["text"]
    assert REQUEST_ID.sub("req", asyncio.run(answer_to(name)).body) == REQUEST_ID.sub("req", recorded)


@pytest.mark.parametrize("name", ["create_missing_from", "create_bad_blob", "pull_nonetwork"])
def test_an_operation_that_fails_later_has_the_words_of_the_recorded_one(name: str) -> None:
    assert asyncio.run(answer_to(name)).body == recording(name)["response"]["body"]["text"]


@pytest.mark.parametrize("name", ["create_from_stream", "create_from_nostream"])
def test_a_progress_has_the_recorded_lines(name: str) -> None:
    digest = re.compile("sha256:[0-9a-f]{64}")
    recorded = recording(name)["response"]["body"]["text"]
    assert digest.sub("sha256", asyncio.run(answer_to(name)).body) == digest.sub("sha256", recorded)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith("model_name_") and name != "model_name_bad"]
)
def test_an_answer_repeats_the_callers_spelling_of_the_model(name: str) -> None:
    recorded = json.loads(recording(name)["response"]["body"]["text"])
    assert asyncio.run(answer_to(name)).json()["model"] == recorded["model"]


STOPPED = [
    *("v1_completions", "v1_completions_stream", "v1_messages", "v1_messages_stream"),
    *("chat_tools_stream", "v1_chat_tools", "v1_chat_tools_stream", "v1_messages_tools_stream"),
]


@pytest.mark.parametrize(
    "name", ["chat_stream", "generate_stream", "v1_chat_stream", "chat_load_empty", "chat_unload", *STOPPED]
)
def test_the_reasons_to_end_are_the_recorded_ones(name: str) -> None:
    reason = re.compile(r'"(?:done|finish|stop)_reason":("\w+")')
    answer = asyncio.run(answer_to(name))
    assert reason.findall(answer.body) == reason.findall(recording(name)["response"]["body"]["text"])


@pytest.mark.parametrize(
    "name", ["get_root", "version", "ps_cold", "embed_empty", "status", "trailing_slash", "double_slash"]
)
def test_a_constant_answer_is_the_recorded_one(name: str) -> None:
    assert asyncio.run(answer_to(name)).body == recording(name)["response"]["body"]["text"]


BLOB = b"a blob" * 20_000
BLOB_PATH = f"/api/blobs/sha256:{hashlib.sha256(BLOB).hexdigest()}"


def assert_like(answer: Response, name: str) -> None:
    recorded = recording(name)["response"]
    assert answer.status_line == recorded["status_line"]
    assert header_values(answer.headers) == header_values([tuple(header) for header in recorded["headers"]])


def test_a_blob_is_taken_in_once_and_then_there_as_recorded() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            for method, name in (("POST", "blob_post"), ("POST", "blob_post_again"), ("HEAD", "blob_head_present")):
                assert_like(await client.ask(method, BLOB_PATH, BLOB if method == "POST" else None), name)
            wrong = f"/api/blobs/sha256:{'1' * 64}"
            refused = await client.ask("POST", wrong, BLOB)
            assert_like(refused, "blob_post_baddigest")
            recorded = recording("blob_post_baddigest")["response"]["body"]["text"]
            digests = re.compile("[0-9a-f]{64}")
            assert digests.sub("", refused.body) == digests.sub("", recorded)
            assert BLOB_PATH.removeprefix("/api/blobs/") in refused.body
            assert sim.blobs == {BLOB_PATH.removeprefix("/api/blobs/"): len(BLOB)}

    asyncio.run(main())


def test_a_large_blob_that_is_there_is_not_waited_for() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            await client.ask("POST", BLOB_PATH, BLOB)
            await client.send("POST", BLOB_PATH, None, [("Host", "sim"), ("Content-Length", "20971520")])
            assert_like(await client.receive(), "blob_existing_no_body")
            assert await client.ended() == b""

    asyncio.run(main())


@pytest.mark.parametrize(
    "head", [("Content-Length", "20971520"), ("Transfer-Encoding", "chunked")], ids=["known length", "chunked"]
)
def test_a_large_blob_that_is_there_is_answered_early_and_its_connection_is_reset(head: tuple[str, str]) -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            await client.ask("POST", BLOB_PATH, BLOB)
            await client.send("POST", BLOB_PATH, None, [("Host", "sim"), head])
            piece = bytes(65536) if head[0] == "Content-Length" else b"10000\r\n" + bytes(65536) + b"\r\n"
            client.writer.write(piece * 6)
            assert_like(await client.receive(), "blob_existing_no_body")
            reset = False
            for _ in range(320):
                with suppress(ConnectionError):
                    client.writer.write(piece)
                    await client.writer.drain()
                    continue
                reset = True
            assert reset

    asyncio.run(main())


def test_a_blob_of_no_digest_and_one_that_is_there_are_answered_instead_of_100_continue() -> None:
    async def main() -> None:
        headers = [("Host", "sim"), ("Expect", "100-continue"), ("Content-Length", str(len(BLOB)))]
        async with running() as sim:
            await ask(sim, "POST", BLOB_PATH, BLOB)
            async with connected(sim) as client:
                await client.send("POST", BLOB_PATH, None, headers)
                assert_like(await client.receive(), "blob_existing_no_body")
            async with connected(sim) as client:
                await client.send("POST", "/api/blobs/nonsense", None, headers)
                assert (await client.receive()).status == 400

    asyncio.run(main())


def test_a_large_blob_is_taken_in_after_100_continue() -> None:
    async def main() -> None:
        blob = bytes(20_971_520)
        path = f"/api/blobs/sha256:{hashlib.sha256(blob).hexdigest()}"
        async with running() as sim, connected(sim) as client:
            headers = [("Host", "sim"), ("Expect", "100-continue"), ("Content-Length", str(len(blob)))]
            await client.send("POST", path, None, headers)
            interim = await client.reader.readuntil(b"\r\n\r\n")
            assert interim.decode() == recording("blob_expect_20MB")["interim"]["text"]
            client.writer.write(blob)
            assert_like(await client.receive(), "blob_expect_20MB")
            assert list(sim.blobs.values()) == [len(blob)]
            assert sim.requests[0].body == b""

    asyncio.run(main())


def test_a_blob_whose_upload_is_aborted_leaves_nothing() -> None:
    async def main() -> None:
        async with running() as sim:
            async with connected(sim) as client:
                await client.send("POST", BLOB_PATH, BLOB[:-1], [("Host", "sim"), ("Content-Length", str(len(BLOB)))])
            assert (await ask(sim, "HEAD", BLOB_PATH)).status == recording("blob_upload_aborted")["head_after"]
            assert sim.blobs == {}

    asyncio.run(main())


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
