"""For `mitmdump -s`: the dashboard's curves have a point a second, so that a minute fills them."""

from ollama_balancer.core import recent

recent.STEP = 1.0
