"""A second addon: the balancer's times made short, so that a minute shows what takes an hour."""

from ollama_balancer.core import health, liveness
from ollama_balancer.gateway import watchdog
from ollama_balancer.hosts import prober as probing
from ollama_balancer.mitm import lifecycle

lifecycle.WATCH_SECONDS = 0.1
watchdog.SILENCE = 1.0
watchdog.LOOK_AGAIN = 0.2
health.FIRST_EJECTION = 1.0
health.SLOW_START_SECONDS = 2.0
liveness.PROBE_GRACE = 1.5
probing.INTERVAL = 0.3
probing.ALIVE_TIMEOUT = 1.5
