from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from ollama_balancer.mitm.shutdown import Stopper
from tests import jumping_loop

PATIENCE = 10.0


class Program:
    """What is to end: `requests` run, and it counts how often it is ended."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.ends = 0
        self.ended = asyncio.Event()
        self.stopper = Stopper(lambda: self.requests, self.end)

    def end(self) -> None:
        self.ends += 1
        self.ended.set()

    async def has_ended(self) -> bool:
        async with asyncio.timeout(PATIENCE):
            return await self.ended.wait()


def with_program(requests: int, test: Callable[[Program], Awaitable[None]]) -> None:
    async def run() -> None:
        await test(Program(requests))

    jumping_loop.run(run())


def test_with_nothing_running_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def test(program: Program) -> None:
        assert not program.stopper.ending
        program.stopper.request(3600)
        assert program.stopper.ending
        assert await program.has_ended()

    caplog.set_level("INFO")
    with_program(0, test)
    assert caplog.messages == []


def test_it_ends_when_the_last_request_has(caplog: pytest.LogCaptureFixture) -> None:
    async def test(program: Program) -> None:
        program.stopper.request(3600)
        await asyncio.sleep(0.2)
        assert program.ends == 0
        program.requests = 0
        assert await program.has_ended()

    caplog.set_level("INFO")
    with_program(2, test)
    assert len(caplog.messages) == 1
    assert "2 running requests" in caplog.text


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_it_does_not_wait_longer_than_it_may(caplog: pytest.LogCaptureFixture, timeout: float) -> None:
    async def test(program: Program) -> None:
        program.stopper.request(timeout)
        assert await program.has_ended()

    with_program(3, test)
    assert f"3 requests unfinished after {timeout:g} s" in caplog.text


def test_asked_again_it_ends_at_once() -> None:
    async def test(program: Program) -> None:
        program.stopper.request(3600)
        program.stopper.request(3600)
        assert program.ends == 1

    with_program(1, test)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs signals that are free")
def test_a_signal_asks_and_once_let_go_ends_at_once() -> None:
    async def test(program: Program) -> None:
        stopper = program.stopper
        stopper.listen(signal.SIGUSR1, timeout=lambda: 3600)
        stopper.listen(signal.SIGUSR1, timeout=lambda: 3600)  # as after a reload
        stopper.release()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await program.has_ended()
        assert not stopper.ending
        program.ended.clear()
        stopper.listen(signal.SIGUSR1, timeout=lambda: 0.05)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await program.has_ended()
        assert stopper.ending

    with_program(1, test)


def test_where_the_loop_takes_no_signals_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(program: Program) -> None:
        def refuse(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", refuse)
        program.stopper.listen(signal.SIGTERM, timeout=lambda: 1)
        program.stopper.release()
        assert program.ends == 0

    with_program(0, test)
