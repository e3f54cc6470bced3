"""What `ollama-balancer view` has mitmweb load: flows are shown as the balancer shows them, and nothing is balanced."""

from ollama_balancer.mitm.inspection.commands import ComparisonCommand
from ollama_balancer.mitm.viewer import Viewer

addons = [Viewer(), ComparisonCommand()]
