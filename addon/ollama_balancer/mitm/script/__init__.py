"""What mitmproxy loads where there is no checkout: alone in its folder, which mitmproxy puts on Python's path."""
