"""The reporter: the small program on each Ollama host that tells the balancers how the host is.

`wire` holds what goes over the wire, `collectors` what is read from the host, `push` the talk with the balancers.
"""

__version__ = "0.1.0"
