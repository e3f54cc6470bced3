"""A folder of its own for the script: mitmproxy puts that into Python's path."""
