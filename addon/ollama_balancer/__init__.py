"""A load balancer for a fleet of Ollama hosts, as a plugin for mitmproxy.

`core` decides which agent gets which request, `ollama` knows the protocol, `storage` keeps what outlives the process,
`gateway` takes a request from its arrival to its end, `hosts` reaches the hosts by itself, `api` serves the control API
and the dashboard, `mitm` is the adapter to mitmproxy, `cli` has the commands.
"""

from agent_reporter import __version__

__all__ = ["__version__"]
