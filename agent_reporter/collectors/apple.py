"""Apple GPUs, read with ioreg, which needs no root. Temperature and power need root (powermetrics)."""

import re
import subprocess
import sys

import psutil

COMMAND = ("/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator")
TIMEOUT = 3.0


def read_apple() -> list[dict[str, object]]:
    """The GPU; empty on other systems. Raises OSError or subprocess.SubprocessError."""
    if sys.platform != "darwin":
        return []
    output = subprocess.run(COMMAND, capture_output=True, timeout=TIMEOUT, check=True)  # noqa: S603 - no input
    return parse(output.stdout.decode("utf-8", "replace"), psutil.virtual_memory().total)


def parse(text: str, memory: int) -> list[dict[str, object]]:
    """Parse the output of ioreg. `memory` is the system memory in bytes, which the GPU shares."""
    gpus: list[dict[str, object]] = []
    for block in re.split(r"^\+-o ", text, flags=re.MULTILINE)[1:65]:
        model = re.search(r'"model" = "([^"\n]{1,200})"', block)
        busy = re.search(r'"Device Utilization %"=(\d{1,3})\b', block)
        used = re.search(r'"In use system memory"=(\d{1,18})\b', block)
        if busy is None and used is None:
            continue
        gpus.append(
            {
                "name": model[1] if model else "Apple GPU",
                "utilization": min(100.0, float(busy[1])) if busy else None,
                "memory_used": int(used[1]) if used else None,
                "memory_total": memory,
                "temperature": None,
                "power": None,
            }
        )
    return gpus
