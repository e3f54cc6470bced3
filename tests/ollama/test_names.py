from __future__ import annotations

import pytest

from ollama_balancer.ollama.names import canonical_name, local_name


@pytest.mark.parametrize(
    "spelling",
    [
        "tiny-a",
        "TINY-A",
        " tiny-a",
        "tiny-a:latest",
        "Tiny-A:Latest",
        "library/tiny-a",
        "registry.ollama.ai/library/tiny-a:latest",
        "https://registry.ollama.ai/library/tiny-a",
    ],
)
def test_spellings_that_the_server_takes_for_one_model_are_one_name(spelling: str) -> None:
    assert canonical_name(spelling) == "tiny-a:latest"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("tiny-a:7b", "tiny-a:7b"),
        ("me/tiny-a", "me/tiny-a:latest"),
        ("registry.ollama.ai/me/tiny-a:Q4_K_M", "me/tiny-a:q4_k_m"),
        ("hf.co/me/tiny-a:Q4", "hf.co/me/tiny-a:q4"),
        ("localhost:5000/library/tiny-a", "localhost:5000/library/tiny-a:latest"),
    ],
)
def test_other_registries_namespaces_and_tags_are_other_models(spelling: str, name: str) -> None:
    assert canonical_name(spelling) == name
    assert canonical_name(name) == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Qwen3:8b:local", "qwen3:8b"),
        ("qwen3:LOCAL", "qwen3:latest"),
        ("library/qwen3: local ", "qwen3:latest"),
        ("localhost:5000/me/qwen3:local", "localhost:5000/me/qwen3:latest"),
        ("qwen3:cloud:local", "qwen3:cloud"),
        ("qwen3", None),
        ("qwen3:8b", None),
        ("local", None),
        (":local", None),
        ("qwen3:local:8b", None),
    ],
)
def test_local_behind_a_name_says_that_the_model_is_not_the_clouds(spelling: str, name: str | None) -> None:
    assert local_name(spelling) == name
