from collections.abc import Iterator

import pytest

from tests.e2e.harness import Hosts


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    these = Hosts()
    try:
        yield these
    finally:
        these.stop()
