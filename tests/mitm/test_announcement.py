"""When the balancer is announced on the local network."""

from __future__ import annotations

import asyncio

import pytest

from ollama_balancer.hosts import announcing
from ollama_balancer.mitm import announcement
from ollama_balancer.mitm.announcement import Announcement
from ollama_balancer.storage.token import Token


class Announced:
    """Stands for the network: what is announced there now, and how often something new was."""

    def __init__(self) -> None:
        self.now: list[int] = []
        self.times = 0

    async def announce(self, token: str, port: int, addresses: tuple[str, ...]) -> None:
        del token, addresses
        self.times += 1
        self.now.append(port)
        try:
            await asyncio.Event().wait()
        finally:
            self.now.remove(port)


async def _settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_it_starts_anew_after_it_was_stopped_and_not_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    network, ports = Announced(), [8080]
    monkeypatch.setattr(announcing, "announce", network.announce)
    monkeypatch.setattr(announcing, "addresses_of", lambda hosts: tuple(hosts))
    monkeypatch.setattr(announcement, "port", lambda: ports[0])
    monkeypatch.setattr(announcement, "listening", lambda: [("10.0.0.1", ports[0])])
    token = Token("a-token")

    async def main() -> None:
        ours = Announcement()
        for wanted, now, times in (
            (True, [8080], 1),
            (True, [8080], 1),
            (False, [], 1),
            (True, [8080], 2),
        ):
            ours.update(token, wanted=wanted)
            await _settle()
            assert (network.now, network.times) == (now, times)
        ours.stop()
        await _settle()
        assert network.now == []
        ours.update(token, wanted=True)
        await _settle()
        assert (network.now, network.times) == ([8080], 3)
        ports[0] = 9090
        ours.update(token, wanted=True)
        await _settle()
        assert (network.now, network.times) == ([9090], 4)
        ours.stop()
        ours.stop()
        await _settle()
        assert network.now == []

    asyncio.run(main())
