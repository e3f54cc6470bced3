"""What the balancer knows of Ollama's own HTTP API: its routes, model names, request bodies, answers and errors."""
