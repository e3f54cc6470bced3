"""ollama-balancer: mitmproxy as a load balancer for Ollama.

`addon` translates mitmproxy's hooks, `fleet` decides, `proxying` connects and retries, `ollama` knows the protocol,
`api` answers the control calls, `inspection` writes what people see, `simulator` is an Ollama host to try it on.
"""

__version__ = "0.1.0"
