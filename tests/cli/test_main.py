"""What all commands of `ollama-balancer` have in common."""

from __future__ import annotations

import os
import sys

import pytest

from ollama_balancer.cli.main import main


def test_a_reader_that_leaves_ends_a_command_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as left:
            main(["schema"])
    assert left.value.code == 1
