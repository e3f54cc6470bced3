"""Clients that leave in every phase of a request, and how long the host goes on working for nobody."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ollama_balancer.simulator import SimulatedOllama, Timing
from tests.e2e.harness import PATIENCE, Hosts, Proxy, silent_listener, wait_until

PHASES = ("waiting", "connecting", "loading", "prefill", "decoding")

SLOW = {
    "loading": Timing(load=1000),
    "prefill": Timing(load=0, prefill_rate=0.001),
    "decoding": Timing(load=0, prefill_rate=1e6, decode_rate=20, output_tokens=1_000_000),
}


class Client:
    """A request on a socket of its own."""

    def __init__(self, proxy: Proxy, *, stream: bool, pin: str) -> None:
        body = json.dumps({"model": "llama3.2", "prompt": "x", "stream": stream}).encode()
        head = (
            f"POST /api/generate HTTP/1.1\r\nHost: x\r\nX-Balancer-Agent: {pin}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.socket = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
        self.socket.sendall(head.encode() + body)

    def leave(self) -> None:
        self.socket.close()


class DeafHost:
    """A host that answers what the balancer asks of it, until `deafen`; then it drops every attempt to connect."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self._fillers: list[socket.socket] = []
        self._deaf = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self.socket.settimeout(0.05)
        while not self._deaf.is_set():
            with suppress(OSError), self.socket.accept()[0] as connection:
                connection.settimeout(PATIENCE)
                head = connection.recv(65536)
                text = (
                    b'{"version":"1.0"}'
                    if b"/api/version" in head
                    else b'{"models":[{"name":"llama3.2"},{"name":"m"}]}'
                )
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
                )

    def deafen(self) -> None:
        self._deaf.set()
        self._thread.join()
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self.socket.getsockname())
            self._fillers.append(filler)

    def close(self) -> None:
        for each in (*self._fillers, self.socket):
            each.close()


@contextmanager
def deaf_agent(proxy: Proxy, name: str) -> Iterator[DeafHost]:
    """An agent that the balancer thinks is online, and cannot connect to."""
    host = DeafHost()
    try:
        proxy.register(name, host.url)
        proxy.wait_online(name)
        proxy.report(name, models=["llama3.2", "m"])
        host.deafen()
        yield host
        proxy.control("DELETE", f"/api/agents/{name}")
    finally:
        host.close()


@contextmanager
def deaf_address() -> Iterator[str]:
    """The URL of a listener that drops every attempt to connect, as a host does that is switched off."""
    with silent_listener() as port:
        yield f"http://127.0.0.1:{port}"


def in_flight(proxy: Proxy, name: str) -> int:
    count: int = proxy.agents()[name]["in_flight"]
    return count


def waiting(proxy: Proxy) -> int:
    count: int = proxy.http.get("/api/balancer").json()["waiting"]
    return count


def leave(proxy: Proxy, host: SimulatedOllama, hosts: Hosts, phase: str, *, stream: bool) -> float:
    """Send a request, leave in that phase, and return the seconds until nothing is left of it.

    The proxy has one slot an agent, and knows `host` as "one".
    """
    if phase == "connecting":
        with deaf_agent(proxy, "deaf"):
            client = Client(proxy, stream=stream, pin="deaf")
            wait_until(lambda: in_flight(proxy, "deaf") == 1, "the balancer connects")
            seconds = _seconds(client, lambda: in_flight(proxy, "deaf") == 0)
            wait_until(lambda: proxy.introspect()["timers"] == 0, "no attempt is left")
            return seconds
    if phase == "waiting":
        host.faults.hang = True
        first = Client(proxy, stream=False, pin="one")
        wait_until(lambda: host.in_flight == 1, "the slot is taken")
        client = Client(proxy, stream=stream, pin="one")
        wait_until(lambda: waiting(proxy) == 1, "it waits")
        seconds = _seconds(client, lambda: waiting(proxy) == 0)
        first.leave()
        wait_until(lambda: host.in_flight == 0, "the slot is free")
        host.faults.hang = False
        return seconds
    host.timing = SLOW[phase]
    hosts.run(_unload(host))
    client = Client(proxy, stream=stream, pin="one")
    wait_until(lambda: host.in_flight == 1, "the host has it")
    if phase == "decoding":
        if stream:
            with suppress(TimeoutError):
                while b"response" not in client.socket.recv(65536):
                    pass
        wait_until(lambda: host.running == 1, "it is decoding")
    seconds = _seconds(client, lambda: host.in_flight == 0)
    wait_until(lambda: in_flight(proxy, "one") == 0, "the lease is given back")
    return seconds


async def _unload(host: SimulatedOllama) -> None:
    await host.kill()
    await host.start()


def _seconds(client: Client, over: Callable[[], bool]) -> float:
    began = time.monotonic()
    client.leave()
    while not over():
        if time.monotonic() - began > PATIENCE:
            raise AssertionError("something is left of it")
        time.sleep(0.001)
    return time.monotonic() - began
