"""The server's own settings: how many requests it runs and lets wait, and how many models it holds, for how long.

They are in the environment of its process. Where they may not be read, the balancer learns what it needs from what it
sees.
"""

from __future__ import annotations

from collections.abc import Mapping

from .base import Fields, Host

NUMBERS = {
    "OLLAMA_NUM_PARALLEL": "num_parallel",
    "OLLAMA_MAX_LOADED_MODELS": "max_loaded_models",
    "OLLAMA_MAX_QUEUE": "max_queue",
}
MOST = 100_000
"""What a report may say."""
LONGEST = 40
"""Characters of a time to keep models, such as `5m` or `-1`."""


class ServerCollector:
    """Gives `num_parallel`, `max_loaded_models`, `max_queue` and `keep_alive`, where they are set and may be read."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def collect(self) -> Fields:
        return parse(await self._host.server.settings(self._host.ollama))


def parse(environment: Mapping[str, str]) -> Fields:
    """The settings; of the numbers those above 0: 0 means that the server decides."""
    fields: dict[str, object] = {}
    for variable, name in NUMBERS.items():
        text = environment.get(variable, "").strip()
        if text.isascii() and text.isdecimal() and len(text) <= 6 and 0 < int(text) <= MOST:
            fields[name] = int(text)
    keep_alive = environment.get("OLLAMA_KEEP_ALIVE", "").strip()
    if keep_alive and len(keep_alive) <= LONGEST and keep_alive.isprintable():
        fields["keep_alive"] = keep_alive
    return fields
