"""A simulated Ollama host that speaks real HTTP, for the demo, the tests and the benches.

`host` listens, `connection` speaks HTTP and `routes` knows the paths. `requests` reads JSON, and `jobs` makes it into
work that `inference` takes through `timing` and `text`, which stand in for the GPU. `management` changes the `library`
of models. Both pass the gate of the `faults`; `native`, `openai`, `responses` and `anthropic` write the answers.
"""

from .faults import Faults
from .host import SimulatedOllama
from .library import Registry
from .models import SimulatedModel
from .request_log import ReceivedRequest
from .timing import Timing

__all__ = ["Faults", "ReceivedRequest", "Registry", "SimulatedModel", "SimulatedOllama", "Timing"]
