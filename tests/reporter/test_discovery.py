"""Balancers that are found by what they announce, and those that are not believed."""

from __future__ import annotations

import asyncio
import logging

import pytest

from agent_reporter import announcement, discovery
from agent_reporter.announcement import Announcement, prove, read, usable
from agent_reporter.discovery import Discovery

from .stubs import free_port

TOKEN = "the-fleets-token"
ADDRESS = "192.0.2.7"


@pytest.fixture(autouse=True)
def _quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcement, "ROUNDS", 10)


def announced(*addresses: str, port: int = 8080, token: str = TOKEN) -> Announcement:
    return Announcement(addresses, port, prove(token, port, addresses))


def test_an_announcement_is_proven_by_the_token_for_its_own_addresses_and_port_alone() -> None:
    told = announced("192.0.2.7", "2001:db8::7")
    assert told.proven(TOKEN)
    assert not told.proven("another-token")
    for addresses, port in (
        (("192.0.2.8",), 8080),
        (("192.0.2.7", "192.0.2.8", "2001:db8::7"), 8080),
        (("192.0.2.7",), 8080),
        (told.addresses, 8081),
    ):
        assert not Announcement(addresses, port, told.proof).proven(TOKEN)
    assert Announcement(("2001:db8::7", "192.0.2.7"), 8080, told.proof).proven(TOKEN), "the order is the network's"


def test_ipv4_is_tried_first() -> None:
    assert announced("2001:db8::7", "192.0.2.7").urls == ["http://192.0.2.7:8080", "http://[2001:db8::7]:8080"]


@pytest.mark.parametrize(
    ("addresses", "port", "properties"),
    [
        ([], 8080, {b"proof": b"a" * 64}),
        ([ADDRESS] * 17, 8080, {b"proof": b"a" * 64}),
        ([ADDRESS], 0, {b"proof": b"a" * 64}),
        ([ADDRESS], None, {b"proof": b"a" * 64}),
        ([ADDRESS], 8080, {}),
        ([ADDRESS], 8080, {b"proof": None}),
        ([ADDRESS], 8080, {b"proof": b"a" * 63}),
        ([ADDRESS], 8080, {b"proof": b"\xff" * 64}),
    ],
)
def test_what_is_no_balancers_announcement_is_refused(
    addresses: list[str], port: int | None, properties: dict[bytes, bytes | None]
) -> None:
    with pytest.raises(ValueError, match="no balancer's announcement"):
        read(addresses, port, properties)


def test_addresses_by_which_nobody_else_reaches_this_machine_are_not_announced() -> None:
    others = ["127.0.0.1", "::1", "fe80::1%eth0", "169.254.3.4", "0.0.0.0", "224.0.0.251", "eth0", "02:fc:00:00:00:01"]
    assert usable([*others, "192.0.2.7", "::ffff:192.0.2.7", "2001:db8::7"]) == ("192.0.2.7", "2001:db8::7")
    assert len(usable(f"192.0.2.{number}" for number in range(1, 200))) == 16


class Found(list[str]):
    def looks_at(self, *announcements: Announcement) -> None:
        self.settled: list[bool] = []

        async def run() -> None:
            looking = Discovery(TOKEN, self.append)
            async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
                self.port = server.sockets[0].getsockname()[1]
                for told in announcements or (announced("127.0.0.1", port=self.port),) * 2:
                    self.settled.append(await looking.verify(told, f"gpu\x1b[31m.{announcement.SERVICE}"))

        asyncio.run(run())


def test_a_balancer_that_proves_that_it_knows_the_token_is_handed_on_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = Found()
    found.looks_at()
    assert found == [f"http://127.0.0.1:{found.port}"]
    assert [record.getMessage() for record in caplog.records] == [f"found balancer gpu?[31m at {found[0]}"]


def test_one_that_does_not_is_never_connected_to_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(urls: list[str]) -> str | None:
        raise AssertionError("it was connected to")

    monkeypatch.setattr(discovery, "reachable", refused)
    found = Found()
    found.looks_at(*[announced(ADDRESS, token="another-token")] * 3)
    assert found == []
    assert found.settled == [True] * 3
    assert [record.getMessage() for record in caplog.records] == [
        f"gpu?[31m at http://{ADDRESS}:8080 announces itself as a balancer with a different token: ignored"
    ]


def test_one_that_is_not_reached_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    found = Found()
    found.looks_at(*[announced("127.0.0.1", port=free_port())] * 2)
    assert found == []
    assert found.settled == [False, False], "it is looked at again"
    assert caplog.text.count("cannot reach balancer gpu") == 1


def test_no_more_balancers_are_reported_to_than_a_fleet_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reached(urls: list[str]) -> str | None:
        return urls[0]

    monkeypatch.setattr(discovery, "reachable", reached)
    found = Found()
    found.looks_at(*(announced(f"192.0.2.{number}") for number in range(1, 40)))
    assert len(found) == discovery.MAX_FOUND
