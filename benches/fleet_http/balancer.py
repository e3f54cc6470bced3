"""The balancer for `mitmdump -s`, with its seconds as long as those of the simulated hosts."""

from __future__ import annotations

import os
import time

from ollama_balancer.hosts import prober as probing
from ollama_balancer.mitm import lifecycle
from ollama_balancer.mitm.addons import BalancerAddon

SPEED = float(os.environ["FLEET_HTTP_SPEED"])

lifecycle.WATCH_SECONDS /= SPEED
probing.INTERVAL /= SPEED

addons = [BalancerAddon(lambda: time.monotonic() * SPEED)]
