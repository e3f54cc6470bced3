"""Tests of the simulated Ollama host: against recordings of a real one, in virtual time and over real sockets."""
