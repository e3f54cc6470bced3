"""GPUs: what their drivers report without root. Values that a driver does not report are null."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from ..resolving import in_thread
from ..states import StateLog
from .amd import read_amd
from .apple import read_apple
from .base import Fields, Host, PartialError
from .nvidia import read_nvidia

Gpu: TypeAlias = dict[str, object]
"""The fields of wire.GpuMetrics."""

READERS: Mapping[str, Callable[[], Sequence[Gpu]]] = {"NVIDIA": read_nvidia, "AMD": read_amd, "Apple": read_apple}

MAX_GPUS = 64
"""GPUs per report."""


class GpusCollector:
    """Collects `gpus` of all vendors. Raises PartialError if those of one vendor cannot be read."""

    def __init__(self, host: Host, readers: Mapping[str, Callable[[], Sequence[Gpu]]] = READERS) -> None:
        del host
        self._readers = readers
        self._states = {maker: StateLog("fine") for maker in readers}
        self._running: dict[str, asyncio.Future[Sequence[Gpu]]] = {}

    async def collect(self) -> Fields:
        found: list[Gpu] = []
        failed = False
        for maker, read in self._readers.items():
            answer = self._running.get(maker) or in_thread(read, "GPU reader")
            self._running[maker] = answer  # a driver that hangs holds its thread, and no second one is sent after it
            try:
                found += await asyncio.shield(answer)
            except Exception as error:
                failed = True
                self._states[maker].say("failing", logging.WARNING, f"{maker} GPUs cannot be read: {error}")
            else:
                self._states[maker].say("fine", logging.INFO, f"{maker} GPUs can be read again")
            del self._running[maker]
        fields: Fields = {"gpus": found[:MAX_GPUS]}
        if failed:
            raise PartialError(fields)
        return fields
