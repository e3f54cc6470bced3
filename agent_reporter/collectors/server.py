"""The server's own settings: how many requests of a model it runs at once, and how many models it holds.

They are in the environment of its process. Where they may not be read, the balancer learns what it needs from what it
sees.
"""

from collections.abc import Mapping

from .base import Fields, Host

NUMBERS = {
    "OLLAMA_NUM_PARALLEL": "num_parallel",
    "OLLAMA_MAX_LOADED_MODELS": "max_loaded_models",
}
MAX_SETTING = 100_000
"""What a report may say."""


class ServerCollector:
    """Gives `num_parallel` and `max_loaded_models`, where they are set and may be read."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def collect(self) -> Fields:
        return parse(await self._host.server.settings(self._host.ollama))


def parse(environment: Mapping[str, str]) -> Fields:
    """The settings above 0: 0 means that the server decides."""
    fields: dict[str, object] = {}
    for variable, name in NUMBERS.items():
        text = environment.get(variable, "").strip()
        if text.isascii() and text.isdecimal() and len(text) <= 6 and 0 < int(text) <= MAX_SETTING:
            fields[name] = int(text)
    return fields
