"""The balancer for `mitmdump -s`, with its seconds as long as those of the simulated hosts."""

from __future__ import annotations

import os
import time

from ollama_balancer.hosts import prober as probing
from ollama_balancer.mitm import addon

SCALE = float(os.environ["FLEET_HTTP_SCALE"])

addon.WATCH_SECONDS /= SCALE
probing.INTERVAL /= SCALE

addons = [addon.Balancer(lambda: time.monotonic() * SCALE)]
