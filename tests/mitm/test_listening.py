"""The log's first lines name only addresses that can be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_balancer.mitm.listening import Reach, access_line, first_steps, reach
from ollama_balancer.storage.token import Token

KEPT, GIVEN = Token("x" * 8, Path("/home/me/.mitmproxy/ollama-balancer-token")), Token("x" * 8)


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


def test_who_listens_on_loopback_offers_nothing_to_other_machines() -> None:
    for token, report in (
        (KEPT, f"ollama-agent-reporter --balancer http://127.0.0.1:8080 --token-file {KEPT.file}"),
        (GIVEN, "ollama-agent-reporter --balancer http://127.0.0.1:8080 with $OLLAMA_BALANCER_TOKEN set"),
    ):
        clients, reporter, elsewhere = first_steps(Reach("http://127.0.0.1:8080", local=True), token)
        assert clients == "Clients on this machine: set OLLAMA_HOST=http://127.0.0.1:8080, or use it as the base URL."
        assert report in reporter
        assert "--listen-host 0.0.0.0" in elsewhere
    [line] = first_steps(None, KEPT)
    assert "--no-server" in line


def test_others_are_told_how_to_report() -> None:
    at = Reach("http://192.0.2.2:8080", local=False)
    assert first_steps(at, KEPT)[1].endswith(
        "run: ollama-agent-reporter --balancer http://192.0.2.2:8080 --token-file ollama-balancer-token"
    )
    assert str(KEPT.file) in first_steps(at, KEPT)[1]
    assert first_steps(at, GIVEN)[1].endswith("run: ollama-agent-reporter --balancer http://192.0.2.2:8080")
    assert "$OLLAMA_BALANCER_TOKEN" in first_steps(at, GIVEN)[1]


def test_who_may_come_in_is_one_line_and_says_how_to_change_it() -> None:
    local, everywhere = Reach("http://127.0.0.1:8080", local=True), Reach("http://192.0.2.2:8080", local=False)
    opened = access_line(everywhere, needs_key=False, keys=0)
    assert "http://192.0.2.2:8080" in opened
    assert "keys add" in opened
    assert "on this machine" in access_line(local, needs_key=False, keys=0)
    assert "(1 client key)" in access_line(everywhere, needs_key=True, keys=1)
    assert "no client key yet" in access_line(None, needs_key=True, keys=0)
