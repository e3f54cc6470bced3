"""The simulated host as a program of its own."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import ollama_balancer.simulator
from ollama_balancer.simulator.__main__ import build, parse

from .support import PATIENCE

ROOT = Path(ollama_balancer.simulator.__file__).parents[2]


def launch(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ollama_balancer.simulator", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_tells_its_url_serves_and_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    with launch("--port", "0", "--name", "gpu-1", "--models", "llama3.2,qwen3", "--load", "0.01") as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["url"] == f"http://127.0.0.1:{ready['port']}"
            models = httpx.get(f"{ready['url']}/api/tags", timeout=PATIENCE).json()["models"]
            assert [model["name"] for model in models] == ["llama3.2:latest", "qwen3:latest"]
            with httpx.stream("POST", f"{ready['url']}/api/chat", json={"model": "qwen3", "messages": []}):
                process.send_signal(number)
                output, errors = process.communicate(timeout=PATIENCE)
            assert (process.returncode, output, errors) == (0, "", "")
        finally:
            process.kill()


def test_figures_that_cannot_be_are_refused_with_status_2() -> None:
    with launch("--decode-rate", "0") as process:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert errors == "simulator: decode_rate must be above 0\n"


def test_every_figure_of_the_timing_model_has_an_option() -> None:
    arguments = ["--load", "1.5", "--num-parallel", "4", "--time-scale", "0.1", "--embedding-models", "e, f"]
    sim = build(parse(arguments))
    assert (sim.timing.load, sim.timing.num_parallel, sim.timing.time_scale) == (1.5, 4, 0.1)
    assert [(model.name, model.embedding) for model in sim.models] == [("llama3.2", False), ("e", True), ("f", True)]
