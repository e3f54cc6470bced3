"""The small fleet of the pictures of mitmweb and of a terminal."""

from __future__ import annotations

from ollama_balancer.simulator import Timing

HOSTS: dict[str, tuple[tuple[str, ...], Timing]] = {
    "gpu-1": (("llama3.2", "qwen3"), Timing(load=1.5, decode_rate=90, prefill_rate=2000, num_parallel=2)),
    "gpu-2": (("llama3.2", "gemma3"), Timing(load=2.0, decode_rate=60, prefill_rate=1500, num_parallel=2)),
    "gpu-3": (("qwen3", "gemma3"), Timing(load=3.0, decode_rate=35, prefill_rate=800)),
}
"""Models and pace."""
