"""Pulls, creates, copies and deletes, the faults that strike in them, and paths that lead elsewhere."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ollama_balancer.simulator import SimulatedModel, SimulatedOllama, Timing

from .support import INSTANT, StandingClock, ask, chat, connected, eventually, running

STATUSES = ["pulling manifest", "verifying sha256 digest", "writing manifest", "success"]


async def names(sim: SimulatedOllama) -> list[str]:
    return [model["name"] for model in (await ask(sim, "GET", "/api/tags")).json()["models"]]


def test_a_pull_tells_its_progress_on_each_layer_and_adds_the_model() -> None:
    async def main() -> None:
        wanted = SimulatedModel("new:1b", size=1_000_000)
        async with running(replace(INSTANT, pull_steps=3)) as sim:
            sim.registry.models.append(wanted)
            lines = (await ask(sim, "POST", "/api/pull", {"model": "NEW:1b"})).events()
            assert [line["status"] for line in lines if "digest" not in line] == STATUSES
            for digest, total in wanted.layers():
                steps = [line for line in lines if line.get("digest") == digest]
                assert {line["total"] for line in steps} == {total}
                assert [line.get("completed") for line in steps] == [None, total // 3, total * 2 // 3, total]
            [entry] = [each for each in sim.tag_entries() if each["name"] == "new:1b"]
            assert (entry["size"], entry["digest"]) == (1_000_000, wanted.digest)
            again = (await ask(sim, "POST", "/api/pull", {"name": "new:1b"})).events()
            assert [line["completed"] for line in again if "digest" in line] == [size for _, size in wanted.layers()]

    asyncio.run(main())


def test_a_pulled_model_is_new_in_the_list_and_the_same_on_every_host() -> None:
    async def main() -> None:
        async with running() as one, running(models=()) as other:
            for sim in (one, other):
                answer = await ask(sim, "POST", "/api/pull", {"model": "phi4", "stream": False})
                assert answer.json() == {"status": "success"}
            [here] = [entry for entry in one.tag_entries() if entry["model"] == "phi4:latest"]
            [there] = other.tag_entries()
            assert here | {"modified_at": ""} == there | {"modified_at": ""}
            old = (await ask(one, "GET", "/api/tags")).json()["models"][0]["modified_at"]
            assert here["modified_at"] >= old
            assert (await ask(one, "POST", "/api/chat", chat(model="phi4"))).status == 200

    asyncio.run(main())


def test_a_pull_takes_the_time_of_its_lines_and_a_client_that_leaves_breaks_it_off() -> None:
    async def main() -> None:
        clock = StandingClock()
        timing = Timing(progress_pause=1, pull_steps=5)
        async with running(timing, sleep=clock.sleep, clock=clock) as sim:
            async with connected(sim) as client:
                await client.send("POST", "/api/pull", {"model": "phi4"})
                await client.head()
                for _ in range(5):
                    await eventually(lambda: clock.sleepers)
                    await clock.advance(1)
                assert "pulling" in (await client.chunk() or "")
            await eventually(lambda: sim.requests[0].outcome == "cancelled")
            assert "phi4:latest" not in await names(sim)

    asyncio.run(main())


PULL = {"model": "phi4"}


@pytest.mark.parametrize(
    ("faults", "status", "chunks", "complete"),
    [
        ({"cut_after_chunks": 3}, 200, 3, False),
        ({"cut_after_chunks": 0}, 200, 0, False),
        ({"end_without_done_after_chunks": 3}, 200, 3, True),
        ({"error_event_after_chunks": 3}, 200, 4, True),
        ({"error_event_after_chunks": 0}, 500, 1, True),
        ({"status": 500}, 500, 0, True),
    ],
)
def test_a_fault_breaks_a_pull_off(faults: dict[str, Any], status: int, chunks: int, complete: bool) -> None:
    async def main() -> None:
        async with running() as sim:
            for name, value in faults.items():
                setattr(sim.faults, name, value)
            answer = await ask(sim, "POST", "/api/pull", PULL)
            assert (answer.status, len(answer.chunks), answer.complete) == (status, chunks, complete)
            assert ("error" in answer.body) == (status == 500 or "error_event_after_chunks" in faults)
            assert sim.requests[0].outcome == "failed"
            assert "phi4:latest" not in await names(sim)
            assert sim.counts == {}

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["cut_after_chunks", "close_before_head"])
def test_a_pull_that_is_not_streamed_may_be_cut_before_its_head(fault: str) -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            setattr(sim.faults, fault, 2)
            await client.send("POST", "/api/pull", PULL | {"stream": False})
            assert await client.ended() == b""
            assert "phi4:latest" not in await names(sim)

    asyncio.run(main())


def test_a_host_that_fails_deletes_nothing_and_one_that_hangs_only_when_it_recovers() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            sim.faults.status = 500
            assert (await ask(sim, "DELETE", "/api/delete", {"model": "qwen3"})).status == 500
            sim.faults.status = None
            sim.faults.hang_all = True
            await client.send("DELETE", "/api/delete", {"model": "qwen3"})
            await eventually(lambda: len(sim.requests) == 2)
            assert "qwen3" in {model.name for model in sim.models}
            sim.faults.hang_all = False
            assert (await client.receive()).status == 200
            assert "qwen3" not in {model.name for model in sim.models}

    asyncio.run(main())


def test_a_deleted_model_is_neither_listed_nor_loaded_nor_known_any_more() -> None:
    async def main() -> None:
        async with running() as sim:
            await ask(sim, "POST", "/api/chat", chat(model="qwen3"))
            assert sim.loaded == ["qwen3:latest"]
            assert (await ask(sim, "DELETE", "/api/delete", {"model": "Qwen3"})).status == 200
            assert (await ask(sim, "GET", "/api/ps")).json() == {"models": []}
            assert "qwen3:latest" not in await names(sim)
            assert (await ask(sim, "POST", "/api/chat", chat(model="qwen3"))).status == 404
            assert (await ask(sim, "DELETE", "/api/delete", {"model": "Qwen3"})).status == 404

    asyncio.run(main())


def test_a_model_deleted_while_it_streams_lets_the_stream_finish() -> None:
    async def main() -> None:
        clock = StandingClock()
        async with running(sleep=clock.sleep, clock=clock, timing=Timing(load=0, prefill_rate=1, decode_rate=1)) as sim:
            async with connected(sim) as client:
                await client.send("POST", "/api/chat", chat(tokens=3))
                await eventually(lambda: sim.running and clock.sleepers)
                assert (await ask(sim, "DELETE", "/api/delete", {"model": "llama3.2"})).status == 200
                receiving = asyncio.create_task(client.receive())
                await clock.advance(30)
                assert (await receiving).events()[-1]["done"] is True
            assert sim.loaded == []

    asyncio.run(main())


def test_a_copy_has_its_originals_digest_and_outlives_it() -> None:
    async def main() -> None:
        async with running() as sim:
            original = {entry["name"]: entry for entry in sim.tag_entries()}["qwen3:latest"]
            await ask(sim, "POST", "/api/copy", {"source": "qwen3", "destination": "me/mine"})
            await ask(sim, "DELETE", "/api/delete", {"model": "qwen3"})
            [copy] = [entry for entry in sim.tag_entries() if entry["name"] == "me/mine:latest"]
            assert (copy["digest"], copy["size"]) == (original["digest"], original["size"])
            assert (await ask(sim, "POST", "/api/chat", chat(model="me/mine"))).status == 200
            bad = await ask(sim, "POST", "/api/copy", {"source": "me/mine", "destination": "a b"})
            assert (bad.status, bad.json()) == (400, {"error": 'destination "a b" is invalid'})

    asyncio.run(main())


def test_a_model_is_created_from_another_one_or_from_blobs() -> None:
    async def main() -> None:
        blob = b"GGUF" * 1000
        async with running() as sim:
            await ask(sim, "POST", "/api/create", {"model": "brief", "from": "qwen3", "system": "be brief"})
            sizes = {model.name: (model.size, model.digest) for model in sim.models}
            assert sizes["brief"][0] > sizes["qwen3"][0]
            assert sizes["brief"][1] != sizes["qwen3"][1]
            mismatch = await ask(sim, "POST", f"/api/blobs/sha256:{'0' * 64}", blob)
            digest = mismatch.json()["error"].split('"')[3]
            assert (await ask(sim, "POST", f"/api/blobs/{digest}", blob)).status == 201
            made = await ask(sim, "POST", "/api/create", {"model": "mine", "files": {"x.gguf": digest}})
            assert made.events()[-1] == {"status": "success"}
            assert {model.name: model.size for model in sim.models}["mine"] == len(blob)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "path", "status", "location"),
    [
        ("GET", "/api/tags/?x=1", 301, "/api/tags?x=1"),
        ("POST", "/v1/chat/completions/", 307, "/v1/chat/completions"),
        ("DELETE", "/api/delete/", 307, "/api/delete"),
        ("POST", "//api//chat", 307, "/api/chat"),
        ("GET", "/v1/models/", 301, "/v1/models"),
        ("POST", "/api/tags/", 404, None),
        ("GET", "/nope/", 404, None),
        ("GET", "/v1/models/me%2Fmine", 404, None),
    ],
)
def test_a_path_that_nearly_exists_leads_to_the_one_that_does(
    method: str, path: str, status: int, location: str | None
) -> None:
    async def main() -> None:
        async with running() as sim:
            answer = await ask(sim, method, path, b"")
            assert (answer.status, answer.header("Location")) == (status, location)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "field", "message"),
    [
        ("/v1/messages", "messages", "messages is required"),
        ("/v1/messages", "max_tokens", "max_tokens is required and must be positive"),
        ("/v1/messages", "model", "model is required"),
        ("/v1/embeddings", "input", "invalid input"),
    ],
)
def test_a_request_that_lacks_a_field_is_refused_in_its_own_protocol(path: str, field: str, message: str) -> None:
    async def main() -> None:
        async with running() as sim:
            answer = await ask(sim, "POST", path, chat(max_tokens=5, input="x") | {field: None})
            assert (answer.status, answer.json()["error"]["message"]) == (400, message)

    asyncio.run(main())


def test_a_model_without_tools_refuses_them() -> None:
    async def main() -> None:
        async with running(models=[SimulatedModel("plain", supports_tools=False)]) as sim:
            tools = [{"type": "function", "function": {"name": "f"}}]
            answer = await ask(sim, "POST", "/api/chat", chat(model="plain", tools=tools))
            assert (answer.status, answer.json()) == (400, {"error": '"plain" does not support tools'})
            assert sim.tag_entries()[0]["capabilities"] == ["completion"]

    asyncio.run(main())


ANY_STREAM: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 100},
}


@pytest.mark.parametrize("path", ANY_STREAM)
def test_a_crashed_runner_ends_the_other_streams_without_their_terminal_event(path: str) -> None:
    async def main() -> None:
        async with running() as sim:
            sim.faults.error_event_after_chunks = 3
            answer = await ask(sim, "POST", path, ANY_STREAM[path] | {"model": "qwen3", "stream": True})
            assert (answer.status, answer.complete) == (200, True)
            assert not any(word in answer.body for word in ("[DONE]", "message_stop", "response.completed"))
            sim.faults.error_event_after_chunks = None
            sim.faults.status = 503
            busy = await ask(sim, "POST", path, ANY_STREAM[path] | {"model": "qwen3", "stream": True})
            kind = "overloaded_error" if path == "/v1/messages" else "api_error"
            assert (busy.status, busy.json()["error"]["type"]) == (503, kind)

    asyncio.run(main())
