"""How callers may spell models and write JSON."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.simulator import SimulatedModel, SimulatedOllama
from ollama_balancer.simulator.models import model_key
from ollama_balancer.simulator.requests import RefusedError, keep_alive, read_object
from ollama_balancer.simulator.text import embed, generate, prompt_tokens


@pytest.mark.parametrize(
    "spelling",
    ["Llama3.2", "llama3.2:latest", "library/llama3.2", "registry.ollama.ai/library/LLAMA3.2:latest", " llama3.2"],
)
def test_these_spellings_name_the_same_model(spelling: str) -> None:
    assert model_key(spelling) == model_key("llama3.2")


@pytest.mark.parametrize("spelling", ["llama3.2:1b", "me/llama3.2", "hf.co/library/llama3.2"])
def test_another_tag_namespace_or_registry_is_another_model(spelling: str) -> None:
    assert model_key(spelling) not in (None, model_key("llama3.2"))


@pytest.mark.parametrize("spelling", ["", "a b", "a/../b", "a/b/c/d"])
def test_these_name_no_model(spelling: str) -> None:
    assert model_key(spelling) is None


def test_a_host_refuses_two_models_of_the_same_name() -> None:
    with pytest.raises(ValueError, match="same name"):
        SimulatedOllama(models=[SimulatedModel("a"), SimulatedModel("A:latest")])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (1.5, 1.5), ("10m", 600), ("1h30m", 5400), ("500ms", 0.5), ("20", 20), (None, None), ("soon", None)],
)
def test_keep_alive_is_seconds_or_a_duration(value: object, seconds: float | None) -> None:
    assert keep_alive(value) == seconds


@pytest.mark.parametrize("value", [-1, "-1", "-1m", 10**400, 1e308])
def test_a_keep_alive_below_0_or_beyond_all_bounds_is_for_ever(value: object) -> None:
    assert keep_alive(value) == 9.2e9


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "missing request body"),
        (b'{"model": "a', "unexpected EOF"),
        (b"hello", "invalid character 'h' looking for beginning of value"),
        (b"{x}", "invalid character 'x' looking for beginning of object key string"),
        (b"[]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        (b'{"stream": "yes"}', "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool"),
        (b'{"a": NaN}', "invalid character 'N' looking for beginning of value"),
        (b"[" * 100_000, "exceeded max depth"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, error: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read_object("/api/chat", body)
    assert refused.value.answer.status == 400
    assert error.encode() in refused.value.answer.body


@given(st.binary())
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    with suppress(RefusedError):
        assert isinstance(read_object("/api/generate", body), dict)


@given(st.text(), st.integers(1, 200))
def test_text_is_the_same_for_the_same_seed_and_prompt_and_a_limit_keeps_its_beginning(prompt: str, limit: int) -> None:
    whole, cut_short = generate(1, prompt, mean=50)
    assert not cut_short
    assert 25 <= len(whole) <= 75
    part, cut_short = generate(1, prompt, mean=50, limit=limit)
    assert part == whole[:limit]
    assert cut_short == (limit < len(whole))


@given(st.text(), st.integers(1, 200))
def test_text_is_whole_sentences_that_say_that_they_are_simulated(prompt: str, mean: int) -> None:
    text = "".join(generate(1, prompt, mean)[0])
    assert text.endswith(".")
    assert "imulated" in text
    assert text.isascii()


def test_another_seed_or_prompt_gives_another_text() -> None:
    assert len({"".join(generate(seed, prompt, 50)[0]) for seed in (1, 2) for prompt in ("a", "b")}) == 4


def test_an_embedding_has_length_1_and_is_the_same_for_the_same_text() -> None:
    assert embed(0, "a") == embed(0, "a") != embed(0, "b")
    assert sum(x * x for x in embed(0, "a")) == pytest.approx(1, abs=1e-5)


def test_a_prompt_has_a_quarter_as_many_tokens_as_bytes() -> None:
    assert (prompt_tokens("x" * 400), prompt_tokens(""), prompt_tokens("ä" * 4)) == (100, 1, 2)
