from __future__ import annotations

from collections.abc import Iterator

import pytest

from ollama_balancer.ollama.suggestions import LONGEST, MAX_COMPARED, did_you_mean, nearest_names

NAMES = [
    "llama3.2:3b",
    "llama3.2:latest",
    "llama3.1:8b",
    "qwen3-coder:30b",
    "gpt-oss:20b",
    "gpt-oss:120b",
    "mxbai:latest",
]


@pytest.mark.parametrize(
    ("model", "nearest"),
    [
        ("lama3.2", "llama3.2"),
        ("Llama3.2:3B ", "llama3.2:3b"),
        ("llama3.2:7b", "llama3.2:3b"),
        ("qwen-coder:30b", "qwen3-coder:30b"),
        ("gptoss:120b", "gpt-oss:120b"),
        ("somebody/mxbai", "mxbai"),
    ],
)
def test_the_nearest_name_comes_first_as_one_would_type_it(model: str, nearest: str) -> None:
    assert nearest_names(model, NAMES)[0] == nearest
    assert nearest_names(model, reversed(NAMES))[0] == nearest


@pytest.mark.parametrize("model", ["nope", "", ":", "x", "/", "deepseek-r1", "l" * (LONGEST + 1)])
def test_a_name_that_is_near_none_gets_none(model: str) -> None:
    assert nearest_names(model, NAMES) == []
    assert did_you_mean(model, NAMES) == ""


def test_at_most_three_names_are_told() -> None:
    names = [f"llama3.2:{size}b" for size in range(10)]
    assert len(nearest_names("lama3.2:3b", names)) == 3
    assert did_you_mean("lama3.2:3b", names).startswith(", did you mean 'llama3.2:3b', 'llama3.2:")
    assert did_you_mean("lama", ["llama:latest", "lamb:latest"]) == ", did you mean 'llama' or 'lamb'?"


def test_of_many_names_a_bounded_number_is_looked_at() -> None:
    looked_at = 0

    def names() -> Iterator[str]:
        nonlocal looked_at
        for number in range(100_000):
            looked_at += 1
            yield f"model-{number}:latest"

    assert nearest_names("model-x", names())
    assert looked_at <= MAX_COMPARED + 1


def test_names_that_cannot_be_shown_are_not_told() -> None:
    assert nearest_names("llama3", ["llama3\x1b[2J:latest", "llama3\n:latest", "l" * 200 + ":latest"]) == []
