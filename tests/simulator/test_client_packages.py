"""The client packages people use against the whole of the simulated host's API, each from its own thread."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from ollama_balancer.simulator import SimulatedModel, SimulatedOllama

from .support import MODELS, running

CALLER = SimulatedModel("caller", tool=True)
PARAMETERS = {"type": "object", "properties": {"theCity": {"type": "string"}, "days": {"type": "integer"}}}
CALLED = {"theCity": "Paris", "days": 1}
FUNCTION = {"name": "get_weather", "description": "Get weather", "parameters": PARAMETERS}
ASKED: list[Any] = [{"role": "user", "content": "why?"}]


def against_a_host(use: Callable[[SimulatedOllama], None]) -> None:
    """Run what blocks while a host serves it."""

    async def main() -> None:
        async with running(models=(*MODELS, CALLER)) as sim:
            await asyncio.to_thread(use, sim)

    asyncio.run(main())


def openai_client(sim: SimulatedOllama) -> openai.OpenAI:
    client = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{sim.url}/v1", api_key="none", max_retries=0, http_client=client)


def anthropic_client(sim: SimulatedOllama) -> anthropic.Anthropic:
    client = anthropic.DefaultHttpxClient(trust_env=False)
    return anthropic.Anthropic(base_url=sim.url, api_key="none", max_retries=0, http_client=client)


# ---- ollama


def test_ollama_pulls_with_progress_creates_copies_shows_lists_and_deletes() -> None:
    def use(sim: SimulatedOllama) -> None:
        with ollama.Client(host=sim.url, trust_env=False) as client:
            progress = list(client.pull("phi4", stream=True))
            assert progress[-1].status == "success"
            assert {part.completed == part.total for part in progress if part.completed} == {True, False}
            assert client.pull("phi4").status == "success"
            assert client.create("brief", from_="phi4", system="be brief").status == "success"
            assert list(client.create("brief2", from_="phi4", stream=True))[-1].status == "success"
            client.copy("phi4", "copied")
            listed = {model.model: model for model in client.list().models}
            assert {"phi4:latest", "brief:latest", "brief2:latest", "copied:latest"} <= set(listed)
            assert listed["copied:latest"].digest == listed["phi4:latest"].digest
            assert client.show("brief").capabilities == ["completion", "tools"]
            client.generate("copied", "why?")
            assert [model.model for model in client.ps().models] == ["copied:latest"]
            for name in ("phi4", "brief", "brief2", "copied"):
                assert client.delete(name).status == "success"
            assert {model.model for model in client.list().models} == {model.full_name for model in (*MODELS, CALLER)}

    against_a_host(use)


def test_ollama_understands_what_fails() -> None:
    def use(sim: SimulatedOllama) -> None:
        sim.registry.unpullable.add("nowhere")
        with ollama.Client(host=sim.url, trust_env=False) as client:
            failing: list[Callable[[], object]] = [
                lambda: client.pull("nowhere"),
                lambda: list(client.pull("nowhere", stream=True)),
                lambda: list(client.create("new", from_="nope", stream=True)),
            ]
            for call in failing:
                with pytest.raises(ollama.ResponseError, match="pull model manifest"):
                    call()
            with pytest.raises(ollama.ResponseError, match="not found"):
                client.delete("nope")
            with pytest.raises(ollama.ResponseError, match="not found"):
                client.copy("nope", "new")

    against_a_host(use)


def test_ollama_calls_tools_embeds_and_unloads() -> None:
    def use(sim: SimulatedOllama) -> None:
        with ollama.Client(host=sim.url, trust_env=False) as client:
            tools = [{"type": "function", "function": FUNCTION}]
            [whole] = client.chat("caller", ASKED, tools=tools).message.tool_calls or []
            streamed = [part.message.tool_calls for part in client.chat("caller", ASKED, tools=tools, stream=True)]
            for call in (whole, (streamed[0] or [])[0]):
                assert (call.function.name, call.function.arguments) == ("get_weather", CALLED)
            assert len(streamed) == 2
            assert client.chat("caller", ASKED).message.content == sim.expected_text("why?")
            assert len(client.embed("nomic-embed-text", ["a", "b"]).embeddings) == 2
            old = client.embeddings("nomic-embed-text", "a").embedding
            assert old == client.embed("nomic-embed-text", "a").embeddings[0]
            client.generate("caller", keep_alive=0)
            assert "caller:latest" not in {model.model for model in client.ps().models}

    against_a_host(use)


def test_ollama_uploads_a_blob(tmp_path: Path) -> None:
    def use(sim: SimulatedOllama) -> None:
        blob = bytes(range(256)) * 81_920
        path = tmp_path / "blob"
        path.write_bytes(blob)
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        with ollama.Client(host=sim.url, trust_env=False) as client:
            assert client.create_blob(path) == digest
            assert sim.blobs == {digest: len(blob)}
            assert client.create("mine", files={"x.gguf": digest}).status == "success"

    against_a_host(use)


def test_ollamas_async_client_pulls_calls_tools_and_deletes() -> None:
    async def main() -> None:
        async with (
            running(models=(*MODELS, CALLER)) as sim,
            ollama.AsyncClient(host=sim.url, trust_env=False) as client,
        ):
            lines = [part async for part in await client.pull("phi4", stream=True)]
            assert lines[-1].status == "success"
            answer = await client.chat("caller", ASKED, tools=[{"type": "function", "function": FUNCTION}])
            assert [call.function.arguments for call in answer.message.tool_calls or []] == [CALLED]
            await client.delete("phi4")
            assert "phi4:latest" not in {model.model for model in (await client.list()).models}

    asyncio.run(main())


# ---- openai


def test_openai_completes_embeds_and_retrieves_models() -> None:
    def use(sim: SimulatedOllama) -> None:
        with openai_client(sim) as client:
            whole = client.completions.create(model="qwen3", prompt="why?")
            assert whole.choices[0].text == sim.expected_text("why?")
            parts = list(client.completions.create(model="qwen3", prompt="why?", stream=True))
            assert "".join(part.choices[0].text for part in parts) == sim.expected_text("why?")
            assert parts[-1].choices[0].finish_reason == "stop"
            floats = client.embeddings.create(model="nomic-embed-text", input=["a", "b"], encoding_format="float")
            encoded = client.embeddings.create(model="nomic-embed-text", input=["a", "b"])
            for one, other in zip(floats.data, encoded.data, strict=True):
                assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
            assert client.models.retrieve("qwen3").id == "qwen3"
            with pytest.raises(openai.NotFoundError, match="model 'nope:latest' not found"):
                client.models.retrieve("nope")

    against_a_host(use)


def test_openai_calls_tools_in_chats() -> None:
    def use(sim: SimulatedOllama) -> None:
        tools: list[Any] = [{"type": "function", "function": FUNCTION}]
        with openai_client(sim) as client:
            whole = client.chat.completions.create(model="caller", messages=ASKED, tools=tools).choices[0]
            assert whole.finish_reason == "tool_calls"
            parts = list(client.chat.completions.create(model="caller", messages=ASKED, tools=tools, stream=True))
            assert parts[-1].choices[0].finish_reason == "tool_calls"
            calls: list[Any] = [*(whole.message.tool_calls or []), *(parts[0].choices[0].delta.tool_calls or [])]
            assert [call.function.name for call in calls] == ["get_weather"] * 2
            assert {call.function.arguments for call in calls} == {'{"theCity":"Paris","days":1}'}

    against_a_host(use)


def test_openai_gets_responses_streamed_and_not_and_with_tools() -> None:
    def use(sim: SimulatedOllama) -> None:
        tools: list[Any] = [{"type": "function", "strict": False, **FUNCTION}]
        with openai_client(sim) as client:
            assert client.responses.create(model="qwen3", input="why?").output_text == sim.expected_text("why?")
            with client.responses.stream(model="qwen3", input="why?") as stream:
                assert stream.get_final_response().output_text == sim.expected_text("why?")
            whole: Any = client.responses.create(model="caller", input="why?", tools=tools)
            events = list(client.responses.create(model="caller", input="why?", tools=tools, stream=True))
            assert [event.sequence_number for event in events] == list(range(len(events)))
            last: Any = events[-1]
            assert last.type == "response.completed"
            for response in (whole, last.response):
                [call] = response.output
                assert (call.type, call.name) == ("function_call", "get_weather")
                assert call.arguments == '{"theCity":"Paris","days":1}'

    against_a_host(use)


# ---- anthropic


def test_anthropic_gets_messages_streamed_and_not() -> None:
    def use(sim: SimulatedOllama) -> None:
        asked: dict[str, Any] = {"model": "qwen3", "max_tokens": 500, "messages": ASKED}
        with anthropic_client(sim) as client:
            whole: Any = client.messages.create(**asked)
            with client.messages.stream(**asked) as stream:
                assert "".join(stream.text_stream) == whole.content[0].text == sim.expected_text("why?")
                assert stream.get_final_message().stop_reason == whole.stop_reason == "end_turn"
            assert client.messages.create(**asked | {"max_tokens": 3}).stop_reason == "max_tokens"
            assert client.messages.create(**asked, system="be brief").content != whole.content
            with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
                client.messages.create(**asked | {"model": "nope"})

    against_a_host(use)


def test_anthropic_calls_tools() -> None:
    def use(sim: SimulatedOllama) -> None:
        tool = {"name": "get_weather", "description": "Get weather", "input_schema": PARAMETERS}
        asked: dict[str, Any] = {"model": "caller", "max_tokens": 50, "messages": ASKED, "tools": [tool]}
        with anthropic_client(sim) as client:
            whole: Any = client.messages.create(**asked)
            with client.messages.stream(**asked) as stream:
                streamed: Any = stream.get_final_message()
            for message in (whole, streamed):
                [block] = message.content
                assert block.type == "tool_use"
                assert (block.name, block.input, message.stop_reason) == ("get_weather", CALLED, "tool_use")

    against_a_host(use)


def test_a_redirect_is_followed_to_the_answer() -> None:
    def use(sim: SimulatedOllama) -> None:
        with httpx.Client(base_url=sim.url, trust_env=False, follow_redirects=True) as client:
            assert client.get("/api/tags/").json() == {"models": sim.tag_entries()}
            assert client.post("/api/show/", json={"model": "qwen3"}).status_code == 200

    against_a_host(use)
