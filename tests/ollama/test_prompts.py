"""What is read of a prompt: how long it is, with which options, and whether it goes on from another."""

from __future__ import annotations

import functools
import json
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_balancer.ollama.prompts import (
    IMAGE_TOKENS,
    MAX_PREFIXES,
    MAX_TOKENS,
    PromptReading,
    context_prefix,
    read_prompt,
)
from ollama_balancer.ollama.requests import read_request
from ollama_balancer.ollama.routes import ROUTES, find_route
from ollama_balancer.ollama.shapes import read_event

RECORDINGS = Path(__file__).parents[1] / "recordings"
MODEL = "tiny-a:latest"
LONG = "What is the answer to the great question of life, the universe and everything? " * 10


def demand(path: str, body: bytes | dict[str, Any], model: str = MODEL) -> PromptReading:
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    route = find_route(path)
    assert route
    return read_prompt(route, model, body, read_request(route, path, body).members)


def goes_on(later: PromptReading, earlier: PromptReading) -> int:
    """How many tokens of a prompt are known to whoever has read the other one."""
    known = dict(earlier.new_prefixes)
    return max((known[key] for key, _ in later.prefixes if key in known), default=0)


def all_of(earlier: PromptReading) -> int:
    tokens = earlier.new_prefixes[-1][1]
    assert tokens == pytest.approx(earlier.tokens, rel=0.02)
    return tokens


def user(text: str = LONG) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str = "42") -> dict[str, str]:
    return {"role": "assistant", "content": text}


CHATS = ["/api/chat", "/v1/chat/completions", "/v1/messages"]


@pytest.mark.parametrize("path", CHATS)
def test_the_next_turn_of_a_chat_is_known_as_such(path: str) -> None:
    messages = [user("Who are you? " + LONG), assistant(), user("And I? " + LONG)]
    first = demand(path, {"model": "tiny-a", "messages": messages[:1]})
    second = demand(path, {"model": "tiny-a", "messages": messages, "stream": True})
    third = demand(path, {"messages": [*messages, assistant("You."), user("Why?")], "model": "tiny-a"})
    assert goes_on(second, first) == all_of(first)
    assert goes_on(third, second) == all_of(second)
    assert goes_on(third, first) == all_of(first)
    assert goes_on(second, second) == all_of(second), "the same request again"


@pytest.mark.parametrize("path", CHATS)
def test_another_chat_another_model_and_other_tools_are_not(path: str) -> None:
    turns = [user(), assistant(), user("And?")]
    first = demand(path, {"messages": [user()]})
    assert goes_on(demand(path, {"messages": turns}), first)
    assert not goes_on(demand(path, {"messages": [user("No. " + LONG), *turns[1:]]}), first)
    assert not goes_on(demand(path, {"messages": turns}, "other:latest"), first)
    assert not goes_on(demand(path, {"messages": turns, "tools": [{"type": "function"}]}), first)


TOOL = {"type": "function"}


@pytest.mark.parametrize("path", [*CHATS, "/v1/responses"])
@pytest.mark.parametrize("tools", [None, [], {}, "run", [TOOL]])
def test_tools_that_may_be_called_are_seen(path: str, tools: object) -> None:
    assert demand(path, {"messages": [user()], "tools": tools}).tools is (tools == [TOOL])
    assert not demand(path, {"messages": [user()]}).tools


def test_where_there_are_no_tools_none_are_seen() -> None:
    assert not demand("/api/chat", b'{"messages": [], "tools": [\n]}').tools
    assert not demand("/api/generate", {"prompt": LONG, "tools": [TOOL]}).tools


def test_with_options_that_load_the_model_anew_nothing_is_known() -> None:
    first = demand("/api/chat", {"messages": [user()]})
    assert goes_on(demand("/api/chat", {"messages": [user()], "options": {"temperature": 1}}), first)
    assert not goes_on(demand("/api/chat", {"messages": [user()], "options": {"num_ctx": 1}}), first)


def test_the_system_prompt_that_several_conversations_begin_with_is_known() -> None:
    system = {"role": "system", "content": LONG}
    one = demand("/api/chat", {"messages": [system, user("One " + LONG)]})
    other = demand("/api/chat", {"messages": [system, user("Two " + LONG)]})
    assert 0 < goes_on(other, one) < one.tokens


def test_a_response_goes_on_from_its_input() -> None:
    first = demand("/v1/responses", {"instructions": "Be brief.", "input": [user()]})
    second = demand("/v1/responses", {"instructions": "Be brief.", "input": [user(), assistant(), user()]})
    assert goes_on(second, first) == all_of(first)
    assert not goes_on(demand("/v1/responses", {"instructions": "Be long.", "input": [user(), assistant()]}), first)
    assert demand("/v1/responses", {"input": "the quick"}).tokens == 2


def test_the_mark_of_what_is_to_be_cached_moves_with_the_conversation() -> None:
    def text(words: str, **more: object) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": words, **more}]}

    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    first = demand("/v1/messages", {"messages": [text(LONG, **mark)]})
    second = demand("/v1/messages", {"messages": [text(LONG), assistant(), text("And?", **mark)]})
    assert goes_on(second, first) == all_of(first)


