from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import psutil
import pytest

from ollama_balancer.gateway.networks import (
    LINES_SECONDS,
    MAX_LINES,
    MAX_LOGGED,
    REFRESH_SECONDS,
    ClientNetworks,
    Network,
    forwarded_address,
    own_networks,
    read_network,
)
from tests.core.fakes import Clock

PUBLIC = "8.8.8.8"


def networks(
    *allowed: str, clock: Clock | None = None, own: Callable[[], Iterable[Network]] = lambda: ()
) -> ClientNetworks:
    made = ClientNetworks(clock or Clock(), own)
    made.allowed = tuple(network for entry in allowed for network in read_network(entry))
    return made


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.20",
        "169.254.1.1",
        "100.64.0.7",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::5",
        "::ffff:192.168.1.20",
        "::ffff:127.0.0.1",
    ],
)
def test_what_cannot_come_from_the_internet_may_connect(address: str) -> None:
    assert networks().allow(address)


@pytest.mark.parametrize(
    "address",
    [PUBLIC, "2001:4860:4860::8888", f"::ffff:{PUBLIC}", "2001:4860:4860::8888%eth0", "", "somewhere", "8.8.8"],
)
def test_public_addresses_and_what_is_none_may_not(address: str) -> None:
    assert not networks().allow(address)


@pytest.mark.parametrize("entry", [PUBLIC, "8.8.0.0/16", "8.8.1.2/16", "*", "0.0.0.0/0"])
def test_the_option_lets_addresses_and_networks_in(entry: str) -> None:
    assert networks(entry).allow(PUBLIC)
    assert networks(entry).allow(f"::ffff:{PUBLIC}")
    assert networks("9.9.9.9", entry).allow(PUBLIC)
    assert not networks("8.7.0.0/16", "2001:db8::/32").allow(PUBLIC)


def test_an_asterisk_lets_both_versions_in() -> None:
    assert networks("*").allow("2001:4860:4860::8888")


def test_the_networks_of_the_machines_own_interfaces_may_connect_and_are_read_now_and_then() -> None:
    clock, reads = Clock(), []

    def own() -> Iterable[Network]:
        reads.append(clock.now)
        return [ipaddress.ip_network("8.8.8.0/24")] if len(reads) > 1 else []

    these = networks(clock=clock, own=own)
    assert not any(these.allow(f"8.8.8.{number}") for number in range(100))
    assert len(reads) == 1
    clock.now += REFRESH_SECONDS
    assert these.allow(PUBLIC)
    assert not these.allow("8.8.9.8")
    assert len(reads) == 2
    assert these.allow("127.0.0.1")


def test_interfaces_that_cannot_be_read_let_nobody_in() -> None:
    def own() -> Iterable[Network]:
        raise PermissionError(1, "not permitted")

    assert not networks(own=own).allow(PUBLIC)


def test_the_machines_own_networks_are_those_of_its_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def card(family: int, address: str, netmask: str | None) -> SimpleNamespace:
        return SimpleNamespace(family=family, address=address, netmask=netmask)

    cards = {
        "eth0": [
            card(2, "198.51.100.7", "255.255.255.0"),
            card(10, "2001:db8:1::7", "ffff:ffff:ffff:ffff::"),
            card(10, "fe80::1%eth0", "ffff:ffff:ffff:ffff::"),
            card(17, "02:00:00:00:00:01", None),
        ],
        "tun0": [card(2, "203.0.113.9", None), card(2, "203.0.113.10", "0.0.0.0")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: cards)
    assert [str(network) for network in own_networks()] == [
        "198.51.100.0/24",
        "2001:db8:1::/64",
        "fe80::/64",
        "203.0.113.9/32",
        "203.0.113.10/32",
    ]


def test_this_machine_has_a_network_of_its_own() -> None:
    assert any(ipaddress.ip_address("127.0.0.1") in network for network in own_networks())


def test_each_address_is_named_once_with_the_option_that_lets_it_in(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    these = networks()
    for _ in range(3):
        these.allow(PUBLIC)
        these.allow(f"::ffff:{PUBLIC}")
    these.allow("2001:4860:4860::8888")
    assert [message for message in caplog.messages if message.endswith("--set balancer_allow_from=8.8.8.8")] == [
        caplog.messages[0]
    ]
    assert len(caplog.messages) == 2


@pytest.mark.chaos
def test_addresses_without_end_fill_neither_the_log_nor_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clock = Clock()
    these = networks(clock=clock)
    for number in range(5_000):
        these.allow(str(ipaddress.ip_address("2001:4860::") + number))
    assert len(caplog.messages) == MAX_LINES + 1
    assert "not logged" in caplog.messages[-1]
    clock.now += LINES_SECONDS
    these.allow(PUBLIC)
    assert PUBLIC in caplog.messages[-1]
    for number in range(2 * MAX_LOGGED):
        clock.now += LINES_SECONDS
        these.allow(str(ipaddress.ip_address("2001:4870::") + number))
    assert len(these._logged) <= MAX_LOGGED


PROXIES = tuple(ipaddress.ip_network(each) for each in ("127.0.0.1", "10.0.0.0/24", "::1"))


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "6.6.6.6, 203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7, 10.0.0.3", "203.0.113.7"),
        ("127.0.0.1", "10.0.0.4, 10.0.0.3", "10.0.0.4"),
        ("127.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("203.0.113.9", "203.0.113.7", "203.0.113.9"),
        ("127.0.0.1", "203.0.113.7, unknown", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", ", ,", "127.0.0.1"),
        ("127.0.0.1", "6.6.6.6," + "10.0.0.3," * 10_000 + "10.0.0.3", "10.0.0.3"),
    ],
)
def test_of_what_was_forwarded_only_what_trusted_proxies_added_counts(
    peer: str, header: str | None, client: str
) -> None:
    assert forwarded_address(peer, header, PROXIES) == client
    assert forwarded_address(peer, header, ()) == peer
