"""How good an agent would be for a request: estimates, what is learned, prefix caches, placement."""
