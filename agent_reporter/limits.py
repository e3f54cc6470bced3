"""What both sides agree on and needs no library: sizes, names, ports."""

MAX_BODY_BYTES = 1024 * 1024
"""The largest body, in bytes, that the control API accepts."""

MAX_MODELS = 2_500
"""Models that one host may list: as many as fit into MAX_BODY_BYTES as Ollama lists them."""

MAX_VALUES = 50_000
"""Values of a report or of a host's list; MAX_MODELS have 45,000 of them."""

DEFAULT_OLLAMA_PORT = 11434

NAME_PATTERN = r"^[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]{0,63}$"
"""Agent names: they go into header values, paths and log lines, so they are plain and short."""
