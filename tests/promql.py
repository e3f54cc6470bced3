"""So much of Prometheus's query language as the alert rules need: what an expression gives at one moment.

Instant vectors, comparisons that filter, `unless` and `or` with `on` and `ignoring`, arithmetic with a number, `sum`,
`absent`, and `rate` between two scrapes.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

type Labels = frozenset[tuple[str, str]]
type Vector = dict[Labels, float]

NAME = "__name__"
_TOKEN = re.compile(r'\s*(?:(\d+(?:\.\d+)?)|("[^"]*")|(\[\d+m\])|([A-Za-z_:][\w:]*)|(==|=~|!=|>=|<=|[(){},=<>*]))')
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {"==": operator.eq, ">": operator.gt, "<": operator.lt}


def scraped(text: str, job: str = "ollama-balancer", instance: str = "balancer") -> Vector:
    """What Prometheus has after it was answered that."""
    target = {"job": job, "instance": instance}
    vector = {
        frozenset((sample.labels | target | {NAME: sample.name}).items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return vector | {frozenset((target | {NAME: "up"}).items()): 1.0}


def unreachable(job: str = "ollama-balancer", instance: str = "balancer") -> Vector:
    """What it has when nobody answers."""
    return {frozenset({(NAME, "up"), ("job", job), ("instance", instance)}): 0.0}


def evaluate(expression: str, now: Vector, before: Vector | None = None, seconds: float = 300.0) -> Vector:
    """The series that the expression gives; an alert is raised for each. `before` is the scrape `seconds` earlier."""
    query = _Query(list(_tokens(expression)), now, before or {}, seconds)
    value = query.union()
    assert query.at == len(query.tokens), query.tokens[query.at :]
    assert isinstance(value, dict)
    return value


def _tokens(expression: str) -> Iterable[str]:
    expression = expression.strip()
    at = 0
    while at < len(expression):
        found = _TOKEN.match(expression, at)
        assert found, expression[at:]
        yield found.group(0).strip()
        at = found.end()


def _without(labels: Labels, *names: str) -> Labels:
    return frozenset(pair for pair in labels if pair[0] not in names)


@dataclass
class _Query:
    tokens: list[str]
    now: Vector
    before: Vector
    seconds: float
    at: int = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        assert token and wanted in ("", token), (wanted, token)
        self.at += 1
        return token

    def union(self) -> Vector | float:
        left = self.difference()
        while self.peek() == "or":
            self.take()
            key, right = self.matching(), self.difference()
            assert isinstance(left, dict)
            assert isinstance(right, dict)
            there = {key(labels) for labels in left}
            left = left | {labels: value for labels, value in right.items() if key(labels) not in there}
        return left

    def difference(self) -> Vector | float:
        left = self.comparison()
        while self.peek() == "unless":
            self.take()
            key, right = self.matching(), self.comparison()
            assert isinstance(left, dict)
            assert isinstance(right, dict)
            there = {key(labels) for labels in right}
            left = {labels: value for labels, value in left.items() if key(labels) not in there}
        return left

    def comparison(self) -> Vector | float:
        left = self.product()
        while self.peek() in _COMPARISONS:
            holds = _COMPARISONS[self.take()]
            right = self.product()
            assert isinstance(left, dict)
            if isinstance(right, dict):
                others = {_without(labels, NAME): value for labels, value in right.items()}
                pairs = [(labels, value, others.get(_without(labels, NAME))) for labels, value in left.items()]
            else:
                pairs = [(labels, value, right) for labels, value in left.items()]
            left = {labels: value for labels, value, other in pairs if other is not None and holds(value, other)}
        return left

    def product(self) -> Vector | float:
        left = self.primary()
        while self.peek() == "*":
            self.take()
            right = self.primary()
            assert isinstance(left, float)
            assert isinstance(right, dict)
            left = {labels: left * value for labels, value in right.items()}
        return left

    def primary(self) -> Vector | float:
        token = self.take()
        if token == "(":
            value = self.union()
            self.take(")")
            return value
        if token[0].isdigit():
            return float(token)
        if token == "sum":
            return self.sum()
        if token in ("absent", "rate"):
            self.take("(")
            if token == "rate":
                value = self.rate()
            else:
                found = self.union()
                value = {} if found else {frozenset(): 1.0}
            self.take(")")
            return value
        self.at -= 1
        return self.select(self.now)

    def names(self) -> tuple[str, ...]:
        self.take("(")
        names = []
        while self.peek() != ")":
            names.append(self.take())
            if self.peek() == ",":
                self.take()
        self.take(")")
        return tuple(names)

    def matching(self) -> Callable[[Labels], Labels]:
        if self.peek() == "on":
            self.take()
            wanted = self.names()
            return lambda labels: frozenset(pair for pair in labels if pair[0] in wanted)
        unwanted: tuple[str, ...] = ()
        if self.peek() == "ignoring":
            self.take()
            unwanted = self.names()
        return lambda labels: _without(labels, NAME, *unwanted)

    def sum(self) -> Vector:
        word = self.take() if self.peek() in ("by", "without") else "by"
        names = self.names() if self.tokens[self.at - 1] == word and word in ("by", "without") else ()
        self.take("(")
        value = self.union()
        self.take(")")
        assert isinstance(value, dict)
        sums: Vector = {}
        for labels, each in value.items():
            kept = (
                _without(labels, NAME, *names) if word == "without" else frozenset(p for p in labels if p[0] in names)
            )
            sums[kept] = sums.get(kept, 0.0) + each
        return sums

    def rate(self) -> Vector:
        start = self.at
        now = self.select(self.now)
        self.at = start
        before = self.select(self.before)
        assert self.take().startswith("[")
        # A series that is new has no increase yet.
        return {
            _without(labels, NAME): (value - before[labels]) / self.seconds
            for labels, value in now.items()
            if labels in before
        }

    def select(self, vector: Vector) -> Vector:
        name = self.take()
        tests: list[tuple[str, str, str]] = []
        if self.peek() == "{":
            self.take()
            while self.peek() != "}":
                tests.append((self.take(), self.take(), self.take().strip('"')))
                if self.peek() == ",":
                    self.take()
            self.take("}")
        return {labels: value for labels, value in vector.items() if _fits(dict(labels), name, tests)}


def _fits(labels: dict[str, str], name: str, tests: list[tuple[str, str, str]]) -> bool:
    return labels[NAME] == name and all(
        (re.fullmatch(value, labels.get(label, "")) is not None) if how == "=~" else labels.get(label, "") == value
        for label, how, value in tests
    )
