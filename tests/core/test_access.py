"""Keys: rights, models, validity; and that only a secret's hash is kept."""

from __future__ import annotations

import hashlib

import pytest

from ollama_balancer.core.access import SECRET, Key, Keyring, Limits, Right, Secret, hash_of, new_secret


def test_a_secret_can_be_told_by_its_looks_and_is_never_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(SECRET.fullmatch(secret.encode()) for secret in secrets)


def test_a_key_is_found_by_the_hash_of_its_secret() -> None:
    key = Key("alice")
    keyring = Keyring([Secret(hashlib.sha256(b"ob_x").digest(), key)])
    assert keyring.find(b"ob_x", 0.0) is key
    assert keyring.find(b"ob_y", 0.0) is None
    assert (keyring.names, keyring.had_keys, Keyring().had_keys) == ({"alice"}, True, False)


def test_the_key_that_a_host_got_by_joining_is_no_clients() -> None:
    host = Key("host@gpu-1", rights=frozenset({Right.REPORT}), agent="gpu-1")
    assert Keyring([Secret(b"1", host)]).clients == 0
    assert Keyring([Secret(b"1", host), Secret(b"2", Key("alice")), Secret(b"3", Key("alice"))]).clients == 1


def test_a_replaced_secret_is_valid_until_its_time() -> None:
    key = Key("alice")
    keyring = Keyring([Secret(hash_of(b"new"), key), Secret(hash_of(b"old"), key, 100.0)])
    assert keyring.find(b"old", 99.9) is key
    assert keyring.find(b"old", 100.0) is None
    assert keyring.find(b"new", 1e12) is key


@pytest.mark.parametrize(
    ("rights", "has"),
    [
        ({Right.INFER}, {Right.INFER}),
        ({Right.OPERATE}, {Right.OPERATE, Right.READ}),
        ({Right.REPORT, Right.READ}, {Right.REPORT, Right.READ}),
    ],
)
def test_who_operates_may_read_and_nothing_else_implies_another(rights: set[Right], has: set[Right]) -> None:
    key = Key("k", frozenset(rights))
    assert {right for right in Right if key.has(right)} == has


def test_a_key_is_valid_until_it_expires_or_is_disabled() -> None:
    assert Key("k", expires=10.0).problem(9.9) is None
    assert "expired" in (Key("k", expires=10.0).problem(10.0) or "")
    assert "disabled" in (Key("k", disabled=True).problem(0.0) or "")


@pytest.mark.parametrize(
    ("patterns", "model", "may"),
    [
        ((), "llama3.2:latest", True),
        (("llama3.2",), "llama3.2:latest", True),
        (("llama3.2",), "llama3.2:1b", False),
        (("llama3*",), "llama3.2:1b", True),
        (("qwen3:8b", "nomic-*"), "nomic-embed-text:latest", True),
        (("qwen3:8b",), "qwen3:80b", False),
        (("qwen3:?b",), "qwen3:8b", True),
        (("*/mine",), "me/mine:latest", True),
        (("llama3.2",), "xllama3.2:latest", False),
        (("LLama3*",), "llama3.2:latest", True),
        (("[!z]*",), "llama3.2:latest", False),
    ],
)
def test_patterns_name_models_as_people_write_them(patterns: tuple[str, ...], model: str, may: bool) -> None:
    assert Key("k", models=patterns).may_use(model) is may


def test_limits_are_there_if_any_is_set() -> None:
    assert not Limits()
    assert all(Limits(**{name: 1}) for name in Limits.__slots__)
