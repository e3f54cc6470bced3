"""What it costs: the choice of an agent, and a request or a chunk through the proxy."""
