from collections.abc import Iterator

import pytest

from tests.e2e import harness
from tests.e2e.harness import Hosts


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    these = Hosts()
    try:
        yield these
    finally:
        these.stop()


@pytest.fixture(params=[True, False], ids=["relay", "no relay"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the test's proxies relay streamed answers and run lean hooks; the test runs with and without both."""
    relays: bool = request.param
    if not relays:
        monkeypatch.setattr(harness, "always", ("--set", "balancer_relay=false", "--set", "balancer_lean=false"))
    return relays
