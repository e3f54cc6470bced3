"""The real client packages against two hosts behind one real mitmdump."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import ollama
import openai
import pytest

from ollama_balancer.simulator import SimulatedModel, SimulatedOllama
from tests.e2e.harness import QUICK, Hosts, Proxy, running_proxy, wait_until

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": PARAMETERS}}


@dataclass
class Fleet:
    proxy: Proxy
    hosts: list[SimulatedOllama]
    ollama: ollama.Client
    openai: openai.OpenAI
    anthropic: anthropic.Anthropic

    @property
    def served(self) -> list[int]:
        """How many requests each host has served; a client has its answer before the host has counted it."""
        wait_until(lambda: not any(host.in_flight for host in self.hosts), "all are counted")
        return [host.counts["succeeded"] for host in self.hosts]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    hosts = Hosts()
    try:
        both = []
        for name in ("one", "two"):
            models = [SimulatedModel("llama3.2"), SimulatedModel("tool", tool=True)]
            models += [SimulatedModel("embed", embedding=True), SimulatedModel(f"only-{name}")]
            host = SimulatedOllama(models=models, timing=QUICK, name=name)
            hosts.run(host.start())
            hosts.all.append(host)
            both.append(host)
        agents = ",".join(f"{host.name}={host.url}" for host in both)
        with (
            running_proxy(tmp_path_factory.mktemp("conf"), "--set", f"balancer_agents={agents}") as proxy,
            openai.OpenAI(
                base_url=f"{proxy.url}/v1",
                api_key="unused",
                http_client=openai.DefaultHttpxClient(trust_env=False),
                max_retries=0,
            ) as openai_client,
            anthropic.Anthropic(
                base_url=proxy.url,
                api_key="unused",
                http_client=anthropic.DefaultHttpxClient(trust_env=False),
                max_retries=0,
            ) as anthropic_client,
        ):
            proxy.wait_online("one", "two")
            yield Fleet(proxy, both, ollama.Client(proxy.url, trust_env=False), openai_client, anthropic_client)
    finally:
        hosts.stop()


# ollama


def test_the_ollama_client_chats_and_generates_streamed_and_not(fleet: Fleet) -> None:
    before = sum(fleet.served)
    whole = fleet.ollama.chat("llama3.2", HELLO)
    assert whole.done
    parts = list(fleet.ollama.chat("llama3.2", HELLO, stream=True))
    assert parts[-1].done
    assert whole.message.content
    assert "".join(part.message.content or "" for part in parts)
    assert fleet.ollama.generate("LLAMA3.2:latest", "hello").response
    assert [part.done for part in fleet.ollama.generate("only-two", "hello", stream=True)][-1]
    assert fleet.ollama.generate("only-one", "hello").response
    assert sum(fleet.served) - before == 5
    assert min(fleet.served) >= 1


def test_the_asynchronous_ollama_client_runs_many_at_once(fleet: Fleet) -> None:
    async def main() -> list[str]:
        client = ollama.AsyncClient(fleet.proxy.url, trust_env=False)

        async def one(number: int) -> str:
            stream = await client.chat("llama3.2", [{"role": "user", "content": str(number)}], stream=True)
            return "".join([part.message.content or "" async for part in stream])

        return await asyncio.gather(*(one(number) for number in range(20)))

    answers = asyncio.run(main())
    assert answers == [fleet.hosts[0].expected_text(str(number)) for number in range(20)]


def test_the_ollama_client_calls_tools_and_embeds(fleet: Fleet) -> None:
    calls = fleet.ollama.chat("tool", HELLO, tools=[TOOL]).message.tool_calls
    assert calls
    assert calls[0].function.name == "weather"
    streamed = [part.message.tool_calls for part in fleet.ollama.chat("tool", HELLO, tools=[TOOL], stream=True)]
    assert any(calls and calls[0].function.name == "weather" for calls in streamed)
    assert len(fleet.ollama.embed("embed", ["a", "b"]).embeddings) == 2
    assert fleet.ollama.embeddings("embed", "a").embedding


def test_the_ollama_client_looks_around(fleet: Fleet) -> None:
    listed = fleet.ollama.list().models
    assert {model.model for model in listed} == {
        "llama3.2:latest",
        "tool:latest",
        "embed:latest",
        "only-one:latest",
        "only-two:latest",
    }
    assert all(model.digest and model.size and model.modified_at and model.details for model in listed)
    assert fleet.ollama.show("only-one").capabilities
    fleet.ollama.generate("only-one", "hello")
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        fleet.ollama.chat("nope", HELLO)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as caught:
        fleet.ollama.show("nope")
    assert caught.value.status_code == 404


# openai


def test_the_openai_client_chats_and_completes_streamed_and_not(fleet: Fleet) -> None:
    chat = fleet.openai.chat.completions
    assert chat.create(model="llama3.2", messages=HELLO).choices[0].message.content
    chunks = list(chat.create(model="llama3.2", messages=HELLO, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage
    completions = fleet.openai.completions
    assert completions.create(model="llama3.2", prompt="hello").choices[0].text
    assert "".join(chunk.choices[0].text for chunk in completions.create(model="llama3.2", prompt="hello", stream=True))


def test_the_openai_client_calls_tools(fleet: Fleet) -> None:
    chat = fleet.openai.chat.completions
    calls = chat.create(model="tool", messages=HELLO, tools=[TOOL]).choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "weather"
    stream = chat.create(model="tool", messages=HELLO, tools=[TOOL], stream=True)
    assert any(chunk.choices and chunk.choices[0].delta.tool_calls for chunk in stream)


def test_the_openai_client_embeds_and_lists(fleet: Fleet) -> None:
    assert len(fleet.openai.embeddings.create(model="embed", input=["a", "b"], encoding_format="float").data) == 2
    assert {model.id for model in fleet.openai.models.list()} >= {"llama3.2:latest", "only-one:latest"}
    assert fleet.openai.models.retrieve("only-two").id == "only-two"
    with pytest.raises(openai.NotFoundError, match="model 'nope:latest' not found"):
        fleet.openai.models.retrieve("nope")
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        fleet.openai.chat.completions.create(model="nope", messages=HELLO)


def test_the_openai_client_gets_responses_streamed_and_not(fleet: Fleet) -> None:
    assert fleet.openai.responses.create(model="llama3.2", input="hello").output_text
    events = list(fleet.openai.responses.create(model="llama3.2", input="hello", stream=True))
    assert events[-1].type == "response.completed"
    assert any(event.type == "response.output_text.delta" for event in events)
    with pytest.raises(openai.NotFoundError):
        fleet.openai.responses.create(model="nope", input="hello")


# anthropic


def test_the_anthropic_client_gets_messages_streamed_and_not(fleet: Fleet) -> None:
    whole = fleet.anthropic.messages.create(model="llama3.2", max_tokens=20, messages=HELLO)
    assert whole.content[0].type == "text"
    with fleet.anthropic.messages.stream(model="llama3.2", max_tokens=20, messages=HELLO) as stream:
        assert "".join(stream.text_stream)
        assert stream.get_final_message().stop_reason
    with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
        fleet.anthropic.messages.create(model="nope", max_tokens=20, messages=HELLO)


def test_the_anthropic_client_calls_tools(fleet: Fleet) -> None:
    tools: list[Any] = [{"name": "weather", "description": "d", "input_schema": PARAMETERS}]
    whole = fleet.anthropic.messages.create(model="tool", max_tokens=20, messages=HELLO, tools=tools)
    assert [(block.type, getattr(block, "name", "")) for block in whole.content] == [("tool_use", "weather")]
    with fleet.anthropic.messages.stream(model="tool", max_tokens=20, messages=HELLO, tools=tools) as stream:
        assert [block.type for block in stream.get_final_message().content] == ["tool_use"]


# Agents that die


def chat_ollama(fleet: Fleet) -> object:
    return list(fleet.ollama.chat("only-one", HELLO, stream=True))


def generate_ollama(fleet: Fleet) -> object:
    return list(fleet.ollama.generate("only-one", "hello", stream=True))


def chat_openai(fleet: Fleet) -> object:
    return list(fleet.openai.chat.completions.create(model="only-one", messages=HELLO, stream=True))


def complete_openai(fleet: Fleet) -> object:
    return list(fleet.openai.completions.create(model="only-one", prompt="hello", stream=True))


def respond_openai(fleet: Fleet) -> object:
    return list(fleet.openai.responses.create(model="only-one", input="hello", stream=True))


def message_anthropic(fleet: Fleet) -> object:
    return list(fleet.anthropic.messages.create(model="only-one", max_tokens=9, messages=HELLO, stream=True))


@pytest.fixture
def dying(fleet: Fleet) -> Iterator[SimulatedOllama]:
    host = fleet.hosts[0]
    yield host
    host.faults.cut_after_chunks = host.faults.end_without_done_after_chunks = None


STREAMS = [
    (chat_ollama, ollama.ResponseError),
    (generate_ollama, ollama.ResponseError),
    (chat_openai, openai.APIError),
    (complete_openai, openai.APIError),
    (respond_openai, openai.APIError),
    (message_anthropic, anthropic.APIStatusError),
]


@pytest.mark.parametrize(("call", "error"), STREAMS, ids=lambda value: value.__name__)
def test_a_stream_that_breaks_off_is_the_clients_own_error(
    fleet: Fleet, dying: SimulatedOllama, call: Callable[[Fleet], object], error: type[Exception]
) -> None:
    dying.faults.cut_after_chunks = 3
    with pytest.raises(error, match="agent one failed in the middle of its answer"):
        call(fleet)
    dying.faults.cut_after_chunks = None
    dying.faults.end_without_done_after_chunks = 3
    with pytest.raises(error, match="the stream ended without its terminal event"):
        call(fleet)
    dying.faults.end_without_done_after_chunks = None
    assert call(fleet)


def test_an_answer_that_breaks_off_before_it_streams_is_the_clients_own_error(
    fleet: Fleet, dying: SimulatedOllama
) -> None:
    dying.faults.cut_after_chunks = 0
    with pytest.raises(ollama.ResponseError) as of_ollama:
        fleet.ollama.chat("only-one", HELLO)
    assert of_ollama.value.status_code == 502
    with pytest.raises(openai.APIStatusError) as of_openai:
        fleet.openai.responses.create(model="only-one", input="hello")
    assert of_openai.value.status_code == 502
    with pytest.raises(anthropic.APIStatusError) as of_anthropic:
        fleet.anthropic.messages.create(model="only-one", max_tokens=9, messages=HELLO)
    assert of_anthropic.value.status_code == 502
