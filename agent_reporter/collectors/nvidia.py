"""NVIDIA GPUs, read with NVML: needs the extra `gpu` (nvidia-ml-py) and the driver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""On Linux, one of these exists if there is a driver; the last one is for WSL."""


class MissingLibraryError(RuntimeError):
    """A driver is installed, but not the library to query it."""


def read_nvidia(drivers: Sequence[Path] = DRIVERS) -> list[dict[str, object]]:
    """All NVIDIA GPUs; empty without a driver. Raises MissingLibraryError, or pynvml's NVMLError."""
    there = any(driver.exists() for driver in drivers)
    if sys.platform == "linux" and not there:
        return []  # without the library, which takes some megabytes
    try:
        import pynvml
    except ImportError:
        if there:
            raise MissingLibraryError(
                "nvidia-ml-py is not installed: pip install 'ollama-agent-reporter[gpu]'"
            ) from None
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return []
    except pynvml.NVMLError_DriverNotLoaded:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        return [describe(pynvml, handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def describe(nvml: Any, handle: object) -> dict[str, object]:
    """One GPU; values that it does not report (unified memory, virtual GPU) are None."""

    def query(question: Callable[[object], Any]) -> Any:
        try:
            return question(handle)
        except nvml.NVMLError:
            return None

    name = query(nvml.nvmlDeviceGetName)
    memory = query(nvml.nvmlDeviceGetMemoryInfo)
    rates = query(nvml.nvmlDeviceGetUtilizationRates)
    power = query(nvml.nvmlDeviceGetPowerUsage)  # milliwatts
    temperature = query(lambda each: nvml.nvmlDeviceGetTemperature(each, nvml.NVML_TEMPERATURE_GPU))
    return {
        "name": (name.decode("utf-8", "replace") if isinstance(name, bytes) else name) or "NVIDIA GPU",
        "utilization": None if rates is None else float(rates.gpu),
        "memory_used": None if memory is None else int(memory.used),
        "memory_total": None if memory is None else int(memory.total),
        "temperature": None if temperature is None else float(temperature),
        "power": None if power is None else power / 1000,
    }
