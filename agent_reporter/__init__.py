"""The reporter, which runs on each Ollama host and sends its metrics to the balancers.

`wire` has the models of the protocol, `collectors` read the host, `push` sends the reports.
"""

__version__ = "0.1.0"
