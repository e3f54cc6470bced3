"""One simulated Ollama host as a process of its own, so that it can be killed and frozen for real.

    python -m tests.chaos.host NAME PORT MODEL,MODEL,...

It reads one JSON object a line: `{"faults": {...}}` sets faults, and each line is answered with its counts.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import asdict

from ollama_balancer.simulator import Faults, SimulatedModel, SimulatedOllama, Timing

SLOTS = 3

EMBEDDER = "nomic-embed-text"

TIMING = Timing(load=0.1, prefill_rate=1e5, decode_rate=400, output_tokens=16, num_parallel=SLOTS, max_loaded=2)

SAMPLE = 0.01
"""Seconds between two looks at how many requests of a model are there at once."""

LONG = 30
"""Looks in a row that make more than the slots a fault: what a client has left may still be on its way out."""


async def main(name: str, port: int, models: list[str]) -> None:
    library = [SimulatedModel(model, embedding=model == EMBEDDER) for model in models]
    host = SimulatedOllama(library, timing=TIMING, name=name, port=port)
    over = 0
    worst = 0

    async def watch() -> None:
        nonlocal over, worst
        while True:
            await asyncio.sleep(SAMPLE)
            there = Counter(r.model for r in host.requests[-200:] if r.inference and r.outcome == "running")
            most = max(there.values(), default=0)
            over = over + 1 if most > SLOTS else 0
            if over >= LONG:
                worst = max(worst, most)

    await host.start()
    watching = asyncio.create_task(watch())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"port": host.port}), flush=True)
    while line := await reader.readline():
        message = json.loads(line)
        faults = message.get("faults")
        if faults is not None:
            for fault, value in (asdict(Faults()) | faults).items():
                setattr(host.faults, fault, value)
        received = sum(host.counts.values()) + host.in_flight
        answer = {"number": message["number"], "in_flight": host.in_flight, "received": received, "over": worst}
        print(json.dumps(answer), flush=True)
    watching.cancel()
    await host.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")))
