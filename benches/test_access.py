"""What a request with a key costs more than one without: find and check the key, take its limits, settle and count."""

from __future__ import annotations

import itertools
import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ollama_balancer.core.access import Key, Keyring, Limits, Secret, hash_of, new_secret
from ollama_balancer.core.demand import Demand
from ollama_balancer.core.ledger import Entry, Ledger
from ollama_balancer.gateway.access import INFER, Access, AccessMode
from ollama_balancer.gateway.callers import read_caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.ollama.requests import ParsedRequest
from ollama_balancer.ollama.routes import Dialect, find_route
from ollama_balancer.storage.token import Token
from tests.core.fakes import Clock

KEYS = 10_000
"""Up to which a request may cost 25 us more."""

LIMITS = Limits(requests_per_minute=10**9, tokens_per_minute=10**12, tokens_per_day=10**12, parallel=10**6)


@pytest.mark.parametrize("limits", [Limits(), LIMITS], ids=["no limits", "all limits"])
@pytest.mark.parametrize("models", [(), ("qwen3*", "llama3*")], ids=["all models", "patterns"])
def test_a_request_with_a_key(benchmark: BenchmarkFixture, limits: Limits, models: tuple[str, ...]) -> None:
    secrets = [new_secret() for _ in range(KEYS)]
    access = Access(Clock(), Clock())
    access.mode = AccessMode.KEYS
    access.keyring = Keyring(
        Secret(hash_of(secret.encode()), Key(f"key-{n}", limits=limits, models=models))
        for n, secret in enumerate(secrets)
    )
    fields = ((b"Authorization", b"Bearer " + secrets[KEYS // 2].encode()), (b"Content-Type", b"application/json"))
    token, clock, route = Token("t" * 43), Clock(), find_route("/api/chat")

    def request() -> object:
        caller, _, _ = read_caller(
            fields, b"/api/chat", token, b"salt", client_id="c", address="10.0.0.7", find_key=access.find
        )
        assert access.refusal(caller, INFER) is None
        context = RequestContext(caller, Dialect.OLLAMA, clock, route=route, model="llama3.2")
        context.demand = Demand("llama3.2:latest", tokens=100)
        refused = access.admit(context, ParsedRequest("llama3.2"), b"")
        access.limit_headers(caller)
        access.settle(context)
        return refused

    assert benchmark(request) is None


def test_the_same_request_without_one(benchmark: BenchmarkFixture) -> None:
    access, token, clock = Access(Clock()), Token("t" * 43), Clock()
    fields = ((b"Authorization", b"Bearer " + b"x" * 46), (b"Content-Type", b"application/json"))

    def request() -> object:
        caller, _, _ = read_caller(
            fields, b"/api/chat", token, b"salt", client_id="c", address="10.0.0.7", find_key=access.find
        )
        return RequestContext(caller, Dialect.OLLAMA, clock, model="llama3.2")

    benchmark(request)


def test_counting_what_a_request_has_used(benchmark: BenchmarkFixture) -> None:
    ledger = Ledger(time.time)
    entries = itertools.cycle(
        [Entry(f"key-{n}", f"model-{n % 50}", "gpu-1", "succeeded", 100, 50, 2.5, 0.1) for n in range(KEYS)]
    )
    benchmark(lambda: ledger.add(next(entries)))
    assert ledger.used_today("key-0") > 0
