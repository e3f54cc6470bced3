"""The server's settings: parallel requests per model, and models loaded at once.

They are read from the environment of its process. If that is not readable, the balancer learns them from observation.
"""

from collections.abc import Mapping

from .base import Fields, Host

NUMBERS = {
    "OLLAMA_NUM_PARALLEL": "num_parallel",
    "OLLAMA_MAX_LOADED_MODELS": "max_loaded_models",
}
MAX_SETTING = 100_000
"""The largest value that a report may contain."""


class ServerCollector:
    """Collects `num_parallel` and `max_loaded_models` if they are set and readable."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def collect(self) -> Fields:
        return parse(await self._host.server.settings(self._host.ollama))


def parse(environment: Mapping[str, str]) -> Fields:
    """The settings above 0; 0 lets the server decide."""
    fields: dict[str, object] = {}
    for variable, name in NUMBERS.items():
        text = environment.get(variable, "").strip()
        if text.isascii() and text.isdecimal() and len(text) <= 6 and 0 < int(text) <= MAX_SETTING:
            fields[name] = int(text)
    return fields
