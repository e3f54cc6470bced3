"""`mitmdump -s "$(ollama-balancer path)"`, and what mitmproxy-addon-launcher finds."""

from ollama_balancer.mitm.addons import the_addon

addons = [the_addon()]
