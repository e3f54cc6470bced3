"""A whole request through the gateway, in an interpreter that has no mitmproxy."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys

sys.modules["mitmproxy"] = None

from tests.gateway.whole_request import main

main()
assert not [name for name in sys.modules if name.startswith("mitmproxy.")]
print("over")
"""


@pytest.mark.e2e
def test_a_request_is_admitted_waits_is_sent_elsewhere_and_ends_without_mitmproxy() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (told.stdout, told.stderr) == ("over\n", "")
