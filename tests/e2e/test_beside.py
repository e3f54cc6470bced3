"""What is sent to harm holds up no stream beside it, takes little memory, and no more work than what is served.

What is asserted is relative to the machine: what becomes of a stream by itself, and what it takes to serve as many
bytes. How long each input holds up a stream on a quiet machine is shown by `python -m benches.stalls`.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.beside import Beside, Cost, stream_beside, stream_host
from tests.e2e.harness import free_port, running_proxy, wait_until
from tests.e2e.hostile_host import MIB, host
from tests.e2e.hostile_inputs import INPUTS, Site, send

TRIES = 3
"""What is the machine's doing does not come again each time."""

MARGIN = 64 * MIB
"""Of memory, for what a process allocates when it does anything for the first time."""

MANY, FEW = 200, 50

MAX_SERVED = 32 * MIB
"""Bytes that are served to find out what it takes to serve as many."""

SERVED = (
    "1,000 via of 1 kB",
    "400 requests ahead",
    "240 lists of 1,000 agents ahead",
    "no window, a fast host, 4 s",
    "10 unread days of history",
    "host's 6 MB of chunks of one byte",
    "pull of 20 MiB of blank lines",
    "pull of 20 MiB of empty objects",
    "pull of chunks of one byte",
    "report of 2,500 models",
)
"""Those that get what they ask for: the work is that of the answer's bytes."""

KINDS = ("heads", "sent ahead", "HTTP/2", "memory", "reports", "strange")

NAMES = [name for name, given in INPUTS.items() if given.kind in KINDS]


def prompt(size: int, model: str = "m") -> bytes:
    body = json.dumps({"model": model, "prompt": "x" * size, "stream": False}).encode()
    return b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@dataclass
class Scene:
    site: Site
    beside: Beside
    """The stream."""

    def cost(self, act: Callable[[Site], object]) -> Cost:
        self.site.sent = 0
        self.beside.begin()
        act(self.site)
        return self.beside.end()

    def settled(self, cost: Cost) -> bool:
        """Whether what is held beyond the margin is let go of, soon after it has ended."""
        return cost.growth < MARGIN or bool(
            wait_until(lambda: self.beside.end().growth < MARGIN, "memory is given back")
        )

    def cost_of(self, request: bytes, status: int, count: int) -> Cost:
        """What it takes to answer that so often, each time over a connection of its own."""

        def act(site: Site) -> None:
            for _ in range(count):
                answer = send(site, [request])
                assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:1000]

        return self.cost(act)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder: Path = tmp_path_factory.mktemp("beside")
    INPUTS["10 unread days of history"].write(folder)
    ports = (free_port(), free_port())
    server = multiprocessing.get_context("spawn").Process(target=host, args=(ports,), daemon=True)
    server.start()
    try:
        with stream_host() as url:
            agents = f"balancer_agents=one=http://127.0.0.1:{ports[0]},stream={url}"
            with running_proxy(folder, "--set", agents) as proxy:
                proxy.wait_online("one", "stream")
                with stream_beside(proxy.port, proxy.process.pid) as beside:
                    yield Scene(Site(proxy.port, 0, ports), beside)
    finally:
        server.kill()
        server.join()


def faults(scene: Scene, name: str, cost: Cost) -> list[str]:
    """What is wrong with what it cost."""
    sent = scene.site.sent
    found = []
    if cost.ended:
        found.append("the stream has ended")
    if cost.gap > 1 + 20 * scene.beside.calm().gap:
        found.append(f"the stream stood still for {cost.gap:.2f} s")
    if cost.peak > 10 * sent + MARGIN:
        found.append(f"of {sent} bytes the process grew by {cost.peak}")
    if name not in SERVED:
        size = min(sent, MAX_SERVED)
        served = scene.cost_of(prompt(size), 200, 1).cpu * sent / max(size, 1)
        served += scene.cost_of(prompt(10), 200, FEW).cpu + scene.beside.calm().cpu * cost.seconds
        if cost.cpu > served:
            found.append(f"it took {cost.cpu:.2f} s of CPU, and what is served {served:.2f} s")
    return found


def is_cheap(scene: Scene, cost: Cost) -> bool:
    """Whether nothing has to be compared to know that all is well."""
    return cost.peak < 10 * scene.site.sent + MARGIN and not cost.ended and cost.gap < 0.5 and cost.cpu < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_goes_on_beside_it(scene: Scene, name: str) -> None:
    given = INPUTS[name]
    given.prepare(scene.site)
    for number in range(TRIES):
        cost = scene.cost(given.act)
        assert scene.settled(cost)
        if is_cheap(scene, cost) or not (found := faults(scene, name, cost)):
            return
        assert number < TRIES - 1, (found, cost)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", 400, id="no host"),
        pytest.param(b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, id="a control character"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"x: y\r\n" * 1001 + b"\r\n", 431, id="many fields"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, id="somebody else's name"),
        pytest.param(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, id="no such path"),
        pytest.param(b"PUT /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, id="another method"),
        pytest.param(
            b"POST /api/agents/one/drain HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 401, id="no token"
        ),
        pytest.param(prompt(10, "nobody-has-it"), 404, id="an unknown model"),
        pytest.param(
            b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
            400,
            id="a body that cannot be read",
        ),
    ],
)
def test_what_is_refused_costs_less_than_what_is_served(scene: Scene, request_: bytes, status: int) -> None:
    refused, served = [], []
    scene.cost_of(request_, status, FEW), scene.cost_of(prompt(10), 200, FEW)  # what the first ones load is not theirs
    for _ in range(2 * TRIES):  # the least of each counts: what else the machine does adds to both
        refused.append(scene.cost_of(request_, status, MANY).cpu)
        served.append(scene.cost_of(prompt(10), 200, MANY).cpu)
        if min(refused) < min(served):
            return
    raise AssertionError((refused, served))
