"""Reads files of flows, and makes other formats of them."""

VIEWER_FOLDER = "ollama-balancer-view-"
"""How the name of the folder begins that mitmproxy has while it shows files; the viewer removes it at its end."""
