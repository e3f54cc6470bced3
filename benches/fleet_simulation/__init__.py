"""Fleets and requests drawn at random, to judge the modes by: see `ollama_balancer.lab`."""