@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions"])
def test_a_raw_prompt_goes_on_from_a_shorter_one(path: str) -> None:
    start = " ".join(f"word {number}" for number in range(2_000))
    first = demand(path, {"prompt": start, "raw": True})
    second = demand(path, {"prompt": start + " and more of it", "raw": True})
    assert first.tokens - 600 < goes_on(second, first) <= first.tokens
    assert not goes_on(demand(path, {"prompt": "Not " + start}), first)
    assert goes_on(first, first)


def recorded_generate() -> tuple[bytes, dict[str, Any]]:
    recording = json.loads((RECORDINGS / "generate_nostream.json").read_text())
    return recording["request"]["body"]["text"].encode(), json.loads(recording["response"]["body"]["text"])


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (",\n    ", ": ")])
def test_a_context_goes_on_from_the_answer_that_gave_it(separators: tuple[str, str]) -> None:
    asked, answer = recorded_generate()
    assert len(answer["context"]) > 1
    for context in (answer["context"], [*range(100_000, 100_500)]):
        event = read_event({**answer, "context": context})
        assert event.context
        prefix = context_prefix(MODEL, "", event.context)
        body = json.dumps({"model": "tiny-a", "prompt": "And?", "context": context}, separators=separators).encode()
        later = demand("/api/generate", body)
        assert later.prefixes == (prefix,)
        assert prefix[1] == len(context)
        assert later.tokens >= len(context)
        assert demand("/api/generate", asked).prefixes != later.prefixes


def test_a_context_of_something_else_is_no_error() -> None:
    for context in (b"[]", b"null", b"5", b'["a"]', b"[[1]]", b"{}", b"[1e5,2]", b"[" + b"9" * 10_000 + b"]"):
        demand("/api/generate", b'{"prompt": "And?", "context": %b}' % context)
    assert read_event({"done": True, "context": []}).context is None
    assert read_event({"done": True, "context": [10**400, "x", None, 5]}).context is not None


@pytest.mark.parametrize(
    ("options", "runner"),
    [
        ({}, ""),
        ({"temperature": 0.5, "seed": 1, "num_predict": 5}, ""),
        ({"num_ctx": 8192}, "num_ctx=8192"),
        ({"num_gpu": 1, "num_ctx": 8192.0}, "num_ctx=8192,num_gpu=1"),
        ({"use_mmap": False, "num_thread": 4, "num_batch": 8, "main_gpu": 0},
         "main_gpu=0,num_batch=8,num_thread=4,use_mmap=0"),
        ({"num_ctx": None, "num_gpu": "all", "num_batch": [1], "num_thread": 1e300}, ""),
    ],
)  # fmt: skip
def test_the_options_with_which_a_model_is_loaded_have_one_spelling(options: dict[str, Any], runner: str) -> None:
    for path in ("/api/chat", "/api/generate", "/api/embed"):
        assert demand(path, {"options": options}).runner == runner
    assert demand("/v1/chat/completions", {"options": options}).runner == ""


def test_a_request_that_forbids_the_context_to_shift_has_the_model_loaded_anew() -> None:
    assert demand("/api/chat", {"shift": False}).runner == "shift=0"
    assert demand("/api/generate", {"shift": False, "options": {"num_ctx": 8}}).runner == "num_ctx=8,shift=0"
    assert demand("/api/chat", {"shift": True}).runner == demand("/api/chat", {"shift": None}).runner == ""
    assert demand("/v1/chat/completions", {"shift": False}).runner == ""


@pytest.mark.parametrize("options", [b"null", b"[]", b'"x"', b"[" * 9_000 + b"]" * 9_000, b'{"num_ctx": NaN}'])
def test_options_that_are_none_are_no_error(options: bytes) -> None:
    assert demand("/api/chat", b'{"options": ' + options + b"}").runner == ""


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        ("/api/chat", {"options": {"num_predict": 7}}, 7),
        ("/api/chat", {"options": {"num_predict": -1}}, None),
        ("/api/chat", {"options": {"num_predict": True}}, None),
        ("/api/chat", {"max_tokens": 5}, None),
        ("/v1/chat/completions", {"max_tokens": 5}, 5),
        ("/v1/chat/completions", {"max_completion_tokens": 6}, 6),
        ("/v1/chat/completions", {"max_tokens": -5}, None),
        ("/v1/chat/completions", {"max_tokens": "5"}, None),
        ("/v1/completions", {"max_tokens": 5}, 5),
        ("/v1/messages", {"max_tokens": 5}, 5),
        ("/v1/responses", {"max_output_tokens": 5}, 5),
        ("/api/embed", {"input": "x"}, 0),
        ("/v1/embeddings", {"input": "x"}, 0),
        ("/api/embeddings", {"prompt": "x"}, 0),
    ],
)
def test_the_limit_of_an_answer(path: str, body: dict[str, Any], limit: int | None) -> None:
    assert demand(path, body).output_limit == limit


