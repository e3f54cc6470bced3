"""AMD GPUs, read from the sysfs files of the Linux driver amdgpu, which need no privileges."""

import re
from collections.abc import Callable
from pathlib import Path

CARDS = Path("/sys/class/drm")
VENDOR = "0x1002"


def read_amd(cards: Path = CARDS) -> list[dict[str, object]]:
    """All AMD GPUs; empty without sysfs."""
    if not cards.is_dir():
        return []
    devices = [card / "device" for card in sorted(cards.iterdir()) if re.fullmatch(r"card\d+", card.name)]
    # Integrated graphics without their own memory do not report any, and run no models.
    return [
        describe(device)
        for device in devices
        if _text(device / "vendor") == VENDOR and (device / "mem_info_vram_total").exists()
    ]


def describe(device: Path) -> dict[str, object]:
    """One GPU, by its device folder; values that are missing or malformed are None."""
    sensors = next(iter(sorted(device.glob("hwmon/hwmon*"))), device)
    power = _number(sensors / "power1_average")  # microwatts
    if power is None:
        power = _number(sensors / "power1_input")
    temperature = _number(sensors / "temp1_input", lambda text: int(text))  # thousandths of a degree
    busy = _number(device / "gpu_busy_percent")
    return {
        "name": (_text(device / "product_name") or f"AMD GPU {_text(device / 'device') or ''}".strip())[:256],
        "utilization": None if busy is None or busy > 100 else float(busy),
        "memory_used": _number(device / "mem_info_vram_used"),
        "memory_total": _number(device / "mem_info_vram_total"),
        "temperature": None if temperature is None else temperature / 1000,
        "power": None if power is None else power / 1_000_000,
    }


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            text = file.read(256).decode("utf-8", "replace").strip()
    except OSError:
        return None
    return "".join(c for c in text if c.isprintable()) or None


def _digits(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("no digits")
    return int(text)


def _number(path: Path, parse: Callable[[str], int] = _digits) -> int | None:
    text = _text(path)
    try:
        return None if text is None or len(text) > 18 else parse(text)
    except ValueError:
        return None
