"""Mutated input for all that reads what strangers send: `python -m tests.fuzz` for as long as you like."""
