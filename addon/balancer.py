"""What mitmproxy loads: `mitmdump -s addon/balancer.py`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("agent_reporter") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # not installed: the checkout has it

try:
    from ollama_balancer.mitm.addons import the_addon
except ModuleNotFoundError as e:
    root = Path(__file__).resolve().parent.parent
    install = f"{sys.executable} -m pip install -e {root / 'agent_reporter'} -e {root}"
    e.msg += f". Install what the balancer needs into mitmproxy's environment: {install}"
    raise
except (ImportError, AttributeError) as e:
    from ollama_balancer.mitm import versions

    raise ImportError(f"{e}. The balancer works with {versions.tested()}; this is {versions.installed()}.") from e

addons = [the_addon()]
