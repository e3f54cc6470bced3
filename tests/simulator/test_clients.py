"""The clients people use chat with the simulated host."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import ollama
import openai
import pytest

from .support import running

ASKED: list[ollama.Message] = [ollama.Message(role="user", content="why?")]


@asynccontextmanager
async def openai_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_ollama_client_chats_streamed_and_not() -> None:
    async def main() -> None:
        async with running() as sim, ollama.AsyncClient(host=sim.url) as client:
            expected = sim.expected_text("why?")
            assert (await client.chat("llama3.2", ASKED)).message.content == expected
            parts = [part async for part in await client.chat("llama3.2", ASKED, stream=True)]
            assert "".join(part.message.content or "" for part in parts) == expected
            assert (parts[-1].done, parts[-1].done_reason) == (True, "stop")
            assert parts[-1].eval_count == len(parts) - 1

    asyncio.run(main())


def test_the_ollama_client_generates_embeds_and_looks_around() -> None:
    async def main() -> None:
        async with running() as sim, ollama.AsyncClient(host=sim.url) as client:
            assert (await client.generate("qwen3", "why?")).response == sim.expected_text("why?")
            assert len((await client.embed("nomic-embed-text", ["a", "b"])).embeddings) == 2
            assert [m.model for m in (await client.list()).models] == [model.full_name for model in sim.models]
            assert {m.model for m in (await client.ps()).models} == {"qwen3:latest", "nomic-embed-text:latest"}
            assert (await client.show("qwen3")).capabilities == ["completion", "tools"]
            with pytest.raises(ollama.ResponseError, match="not found") as error:
                await client.chat("nope", ASKED)
            assert error.value.status_code == 404

    asyncio.run(main())


def test_the_openai_client_chats_streamed_and_not() -> None:
    async def main() -> None:
        async with running() as sim, openai_client(sim.url) as client:
            expected = sim.expected_text("why?")
            whole = await client.chat.completions.create(
                model="llama3.2", messages=[{"role": "user", "content": "why?"}]
            )
            assert whole.choices[0].message.content == expected
            stream = await client.chat.completions.create(
                model="llama3.2",
                messages=[{"role": "user", "content": "why?"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            parts = [part async for part in stream]
            assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == expected
            assert parts[-1].usage is not None
            assert parts[-1].usage.completion_tokens == len(parts) - 2

    asyncio.run(main())


def test_the_openai_client_lists_models_and_understands_errors() -> None:
    async def main() -> None:
        async with running() as sim, openai_client(sim.url) as client:
            assert [m.id async for m in client.models.list()] == [model.full_name for model in sim.models]
            with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
                await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])

    asyncio.run(main())
