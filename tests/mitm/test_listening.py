"""The address that the log gives is one that can be reached."""

from __future__ import annotations

import pytest

from ollama_balancer.mitm.listening import Reach, reach


@pytest.mark.parametrize(
    ("listening", "expected"),
    [
        ([("0.0.0.0", 8080), ("::", 8080)], Reach("http://192.0.2.2:8080", local=False)),
        ([("", 8080)], Reach("http://192.0.2.2:8080", local=False)),
        ([("127.0.0.1", 8081)], Reach("http://127.0.0.1:8081", local=True)),
        ([("::1", 8081)], Reach("http://[::1]:8081", local=True)),
        ([("localhost", 8081)], Reach("http://localhost:8081", local=True)),
        ([("127.0.0.1", 8080), ("192.0.2.9", 8080)], Reach("http://192.0.2.9:8080", local=False)),
        ([("fd00::9", 8080)], Reach("http://[fd00::9]:8080", local=False)),
        ([], None),
    ],
)
def test_the_address_is_one_on_which_it_listens(listening: list[tuple[str, int]], expected: Reach | None) -> None:
    assert reach(listening, "192.0.2.2") == expected


def test_a_machine_without_an_address_is_not_given_one() -> None:
    assert reach([("0.0.0.0", 8080)], None) == Reach("http://THIS-HOST:8080", local=False)