def picture(size: int) -> str:
    return b64encode(Random(1).randbytes(size)).decode()


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_a_picture_counts_as_one_whatever_its_size(size: int) -> None:
    data = picture(size)
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}
    source = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    for path, body in (
        ("/api/chat", {"messages": [{**user("What is it?"), "images": [data]}]}),
        ("/api/generate", {"prompt": "What is it?", "images": [data]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [url]}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [source]}]}),
    ):
        assert IMAGE_TOKENS <= demand(path, body).tokens < IMAGE_TOKENS + 100
    two = demand("/api/chat", {"messages": [{**user("And?"), "images": [data, data[::-1]]}]})
    assert 2 * IMAGE_TOKENS <= two.tokens < 2 * IMAGE_TOKENS + 100


def test_long_text_is_text() -> None:
    for text in (LONG * 100, "汉" * 20_000, 'He said "no" and left. ' * 5_000):
        body = json.dumps({"messages": [user(text)]}, ensure_ascii=False).encode()
        assert demand("/api/chat", body).tokens == pytest.approx(len(body) / 4, rel=0.05)


def test_no_prompt_is_longer_than_what_a_host_reads() -> None:
    assert demand("/api/chat", {"messages": [user(LONG * 2_000)]}).tokens == MAX_TOKENS
    assert demand("/api/chat", {"messages": [user(LONG * 2_000)], "options": {"num_ctx": 4096}}).tokens == 4096


def test_of_a_long_chat_the_longest_beginnings_are_looked_for() -> None:
    messages = [user(f"{number} {LONG}") for number in range(200)]
    first = demand("/api/chat", {"messages": messages[:-2]})
    later = demand("/api/chat", {"messages": messages})
    assert len(later.prefixes) == MAX_PREFIXES
    assert goes_on(later, first) == all_of(first)
    assert len(first.new_prefixes) == 2


def test_a_short_beginning_is_not_remembered() -> None:
    assert demand("/api/chat", {"messages": [user("Hi")]}).new_prefixes == ()


@pytest.mark.parametrize(
    "recording",
    [path for path in sorted(RECORDINGS.glob("*.json")) if '"path": "/api/' in path.read_text()[:2_000]],
    ids=lambda path: path.stem,
)
def test_what_real_clients_sent_can_be_read(recording: Path) -> None:
    request = json.loads(recording.read_text())["request"]
    body = (request.get("body") or {}).get("text")
    route = find_route(request["path"].partition("?")[0])
    if body is None or route is None or not route.runs:
        return
    read = demand(route.path, body.encode())
    assert read.tokens <= len(body)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
KEYS = ["messages", "prompt", "input", "system", "tools", "context", "options", "images", "instructions", "max_tokens"]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([route for route in ROUTES if route.runs]), st.dictionaries(st.sampled_from(KEYS), ANY))
def test_nothing_that_is_sent_is_an_error(route: Any, body: dict[str, Any]) -> None:
    read = demand(route.path, body)
    assert 0 <= read.tokens <= MAX_TOKENS
    assert len(read.prefixes) <= MAX_PREFIXES
    for _, tokens in read.prefixes:
        assert tokens >= 0


HOSTILE: dict[str, Callable[[], bytes]] = {
    "brackets": lambda: b'{"messages": [' + b"[" * 9_000 + b"]" * 9_000 + b"]}",
    "many messages": lambda: b'{"messages": [' + b"{}," * 1_000_000 + b"{}]}",
    "many numbers": lambda: b'{"context": [' + b"1," * 5_000_000 + b"1]}",
    "marks": lambda: b'{"messages": [{"x": "' + b'"cache_control":{' * 500_000 + b'"}]}',
    "commas": lambda: b'{"messages": ["' + b"," * 8_000_000 + b'"cache_control"' + b'"]}',
    "spaces": lambda: b'{"messages": [{' + b" " * 60_000 + b'"cache_control"' + b" " * 60_000 + b":" + b"1}]}",
    "quotes": lambda: b'{"messages": ["' + b'\\"' * 4_000_000 + b'"]}',
    "quotes at a distance": lambda: b'{"messages": ["' + (b"x" * 4_000 + b'\\"') * 2_000 + b'"]}',
    "one text": lambda: b'{"prompt": "' + b"x " * 5_000_000 + b'"}',
}


def seconds(function: Callable[[], object]) -> float:
    """Of the thread's CPU, the least of three times: what else the machine does adds to it."""
    times = []
    for _ in range(3):
        before = time.thread_time()
        function()
        times.append(time.thread_time() - before)
    return min(times)


@functools.cache
def allowed() -> float:
    """Twice what the standard library takes to read three megabytes of small values."""
    many = HOSTILE["many messages"]()
    return 2 * seconds(lambda: json.loads(many))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.chaos
def test_no_body_holds_up_the_others(name: str) -> None:
    """Ten megabytes at most."""
    body = HOSTILE[name]()
    for path in ("/api/chat", "/api/generate", "/v1/messages"):
        assert seconds(functools.partial(demand, path, body)) < allowed()
