"""What mitmproxy loads: `mitmdump -s addon/balancer.py`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("agent_reporter") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # not installed: the checkout has it

try:
    from ollama_balancer.mitm.addon import balancer
except ModuleNotFoundError as e:
    root = Path(__file__).resolve().parent.parent
    e.msg += (
        f". Install what the balancer needs into mitmproxy's environment: {sys.executable} -m pip install -e {root}"
    )
    raise

addons = [balancer()]
