"""The balancer for `mitmdump -s`, with its seconds as long as those of the simulated hosts."""

from __future__ import annotations

import os
import time

from ollama_balancer import addon, probing

SCALE = float(os.environ["FLEET_HTTP_SCALE"])

addon.WATCH_SECONDS /= SCALE
probing.INTERVAL /= SCALE

addons = [addon.Balancer(lambda: time.monotonic() * SCALE)]
