"""What a reporter costs its host: python -m benches.reporter

A real reporter reports to a real balancer, of a simulated host with 20 models. CPU is that of the reporter's process
alone, by psutil; RSS counts the pages of shared libraries, USS does not.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.e2e.harness import ROOT, TOKEN, Hosts, running_proxy

INTERVAL = 0.5
REPORTS = 20
ROUNDS = 7
MODELS = [f"model-{number}" for number in range(20)]


def main() -> None:
    hosts = Hosts()
    host = hosts.start("one", *MODELS)
    with tempfile.TemporaryDirectory() as folder, running_proxy(Path(folder)) as proxy:
        command = [sys.executable, "-m", "agent_reporter", "--balancer", proxy.url, "--ollama", host.url]
        reporter = subprocess.Popen(
            [*command, "--name", "one", "--interval", str(INTERVAL)],
            cwd=ROOT,
            env=os.environ | {"OLLAMA_BALANCER_TOKEN": TOKEN},
            stderr=subprocess.DEVNULL,
        )
        try:
            proxy.wait_online("one")
            process = psutil.Process(reporter.pid)
            time.sleep(4 * INTERVAL)  # the first reports load what is loaded once
            costs = [cost_of_a_report(process) for _ in range(ROUNDS)]
            memory = process.memory_full_info()
        finally:
            reporter.terminate()
            reporter.wait()
    hosts.stop()
    print(f"{os.cpu_count()} cores, {platform.python_implementation()} {platform.python_version()}")
    print(
        f"CPU of a report: median {statistics.median(costs):.1f} ms, lowest {min(costs):.1f}, highest {max(costs):.1f}"
    )
    print(f"({ROUNDS} rounds of {REPORTS} reports)")
    print(f"memory at rest: RSS {memory.rss / 1e6:.1f} MB, USS {memory.uss / 1e6:.1f} MB")


def cost_of_a_report(process: psutil.Process) -> float:
    """Milliseconds of CPU."""
    before = process.cpu_times()
    began = time.monotonic()
    time.sleep(REPORTS * INTERVAL)
    after = process.cpu_times()
    reports = (time.monotonic() - began) / INTERVAL
    return (after.user + after.system - before.user - before.system) / reports * 1000


if __name__ == "__main__":
    main()
