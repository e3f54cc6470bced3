"""A simulated Ollama host that speaks real HTTP, for the demo, the tests and the benches.

`host` listens, `connection` speaks HTTP, `requests` and `answers` know the wire, `timing` and `text` stand in for the
GPU, and `inference` takes a request through them and through the `faults`.
"""

from .faults import Faults
from .host import ReceivedRequest, SimulatedOllama
from .models import SimulatedModel
from .timing import Timing

__all__ = ["Faults", "ReceivedRequest", "SimulatedModel", "SimulatedOllama", "Timing"]
