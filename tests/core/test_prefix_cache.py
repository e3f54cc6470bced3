from __future__ import annotations

from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent, Source
from ollama_balancer.core.scoring.prefix_cache import PrefixCache


def agent(name: str) -> Agent:
    return Agent(name, Address("10.0.0.1", 11434), Source.STATIC, 0)


def test_the_longest_beginning_that_somebody_has_read_counts() -> None:
    known, a, b = PrefixCache(), agent("a"), agent("b")
    known.remember([(b"system", 10)], a)
    known.remember([(b"system, question", 30)], b)
    prefixes = [(b"system", 10), (b"system, question", 30), (b"system, question, answer, question", 80)]
    assert known.find(prefixes) == (b, 30)
    assert known.find(prefixes[:1]) == (a, 10)
    assert known.find([(b"another", 5)]) == (None, 0)
    assert known.find(()) == (None, 0)


def test_who_read_it_last_has_it() -> None:
    known, a, b = PrefixCache(), agent("a"), agent("b")
    known.remember([(b"x", 1)], a)
    known.remember([(b"x", 1)], b)
    assert known.find([(b"x", 1)]) == (b, 1)


def test_what_was_not_met_for_longest_makes_room() -> None:
    known, a = PrefixCache(most=2), agent("a")
    known.remember([(b"1", 1), (b"2", 2)], a)
    assert known.find([(b"1", 1)]) == (a, 1)
    known.remember([(b"3", 3)], a)
    assert len(known) == 2
    assert known.find([(b"2", 2)]) == (None, 0)
    assert known.find([(b"1", 1)]) == (a, 1)


def test_an_agent_that_is_gone_has_read_nothing() -> None:
    known, a, b = PrefixCache(), agent("a"), agent("b")
    known.remember([(b"1", 1)], a)
    known.remember([(b"2", 2)], b)
    known.forget(a)
    assert known.find([(b"1", 1)]) == (None, 0)
    assert known.find([(b"2", 2)]) == (b, 2)
